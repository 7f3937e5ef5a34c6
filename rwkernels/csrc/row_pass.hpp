// Squared distances along the contiguous axis, run by run.
//
// A row's labels become 64-bit masks (where do neighbours differ, where is the class), so a long run costs
// one store a vector and a row of one label costs next to nothing.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "short_simd.hpp"
#include "simd.hpp"

namespace rwk::RWK_ISA {

constexpr float infinity = __builtin_inff();

// Bit i: a[i] != b[i], for i < count <= 64; the other bits are 0.
template <class L>
RWK_INLINE std::uint64_t differ_bits(const L* a, const L* b, std::int64_t count) {
  const std::uint64_t wanted = count < 64 ? (std::uint64_t{1} << count) - 1 : ~std::uint64_t{0};
#if defined(__AVX512BW__)
  if constexpr (sizeof(L) == 1) {
    const __m512i va = _mm512_maskz_loadu_epi8(wanted, a), vb = _mm512_maskz_loadu_epi8(wanted, b);
    return _mm512_mask_cmpneq_epu8_mask(wanted, va, vb);
  } else {
    std::uint64_t bits = 0;
    constexpr int step = 64 / sizeof(L);
    for (int i = 0; i < 64; i += step) {
      const std::uint64_t part = wanted >> i;
      std::uint64_t found;
      if constexpr (sizeof(L) == 2) {
        const auto m = static_cast<__mmask32>(part);
        const __m512i va = _mm512_maskz_loadu_epi16(m, a + i), vb = _mm512_maskz_loadu_epi16(m, b + i);
        found = _mm512_mask_cmpneq_epu16_mask(m, va, vb);
      } else {
        const auto m = static_cast<__mmask16>(part);
        const __m512i va = _mm512_maskz_loadu_epi32(m, a + i), vb = _mm512_maskz_loadu_epi32(m, b + i);
        found = _mm512_mask_cmpneq_epu32_mask(m, va, vb);
      }
      bits |= found << i;
    }
    return bits;
  }
#else
  std::uint64_t bits = 0;
#if defined(__SSE2__)
  if constexpr (sizeof(L) == 1) {
    L padded_a[64], padded_b[64];
    if (count < 64) {
      std::memcpy(padded_a, a, count);
      std::memcpy(padded_b, b, count);
      a = padded_a;
      b = padded_b;
    }
    for (int i = 0; i < 64; i += 16) {
      const __m128i equal = _mm_cmpeq_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(a + i)),
                                           _mm_loadu_si128(reinterpret_cast<const __m128i*>(b + i)));
      bits |= static_cast<std::uint64_t>(~_mm_movemask_epi8(equal) & 0xffff) << i;
    }
    return bits & wanted;
  }
#endif
  for (std::int64_t i = 0; i < count; ++i) bits |= static_cast<std::uint64_t>(a[i] != b[i]) << i;
  return bits & wanted;
#endif
}

// row[x] for x in [begin, end): squared distance to the nearer of begin - 1 and end, of those that bound.
// Whole vectors may run past `end`, never past n: what lies there is written later.
RWK_INLINE void fill_run(float* row, std::int64_t begin, std::int64_t end, std::int64_t n, bool left, bool right) {
  F up = left ? iota() + 1.0f : splat(infinity);
  F down = right ? splat(static_cast<float>(end - begin)) - iota() : splat(infinity);
  std::int64_t x = begin;
  for (; x < end && x + lanes <= n; x += lanes) {
    const F d = min(up, down);
    store(row + x, d * d);
    up += static_cast<float>(lanes);
    down -= static_cast<float>(lanes);
  }
  if (x < end) {
    const F d = min(up, down);
    float last[lanes];
    store(last, d * d);
    for (int i = 0; x < end; ++x, ++i) row[x] = last[i];
  }
}

// Calls body(begin, end) for every run of equal labels of a row.
template <class L, class Body>
RWK_INLINE void for_each_run(const L* labels, std::int64_t n, const Body& body) {
  std::int64_t begin = 0;
  for (std::int64_t x = 0; x < n - 1; x += 64) {
    const std::int64_t count = n - 1 - x;
    std::uint64_t bits = differ_bits(labels + x, labels + x + 1, count < 64 ? count : 64);
    for (; bits != 0; bits &= bits - 1) {
      const std::int64_t end = x + __builtin_ctzll(bits) + 1;
      body(begin, end);
      begin = end;
    }
  }
  body(begin, n);
}

// Squared distance to the nearest pixel of the row with another label; infinite in a row of one label.
template <class L>
void row_distance(const L* labels, std::int64_t n, bool black_border, float* row) {
  for_each_run(labels, n, [&](std::int64_t begin, std::int64_t end) {
    fill_run(row, begin, end, n, begin > 0 || black_border, end < n || black_border);
  });
}

// What stands for no other label, where distances are whole numbers of 16 bits.
constexpr std::uint16_t short_infinity = 0xffff;

// The distance itself to the nearest pixel of the row with another label, for n < short_infinity. Whole vectors run past
// `n`: row has room for one more. False, and nothing written: a row of one label.
template <class L>
bool row_steps(const L* labels, std::int64_t n, bool black_border, std::uint16_t* row) {
  bool other = black_border;
  for_each_run(labels, n, [&](std::int64_t begin, std::int64_t end) {
    const bool left = begin > 0 || black_border, right = end < n || black_border;
    if (!left && !right) return;
    other = true;
    const S step = splat(static_cast<std::uint16_t>(short_lanes)), back = right ? step : S{};
    S up = left ? short_iota() + 1 : splat(short_infinity);
    S down = right ? splat(static_cast<std::uint16_t>(end - begin)) - short_iota() : splat(short_infinity);
    for (std::int64_t x = begin; x < end; x += short_lanes) {
      store(row + x, min(up, down));
      up = add(up, step);
      down -= back;
    }
  });
  return other;
}

// Squared distance to the nearest pixel of the row with label `wanted`; infinite in a row without it.
template <class L>
void row_class_distance(const L* labels, std::int64_t n, L wanted, float* row) {
  L repeated[64];
  for (L& label : repeated) label = wanted;
  std::int64_t begin = 0;  // of the gap that is open; -1 inside a run of the class
  bool seen = false;
  std::uint64_t before = 0;  // bit 0: the pixel before this block belongs to the class
  std::int64_t run = 0;
  for (std::int64_t x = 0; x < n; x += 64) {
    const std::int64_t count = n - x < 64 ? n - x : 64;
    const std::uint64_t valid = count < 64 ? (std::uint64_t{1} << count) - 1 : ~std::uint64_t{0};
    const std::uint64_t inside = ~differ_bits(labels + x, repeated, count) & valid;
    std::uint64_t edges = (inside ^ (inside << 1 | before)) & valid;
    before = inside >> 63;
    for (; edges != 0; edges &= edges - 1) {
      const int bit = __builtin_ctzll(edges);
      if (inside >> bit & 1) {
        run = x + bit;
        if (run > begin) fill_run(row, begin, run, n, seen, true);
        begin = -1;
        seen = true;
      } else {
        begin = x + bit;
        for (std::int64_t i = run; i < begin; ++i) row[i] = 0;
      }
    }
  }
  if (begin < 0) {
    for (std::int64_t i = run; i < n; ++i) row[i] = 0;
  } else if (begin < n) {
    fill_run(row, begin, n, n, seen, false);
  }
}

}  // namespace rwk::RWK_ISA
