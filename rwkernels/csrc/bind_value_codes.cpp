// Python's way to the codes of foreground values: checks sizes, lets go of the GIL.
#include <nanobind/nanobind.h>

#include <cstdint>
#include <stdexcept>

#include "bind.hpp"
#include "value_codes.hpp"

namespace nb = nanobind;

namespace rwk {
namespace {

using Address = std::uintptr_t;
constexpr std::int64_t worth_a_thread = 1 << 17;

int useful_threads(std::int64_t count, int threads) {
  const std::int64_t useful = count / worth_a_thread + 1;
  return useful < threads ? static_cast<int>(useful) : threads;
}

void check(std::int64_t count, int bytes) {
  if (count < 0) throw std::invalid_argument("count: expected no negative number");
  if (bytes != 1 && bytes != 2) throw std::invalid_argument("bytes: expected 1 or 2");
}

bool encode_values(Address values, std::int64_t count, int bytes, Address codes, int threads) {
  check(count, bytes);
  nb::gil_scoped_release release;
  return active_code_kernels().encode(reinterpret_cast<const float*>(values), count, bytes,
                                      reinterpret_cast<void*>(codes), useful_threads(count, threads));
}

void decode_values(Address codes, std::int64_t count, int bytes, Address values, int threads) {
  check(count, bytes);
  nb::gil_scoped_release release;
  active_code_kernels().decode(reinterpret_cast<const void*>(codes), count, bytes, reinterpret_cast<float*>(values),
                               useful_threads(count, threads));
}

}  // namespace

void bind_value_codes(nb::module_& m) {
  m.def("encode_values", &encode_values, nb::arg("values"), nb::arg("count"), nb::arg("bytes"), nb::arg("codes"),
        nb::arg("threads"));
  m.def("decode_values", &decode_values, nb::arg("codes"), nb::arg("count"), nb::arg("bytes"), nb::arg("values"),
        nb::arg("threads"));
}

}  // namespace rwk
