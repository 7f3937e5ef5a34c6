// Which build of the hot files runs: chosen once from the processor, or forced by name.
#pragma once

#include <string>
#include <vector>

namespace rwk {

enum class Isa { baseline, avx2, avx512 };

const char* name(Isa isa);
std::vector<Isa> runnable_isas();  // slowest first
Isa active_isa();
void force_isa(const std::string& name);  // "" goes back to the fastest; std::invalid_argument if it cannot run

// Picks the table of the active instruction set. Tables are declared by RWK_DECLARE_TABLES(Type, name).
#ifdef RWK_X86
#define RWK_DECLARE_TABLES(Type, table)             \
  namespace baseline { extern const Type table; }   \
  namespace avx2 { extern const Type table; }       \
  namespace avx512 { extern const Type table; }     \
  inline const Type& active_##table() {             \
    switch (active_isa()) {                         \
      case Isa::avx512: return avx512::table;       \
      case Isa::avx2: return avx2::table;           \
      default: return baseline::table;              \
    }                                               \
  }
#else
#define RWK_DECLARE_TABLES(Type, table)             \
  namespace baseline { extern const Type table; }   \
  inline const Type& active_##table() { return baseline::table; }
#endif

}  // namespace rwk
