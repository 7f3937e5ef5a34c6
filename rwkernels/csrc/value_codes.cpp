// Bound by memory on one pass: four bytes of a value, one or two of its code.
#include "value_codes.hpp"

#include <atomic>
#include <cstdint>
#include <cstring>
#include <limits>

#include "pool.hpp"
#include "quantise.hpp"

namespace rwk::RWK_ISA {
namespace {

constexpr std::int64_t block = 1 << 16;

template <class Code>
bool encode_run(const float* values, std::int64_t count, Code* codes) {
  Mask outside = less(F{}, F{});  // none
  const auto vector = [&](F v, Code* to) {
    // NaN is not less than anything.
    outside = either(outside, either(not_less(v, splat(0x1p-149f)), less(v, splat(-1.0f))));
    store(to, v);
  };
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes) vector(load(values + i), codes + i);
  if (i < count) {
    float last[lanes] = {};
    Code out[lanes];
    std::memcpy(last, values + i, static_cast<std::size_t>(count - i) * sizeof(float));
    vector(load(last), out);
    std::memcpy(codes + i, out, static_cast<std::size_t>(count - i) * sizeof(Code));
  }
  return !any(outside);
}

template <class Code>
void decode_run(const Code* codes, std::int64_t count, float* values) {
  const auto vector = [](const Code* from) {
    const I code = widen(from);
    // The sign is put on every code but 0 by hand: this file is compiled without regard to signs of zeros.
    return from_bits(bits(to_float(code) / steps<Code>) | (-code & std::numeric_limits<std::int32_t>::min()));
  };
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes) store(values + i, vector(codes + i));
  if (i == count) return;
  Code last[lanes] = {};
  float out[lanes];
  std::memcpy(last, codes + i, static_cast<std::size_t>(count - i) * sizeof(Code));
  store(out, vector(last));
  std::memcpy(values + i, out, static_cast<std::size_t>(count - i) * sizeof(float));
}

template <class Body>
void in_blocks(std::int64_t count, int threads, const Body& body) {
  parallel_for((count + block - 1) / block, threads, [&](std::int64_t i) {
    const std::int64_t at = i * block;
    body(at, count - at < block ? count - at : block);
  });
}

template <class Code>
bool encode_as(const float* values, std::int64_t count, Code* codes, int threads) {
  std::atomic<bool> good{true};
  in_blocks(count, threads, [&](std::int64_t at, std::int64_t n) {
    if (!encode_run(values + at, n, codes + at)) good.store(false, std::memory_order_relaxed);
  });
  return good.load();
}

bool encode(const float* values, std::int64_t count, int bytes, void* codes, int threads) {
  return bytes == 1 ? encode_as(values, count, static_cast<std::uint8_t*>(codes), threads)
                    : encode_as(values, count, static_cast<std::uint16_t*>(codes), threads);
}

void decode(const void* codes, std::int64_t count, int bytes, float* values, int threads) {
  in_blocks(count, threads, [&](std::int64_t at, std::int64_t n) {
    if (bytes == 1)
      decode_run(static_cast<const std::uint8_t*>(codes) + at, n, values + at);
    else
      decode_run(static_cast<const std::uint16_t*>(codes) + at, n, values + at);
  });
}

}  // namespace

extern const CodeKernels code_kernels;
const CodeKernels code_kernels = {encode, decode};

}  // namespace rwk::RWK_ISA
