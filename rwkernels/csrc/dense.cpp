// A rectified map written out: K values for every pixel, two of which differ.
//
// This is bound by the writes. A block of pixels is read once and stays in the second cache while every class's
// channel is written from it; where the whole map is larger than any cache, stores go around them.
#include <cstdint>
#include <cstring>

#include "codes.hpp"
#include "convert.hpp"
#include "maps.hpp"
#include "pool.hpp"

namespace rwk::RWK_ISA {

namespace {

constexpr std::int64_t block = 8192;
constexpr std::int64_t streamed_from = std::int64_t{1} << 26;  // bytes

struct Block {  // with room for a vector that starts at the last pixel
  std::int32_t codes[block + lanes];
  float foreground[block + lanes], background[block + lanes];
  std::int64_t count;
};

void read_block(const DenseMap& map, std::int64_t at, Block& b) {
  read_codes(*map.labels, map.classes, at, static_cast<int>(b.count), b.codes);
  std::memcpy(b.foreground, map.foreground + at, static_cast<std::size_t>(b.count) * sizeof(float));
  for (std::int64_t i = 0; i < b.count; ++i) {
    const float background = map.background ? map.background[at + i] : map.background_value;
    b.background[i] = b.codes[i] == bad_label ? __builtin_nanf("") : b.codes[i] == ignored ? 0.0f : background;
  }
  for (std::int64_t i = b.count; i < b.count + lanes; ++i) {
    b.codes[i] = ignored;
    b.foreground[i] = b.background[i] = 0;
  }
}

RWK_INLINE F value(const Block& b, std::int64_t i, I k, F scale) {
  return scale * select(equal(load(b.codes + i), k), load(b.foreground + i), load(b.background + i));
}

// Pixels [from, to) of the block, in any number.
template <class T>
void write_pixels(const Block& b, std::int64_t from, std::int64_t to, I k, F scale, T* out) {
  std::int64_t i = from;
  for (; i + lanes <= to; i += lanes) put(out + i, value(b, i, k, scale));
  if (i == to) return;
  T last[lanes];
  put(last, value(b, i, k, scale));
  std::memcpy(out + i, last, static_cast<std::size_t>(to - i) * sizeof(T));
}

// The same around the caches. A line that is not written whole is left to plain stores alone: both kinds on one
// line wait for each other.
void stream_pixels(const Block& b, I k, F scale, float* out) {
  constexpr std::int64_t line = 64 / sizeof(float);
  const auto misaligned = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(out) / sizeof(float) % line);
  const std::int64_t head = misaligned == 0 ? 0 : line - misaligned;
  if (reinterpret_cast<std::uintptr_t>(out) % sizeof(float) != 0 || b.count < head + line)
    return write_pixels(b, 0, b.count, k, scale, out);
  const std::int64_t tail = head + (b.count - head) / line * line;
  write_pixels(b, 0, head, k, scale, out);
  for (std::int64_t i = head; i < tail; i += lanes) stream(out + i, value(b, i, k, scale));
  write_pixels(b, tail, b.count, k, scale, out);
}

template <class T>
void dense_of(const DenseMap& map, int threads) {
  const std::int64_t pixels = map.labels->pixels, num_classes = map.classes.num_classes;
  const std::int64_t blocks = (pixels + block - 1) / block, total = map.labels->batch * num_classes * pixels;
  const bool streamed = total >= streamed_from / static_cast<std::int64_t>(sizeof(T));
  parallel_for(map.labels->batch * blocks, threads, [&](std::int64_t piece) {
    const std::int64_t b = piece / blocks, from = piece % blocks * block;
    Block& here = *static_cast<Block*>(thread_scratch(sizeof(Block)));
    here.count = pixels - from < block ? pixels - from : block;
    read_block(map, b * pixels + from, here);
    for (std::int64_t k = 0; k < num_classes; ++k) {
      const I wanted = splat(static_cast<std::int32_t>(k));
      const F scale = splat(map.class_scale ? map.class_scale[k] : 1.0f);
      T* to = static_cast<T*>(map.out) + (b * num_classes + k) * pixels + from;
      if constexpr (sizeof(T) == sizeof(float)) {
        if (streamed) {
          stream_pixels(here, wanted, scale, to);
          continue;
        }
      }
      write_pixels(here, 0, here.count, wanted, scale, to);
    }
    if (streamed) stream_fence();
  });
}

}  // namespace

void dense(const DenseMap& map, int threads) {
  switch (map.type) {
    case Real::f32: return dense_of<float>(map, threads);
    case Real::f64: return dense_of<double>(map, threads);
    case Real::bf16: return dense_of<bf16>(map, threads);
    case Real::f16: return dense_of<f16>(map, threads);
  }
}

}  // namespace rwk::RWK_ISA
