// Vectors of foreground values in [-1, 0] as codes: round(-v * (2^bits - 1)), exactly, ties to even.
#pragma once

#include <cstdint>
#include <cstring>

#include "simd.hpp"

namespace rwk::RWK_ISA {

template <class Code>
constexpr float steps = sizeof(Code) == 1 ? 255.0f : 65535.0f;

// The exact product is rounded once, to an integer, by the addition of a number whose last bit counts ones.
template <class Code>
RWK_INLINE I rounded(F v) {
#if defined(__FMA__)
  constexpr float magic = 0x1.8p23f;
  return bits(fma(v, splat(-steps<Code>), splat(magic))) - bits(splat(magic));
#else
  using Doubles [[gnu::vector_size(8 * lanes), gnu::may_alias]] = double;
  constexpr double magic = 0x1.8p52;
  const Doubles exact = __builtin_convertvector(v, Doubles) * -static_cast<double>(steps<Code>);  // 24 and 16 bits
  return __builtin_convertvector((exact + magic) - magic, I);
#endif
}

template <class Code>
RWK_INLINE void store_codes(Code* to, F v) {
  using Codes [[gnu::vector_size(sizeof(Code) * lanes), gnu::may_alias]] = Code;
  const Codes codes = __builtin_convertvector(rounded<Code>(v), Codes);
  std::memcpy(to, &codes, sizeof codes);
}
RWK_INLINE void store(std::uint8_t* to, F v) { store_codes(to, v); }
RWK_INLINE void store(std::uint16_t* to, F v) { store_codes(to, v); }

}  // namespace rwk::RWK_ISA
