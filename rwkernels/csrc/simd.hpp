// One vector of floats or 32-bit integers, as wide as the instruction set of this build has it.
//
// F and I are compiler vector types, so + - * / & | << >> work on them as they are. Only what the operators
// do not give (minimum, comparison to a mask, selection, conversion) has a name here. lookup(table, index) picks a lane
// of the table for every lane of the index, which must be one.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace rwk::RWK_ISA {

#if defined(__AVX512F__)
constexpr int lanes = 16;
#elif defined(__AVX2__)
constexpr int lanes = 8;
#else
constexpr int lanes = 4;
#endif

using F [[gnu::vector_size(4 * lanes), gnu::may_alias]] = float;
using I [[gnu::vector_size(4 * lanes), gnu::may_alias]] = std::int32_t;

#define RWK_INLINE [[gnu::always_inline]] inline

RWK_INLINE F load(const float* from) {
  F v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
RWK_INLINE I load(const std::int32_t* from) {
  I v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
RWK_INLINE void store(float* to, F v) { std::memcpy(to, &v, sizeof v); }
RWK_INLINE void store(std::int32_t* to, I v) { std::memcpy(to, &v, sizeof v); }
// Past the caches, for what is too large to be found there again. `to` is aligned to the vector; a thread that
// has streamed ends with stream_fence() before anyone else reads.
RWK_INLINE void stream(float* to, F v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(to, (__m512)v);
#elif defined(__AVX2__)
  _mm256_stream_ps(to, (__m256)v);
#else
  store(to, v);
#endif
}
RWK_INLINE void stream_fence() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}
RWK_INLINE F splat(float x) { return x - F{}; }
RWK_INLINE I splat(std::int32_t x) { return x - I{}; }

RWK_INLINE I bits(F v) {
  I r;
  std::memcpy(&r, &v, sizeof r);
  return r;
}
RWK_INLINE F from_bits(I v) {
  F r;
  std::memcpy(&r, &v, sizeof r);
  return r;
}
RWK_INLINE F iota() {
  F v;
  for (int i = 0; i < lanes; ++i) v[i] = static_cast<float>(i);
  return v;
}
RWK_INLINE F to_float(I v) { return __builtin_convertvector(v, F); }

#if defined(__AVX512F__)

using Mask = __mmask16;
RWK_INLINE F min(F a, F b) { return (F)_mm512_min_ps((__m512)a, (__m512)b); }  // b where either is NaN
RWK_INLINE F max(F a, F b) { return (F)_mm512_max_ps((__m512)a, (__m512)b); }  // b where either is NaN
RWK_INLINE I min(I a, I b) { return (I)_mm512_min_epi32((__m512i)a, (__m512i)b); }
RWK_INLINE I max(I a, I b) { return (I)_mm512_max_epi32((__m512i)a, (__m512i)b); }
RWK_INLINE F fma(F a, F b, F c) { return (F)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
RWK_INLINE F sqrt(F a) { return (F)_mm512_sqrt_ps((__m512)a); }
RWK_INLINE I to_int(F a) { return (I)_mm512_cvtps_epi32((__m512)a); }  // to nearest even
RWK_INLINE Mask less(F a, F b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ); }
RWK_INLINE Mask not_less(F a, F b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_NLT_UQ); }
RWK_INLINE Mask equal(I a, I b) { return _mm512_cmpeq_epi32_mask((__m512i)a, (__m512i)b); }
RWK_INLINE Mask less(I a, I b) { return _mm512_cmplt_epi32_mask((__m512i)a, (__m512i)b); }
RWK_INLINE F select(Mask m, F yes, F no) { return (F)_mm512_mask_blend_ps(m, (__m512)no, (__m512)yes); }
RWK_INLINE I select(Mask m, I yes, I no) { return (I)_mm512_mask_blend_epi32(m, (__m512i)no, (__m512i)yes); }
RWK_INLINE Mask both(Mask a, Mask b) { return static_cast<Mask>(a & b); }
RWK_INLINE Mask either(Mask a, Mask b) { return static_cast<Mask>(a | b); }
RWK_INLINE Mask negate(Mask a) { return static_cast<Mask>(~a); }
RWK_INLINE bool any(Mask m) { return m != 0; }
RWK_INLINE bool all(Mask m) { return m == 0xffff; }
RWK_INLINE int first_lane(Mask m) { return __builtin_ctz(m); }  // of a mask that has one
RWK_INLINE F lookup(F table, I index) { return (F)_mm512_permutexvar_ps((__m512i)index, (__m512)table); }
RWK_INLINE float horizontal_max(F v) { return _mm512_reduce_max_ps((__m512)v); }
RWK_INLINE std::int32_t horizontal_max(I v) { return _mm512_reduce_max_epi32((__m512i)v); }
RWK_INLINE std::int32_t horizontal_min(I v) { return _mm512_reduce_min_epi32((__m512i)v); }
RWK_INLINE I widen(const std::uint8_t* from) {
  return (I)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
RWK_INLINE I widen(const std::uint16_t* from) {
  return (I)_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
RWK_INLINE Mask same(const std::uint8_t* a, const std::uint8_t* b) {
  return _mm_cmpeq_epu8_mask(_mm_loadu_si128(reinterpret_cast<const __m128i*>(a)),
                             _mm_loadu_si128(reinterpret_cast<const __m128i*>(b)));
}
RWK_INLINE Mask same(const std::uint16_t* a, const std::uint16_t* b) {
  return _mm256_cmpeq_epu16_mask(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(a)),
                                 _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b)));
}

#else

using Mask = I;  // -1 where true, 0 elsewhere
#if defined(__AVX2__)
RWK_INLINE F min(F a, F b) { return (F)_mm256_min_ps((__m256)a, (__m256)b); }  // b where either is NaN
RWK_INLINE F max(F a, F b) { return (F)_mm256_max_ps((__m256)a, (__m256)b); }  // b where either is NaN
RWK_INLINE I min(I a, I b) { return (I)_mm256_min_epi32((__m256i)a, (__m256i)b); }
RWK_INLINE I max(I a, I b) { return (I)_mm256_max_epi32((__m256i)a, (__m256i)b); }
RWK_INLINE F fma(F a, F b, F c) { return (F)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
RWK_INLINE F sqrt(F a) { return (F)_mm256_sqrt_ps((__m256)a); }
RWK_INLINE I to_int(F a) { return (I)_mm256_cvtps_epi32((__m256)a); }  // to nearest even
RWK_INLINE bool any(Mask m) { return _mm256_movemask_ps((__m256)m) != 0; }
RWK_INLINE bool all(Mask m) { return _mm256_movemask_ps((__m256)m) == 0xff; }
RWK_INLINE F lookup(F table, I index) { return (F)_mm256_permutevar8x32_ps((__m256)table, (__m256i)index); }
RWK_INLINE int first_lane(Mask m) { return __builtin_ctz(_mm256_movemask_ps((__m256)m)); }  // of a mask that has one
RWK_INLINE F select(Mask m, F yes, F no) { return (F)_mm256_blendv_ps((__m256)no, (__m256)yes, (__m256)m); }
RWK_INLINE I widen(const std::uint8_t* from) {
  return (I)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
}
RWK_INLINE I widen(const std::uint16_t* from) {
  return (I)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
RWK_INLINE Mask same(const std::uint8_t* a, const std::uint8_t* b) {
  return (I)_mm256_cvtepi8_epi32(_mm_cmpeq_epi8(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(a)),
                                                _mm_loadl_epi64(reinterpret_cast<const __m128i*>(b))));
}
RWK_INLINE Mask same(const std::uint16_t* a, const std::uint16_t* b) {
  return (I)_mm256_cvtepi16_epi32(_mm_cmpeq_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(a)),
                                                  _mm_loadu_si128(reinterpret_cast<const __m128i*>(b))));
}
#else
RWK_INLINE F min(F a, F b) { return a < b ? a : b; }
RWK_INLINE F max(F a, F b) { return a > b ? a : b; }
RWK_INLINE I min(I a, I b) { return a < b ? a : b; }
RWK_INLINE I max(I a, I b) { return a > b ? a : b; }
RWK_INLINE F fma(F a, F b, F c) { return a * b + c; }
RWK_INLINE F sqrt(F a) {
  for (int i = 0; i < lanes; ++i) a[i] = __builtin_sqrtf(a[i]);
  return a;
}
RWK_INLINE I to_int(F a) {  // to nearest even, for |a| < 2^22
  const F magic = splat(12582912.0f);
  return bits(a + magic) - bits(magic);
}
RWK_INLINE bool any(Mask m) { return (m[0] | m[1] | m[2] | m[3]) != 0; }
RWK_INLINE bool all(Mask m) { return (m[0] & m[1] & m[2] & m[3]) != 0; }
RWK_INLINE F lookup(F table, I index) {
  F found;
  for (int i = 0; i < lanes; ++i) found[i] = table[index[i] & (lanes - 1)];
  return found;
}
RWK_INLINE int first_lane(Mask m) { return m[0] ? 0 : m[1] ? 1 : m[2] ? 2 : 3; }  // of a mask that has one
RWK_INLINE F select(Mask m, F yes, F no) { return m ? yes : no; }
template <class Small>
RWK_INLINE I widen_each(const Small* from) {
  Small each[lanes];
  std::memcpy(each, from, sizeof each);
  I v;
  for (int i = 0; i < lanes; ++i) v[i] = each[i];
  return v;
}
RWK_INLINE I widen(const std::uint8_t* from) { return widen_each(from); }
RWK_INLINE I widen(const std::uint16_t* from) { return widen_each(from); }
RWK_INLINE Mask same(const std::uint8_t* a, const std::uint8_t* b) { return widen(a) == widen(b); }
RWK_INLINE Mask same(const std::uint16_t* a, const std::uint16_t* b) { return widen(a) == widen(b); }
#endif
RWK_INLINE Mask less(F a, F b) { return a < b; }
RWK_INLINE Mask not_less(F a, F b) { return ~(a < b); }
RWK_INLINE Mask less(I a, I b) { return a < b; }
RWK_INLINE Mask equal(I a, I b) { return a == b; }
RWK_INLINE I select(Mask m, I yes, I no) { return (m & yes) | (~m & no); }
RWK_INLINE Mask both(Mask a, Mask b) { return a & b; }
RWK_INLINE Mask either(Mask a, Mask b) { return a | b; }
RWK_INLINE Mask negate(Mask a) { return ~a; }
RWK_INLINE float horizontal_max(F v) {
  float r = v[0];
  for (int i = 1; i < lanes; ++i) r = r < v[i] ? v[i] : r;
  return r;
}
RWK_INLINE std::int32_t horizontal_max(I v) {
  std::int32_t r = v[0];
  for (int i = 1; i < lanes; ++i) r = r < v[i] ? v[i] : r;
  return r;
}
RWK_INLINE std::int32_t horizontal_min(I v) {
  std::int32_t r = v[0];
  for (int i = 1; i < lanes; ++i) r = v[i] < r ? v[i] : r;
  return r;
}
#endif

RWK_INLINE I widen(const std::uint32_t* from) {
  I v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
RWK_INLINE Mask same(const std::uint32_t* a, const std::uint32_t* b) { return equal(widen(a), widen(b)); }

// e^x for x <= 88, to about one unit in the last place: 0 below -87.3 (subnormal results are not worth
// their price), NaN for NaN. With n the integer nearest to x / ln(2), e^x = 2^n e^r and |r| <= ln(2)/2;
// e^r = 1 + r + r^2 q(r), q the polynomial of degree 4 of least relative error there, 3.6e-9. ln(2) is taken
// off in two parts, the first short enough for n times it to be exact.
RWK_INLINE F exp(F x) {
#if defined(__AVX512F__)
  const F n = (F)_mm512_roundscale_ps((__m512)(x * 1.44269504f), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const I whole = to_int(max(splat(-126.0f), x * 1.44269504f));
  const F n = to_float(whole);
#endif
  F r = fma(n, splat(-0.693359375f), x);
  r = fma(n, splat(2.12194440e-4f), r);
  F q = splat(1.3814539416e-3f);
  q = fma(q, r, splat(8.3687454462e-3f));
  q = fma(q, r, splat(4.1668388993e-2f));
  q = fma(q, r, splat(1.6666521132e-1f));
  q = fma(q, r, splat(4.9999994040e-1f));
  const F p = fma(q, r * r, r) + 1.0f;
#if defined(__AVX512F__)
  const Mask worth = _mm512_cmp_ps_mask((__m512)x, (__m512)splat(-87.3f), _CMP_NLT_UQ);
  return (F)_mm512_maskz_scalef_ps(worth, (__m512)p, (__m512)n);
#else
  return select(less(x, splat(-87.3f)), F{}, p * from_bits((whole + 127) << 23));
#endif
}

}  // namespace rwk::RWK_ISA
