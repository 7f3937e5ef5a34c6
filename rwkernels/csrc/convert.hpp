// Rows of numbers from one type to another. Everything is computed in float (double for double logits), so
// 16-bit types are only read and written.
#pragma once

#include <type_traits>

#include "simd.hpp"

namespace rwk::RWK_ISA {

struct bf16 { std::uint16_t bits; };
struct f16 { std::uint16_t bits; };

// The low half of every lane.
RWK_INLINE void store_low(std::uint16_t* to, I v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16((__m512i)v));
#elif defined(__AVX2__)
  const I low = v & 0xffff;
  const __m256i pairs = _mm256_permute4x64_epi64(_mm256_packus_epi32((__m256i)low, (__m256i)low), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(pairs));
#else
  for (int i = 0; i < lanes; ++i) to[i] = static_cast<std::uint16_t>(v[i]);
#endif
}

RWK_INLINE F read(const bf16* from) { return from_bits(widen(&from->bits) << 16); }

// To nearest even. A NaN whose payload sits in the low half only would round to infinity: keep its top, made quiet.
RWK_INLINE void put(bf16* to, F v) {
  const I b = bits(v);
  const I rounded = b + 0x7fff + ((b >> 16) & 1);
  const Mask nan = less(splat(std::int32_t{0x7f800000}), b & 0x7fffffff);
  store_low(&to->bits, select(nan, b | 0x400000, rounded) >> 16);
}

#if defined(__F16C__)
#if defined(__AVX512F__)
RWK_INLINE F read(const f16* from) {
  return (F)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
RWK_INLINE void put(f16* to, F v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
}
#else
RWK_INLINE F read(const f16* from) {
  return (F)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
RWK_INLINE void put(f16* to, F v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
}
#endif
#else
// A half is 1.m * 2^(e-15), or 0.m * 2^-14 = m * 2^-24 where e = 0. Moving exponent and mantissa 13 bits up and
// rebiasing the exponent by 127 - 15 = 112 gives the float; infinity and NaN (e = 31) need 112 more.
RWK_INLINE F read(const f16* from) {
  const I h = widen(&from->bits);
  const I magnitude = h & 0x7fff;
  I wide = (magnitude << 13) + (112 << 23);
  wide = select(less(splat(std::int32_t{0x7bff}), magnitude), wide + (112 << 23), wide);
  const F tiny = to_float(magnitude) * 0x1p-24f;
  wide = select(less(magnitude, splat(std::int32_t{0x400})), bits(tiny), wide);
  return from_bits(wide | ((h & 0x8000) << 16));
}

// To nearest even. Below 2^-14 the result is subnormal: adding 0.5, whose last place is 2^-24, rounds it there.
// From 65520 on the rounding carries into the exponent of infinity by itself; 65536 and more is set to it.
RWK_INLINE void put(f16* to, F v) {
  const I b = bits(v);
  const I magnitude = b & 0x7fffffff;
  I h = (magnitude - (112 << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  const I tiny = bits(from_bits(magnitude) + 0.5f) - bits(splat(0.5f));
  h = select(less(magnitude, splat(std::int32_t{0x38800000})), tiny, h);
  h = select(less(splat(std::int32_t{0x477fffff}), magnitude), splat(std::int32_t{0x7c00}), h);
  h = select(less(splat(std::int32_t{0x7f800000}), magnitude), splat(std::int32_t{0x7e00}), h);
  store_low(&to->bits, h | ((b >> 16) & 0x8000));
}
#endif

template <class A>
constexpr bool is_small = sizeof(A) == 2;

RWK_INLINE void put(float* to, F v) { store(to, v); }
RWK_INLINE void put(double* to, F v) {
  using Doubles [[gnu::vector_size(8 * lanes), gnu::may_alias]] = double;
  const Doubles wide = __builtin_convertvector(v, Doubles);
  std::memcpy(to, &wide, sizeof wide);
}

// to[0, n) = from[0, n)
template <class To, class From>
void convert_row(To* to, const From* from, std::int64_t n) {
  if constexpr (std::is_same_v<To, From>) {
    std::memcpy(to, from, n * sizeof(To));
  } else if constexpr (is_small<From> || is_small<To>) {
    const std::int64_t whole = n / lanes * lanes;
    const auto vector = [](To* out, const From* in) {
      if constexpr (is_small<From>)
        put(out, read(in));
      else
        put(out, load(in));
    };
    for (std::int64_t i = 0; i < whole; i += lanes) vector(to + i, from + i);
    if (whole < n) {
      From in[lanes] = {};
      To out[lanes];
      std::memcpy(in, from + whole, (n - whole) * sizeof(From));
      vector(out, in);
      std::memcpy(to + whole, out, (n - whole) * sizeof(To));
    }
  } else {
    for (std::int64_t i = 0; i < n; ++i) to[i] = static_cast<To>(from[i]);
  }
}

}  // namespace rwk::RWK_ISA
