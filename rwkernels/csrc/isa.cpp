#include "isa.hpp"

#include <atomic>
#include <stdexcept>

namespace rwk {
namespace {

Isa fastest() { return runnable_isas().back(); }

std::atomic<Isa>& active() {
  static std::atomic<Isa> isa{fastest()};
  return isa;
}

}  // namespace

const char* name(Isa isa) {
  switch (isa) {
    case Isa::avx512: return "avx512";
    case Isa::avx2: return "avx2";
    default: return "baseline";
  }
}

std::vector<Isa> runnable_isas() {
  std::vector<Isa> isas{Isa::baseline};
#ifdef RWK_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  if (avx2) isas.push_back(Isa::avx2);
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    isas.push_back(Isa::avx512);
#endif
  return isas;
}

Isa active_isa() { return active().load(std::memory_order_relaxed); }

void force_isa(const std::string& wanted) {
  if (wanted.empty()) {
    active().store(fastest());
    return;
  }
  std::string known;
  for (Isa isa : runnable_isas()) {
    if (wanted == name(isa)) {
      active().store(isa);
      return;
    }
    known += std::string(known.empty() ? "" : ", ") + name(isa);
  }
  throw std::invalid_argument("isa: expected one of " + known + " on this machine, got '" + wanted + "'");
}

}  // namespace rwk
