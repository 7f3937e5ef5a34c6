// Vectors of foreground values in [-1, 0] as codes: round(-v * (2^bits - 1)), exactly, ties to even.
#pragma once

#include <cstdint>
#include <cstring>

#include "simd.hpp"

namespace rwk::RWK_ISA {

using Doubles [[gnu::vector_size(8 * lanes), gnu::may_alias]] = double;

template <class Code>
constexpr float steps = sizeof(Code) == 1 ? 255.0f : 65535.0f;

// A product of 24 and 16 bits is exact in a double, so that only the addition of 1.5 * 2^52 rounds: to an integer.
template <class Code>
RWK_INLINE void store_codes(Code* to, F v) {
  using Codes [[gnu::vector_size(sizeof(Code) * lanes), gnu::may_alias]] = Code;
  constexpr double magic = 0x1.8p52;
  const Doubles exact = __builtin_convertvector(v, Doubles) * -static_cast<double>(steps<Code>);
  const Codes codes = __builtin_convertvector(__builtin_convertvector((exact + magic) - magic, I), Codes);
  std::memcpy(to, &codes, sizeof codes);
}
RWK_INLINE void store(std::uint8_t* to, F v) { store_codes(to, v); }
RWK_INLINE void store(std::uint16_t* to, F v) { store_codes(to, v); }

}  // namespace rwk::RWK_ISA
