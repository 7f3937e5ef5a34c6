// One vector of 16-bit whole numbers, twice the lanes of a vector of floats, and bytes as many as a block has columns.
//
// What adds up saturates: a number that is too large stays too large.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "simd.hpp"

namespace rwk::RWK_ISA {

constexpr int short_lanes = 2 * lanes;
#if defined(__AVX512BW__)
constexpr int short_parts = 1;  // vectors side by side in a block of columns
#else
constexpr int short_parts = 2;
#endif
constexpr int block_width = short_parts * short_lanes;

using S [[gnu::vector_size(2 * short_lanes), gnu::may_alias]] = std::uint16_t;
using B [[gnu::vector_size(block_width), gnu::may_alias]] = std::uint8_t;

RWK_INLINE S load(const std::uint16_t* from) {
  S v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
RWK_INLINE void store(std::uint16_t* to, S v) { std::memcpy(to, &v, sizeof v); }
RWK_INLINE B load(const std::uint8_t* from) {
  B v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
RWK_INLINE void store(std::uint8_t* to, B v) { std::memcpy(to, &v, sizeof v); }
RWK_INLINE S splat(std::uint16_t x) { return x - S{}; }
RWK_INLINE B splat(std::uint8_t x) { return x - B{}; }
RWK_INLINE S short_iota() {
  S v;
  for (int i = 0; i < short_lanes; ++i) v[i] = static_cast<std::uint16_t>(i);
  return v;
}

#if defined(__AVX512BW__)
RWK_INLINE S min(S a, S b) { return (S)_mm512_min_epu16((__m512i)a, (__m512i)b); }
RWK_INLINE S max(S a, S b) { return (S)_mm512_max_epu16((__m512i)a, (__m512i)b); }
RWK_INLINE S add(S a, S b) { return (S)_mm512_adds_epu16((__m512i)a, (__m512i)b); }
RWK_INLINE S select_not_above(S a, S b, S yes, S no) {
  return (S)_mm512_mask_blend_epi16(_mm512_cmple_epu16_mask((__m512i)a, (__m512i)b), (__m512i)no, (__m512i)yes);
}
RWK_INLINE S splat_pair(std::uint32_t both) { return (S)_mm512_set1_epi32(static_cast<int>(both)); }
RWK_INLINE S widen_short(const std::uint8_t* from) {
  return (S)_mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
#elif defined(__AVX2__)
RWK_INLINE S min(S a, S b) { return (S)_mm256_min_epu16((__m256i)a, (__m256i)b); }
RWK_INLINE S max(S a, S b) { return (S)_mm256_max_epu16((__m256i)a, (__m256i)b); }
RWK_INLINE S add(S a, S b) { return (S)_mm256_adds_epu16((__m256i)a, (__m256i)b); }
RWK_INLINE S select_not_above(S a, S b, S yes, S no) {
  return (S)_mm256_blendv_epi8((__m256i)no, (__m256i)yes, _mm256_cmpeq_epi16((__m256i)min(a, b), (__m256i)a));
}
RWK_INLINE S splat_pair(std::uint32_t both) { return (S)_mm256_set1_epi32(static_cast<int>(both)); }
RWK_INLINE S widen_short(const std::uint8_t* from) {
  return (S)_mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
#else
#if defined(__SSE2__)
RWK_INLINE S min(S a, S b) { return a - (S)_mm_subs_epu16((__m128i)a, (__m128i)b); }
RWK_INLINE S max(S a, S b) { return b + (S)_mm_subs_epu16((__m128i)a, (__m128i)b); }
RWK_INLINE S add(S a, S b) { return (S)_mm_adds_epu16((__m128i)a, (__m128i)b); }
RWK_INLINE S splat_pair(std::uint32_t both) { return (S)_mm_set1_epi32(static_cast<int>(both)); }
RWK_INLINE S widen_short(const std::uint8_t* from) {
  return (S)_mm_unpacklo_epi8(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)), __m128i{});
}
#else
RWK_INLINE S min(S a, S b) { return a < b ? a : b; }
RWK_INLINE S max(S a, S b) { return a > b ? a : b; }
RWK_INLINE S add(S a, S b) {
  const S sum = a + b;
  return sum | (S)(sum < a);
}
RWK_INLINE S splat_pair(std::uint32_t both) { return splat(static_cast<std::uint16_t>(both)); }
RWK_INLINE S widen_short(const std::uint8_t* from) {
  S v;
  for (int i = 0; i < short_lanes; ++i) v[i] = from[i];
  return v;
}
#endif
RWK_INLINE S select_not_above(S a, S b, S yes, S no) {
  const S m = (S)(min(a, b) == a);
  return (m & yes) | (~m & no);
}
#endif

#if defined(__AVX2__)
RWK_INLINE B min(B a, B b) { return (B)_mm256_min_epu8((__m256i)a, (__m256i)b); }
RWK_INLINE B add(B a, B b) { return (B)_mm256_adds_epu8((__m256i)a, (__m256i)b); }
RWK_INLINE B equal(B a, B b) { return (B)_mm256_cmpeq_epi8((__m256i)a, (__m256i)b); }
#elif defined(__SSE2__)
RWK_INLINE B min(B a, B b) { return (B)_mm_min_epu8((__m128i)a, (__m128i)b); }
RWK_INLINE B add(B a, B b) { return (B)_mm_adds_epu8((__m128i)a, (__m128i)b); }
RWK_INLINE B equal(B a, B b) { return (B)_mm_cmpeq_epi8((__m128i)a, (__m128i)b); }
#else
RWK_INLINE B min(B a, B b) { return a < b ? a : b; }
RWK_INLINE B add(B a, B b) {
  const B sum = a + b;
  return sum | (B)(sum < a);
}
RWK_INLINE B equal(B a, B b) { return (B)(a == b); }
#endif

// yes where the number is at most `most`, no elsewhere.
RWK_INLINE S up_to(S a, std::uint16_t most, S yes, S no) { return select_not_above(a, splat(most), yes, no); }

RWK_INLINE std::uint16_t horizontal_max(S v) {
#if defined(__AVX512BW__)
  const __m256i half = _mm256_max_epu16(_mm512_castsi512_si256((__m512i)v), _mm512_extracti64x4_epi64((__m512i)v, 1));
#elif defined(__AVX2__)
  const __m256i half = (__m256i)v;
#endif
#if defined(__AVX2__)
  const __m128i eight = _mm_max_epu16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  const __m128i least = _mm_minpos_epu16(_mm_xor_si128(eight, _mm_set1_epi32(-1)));
  return static_cast<std::uint16_t>(~_mm_cvtsi128_si32(least));
#else
  std::uint16_t r = v[0];
  for (int i = 1; i < short_lanes; ++i) r = r < v[i] ? v[i] : r;
  return r;
#endif
}
RWK_INLINE std::uint16_t horizontal_min(S v) { return static_cast<std::uint16_t>(~horizontal_max(~v)); }

}  // namespace rwk::RWK_ISA
