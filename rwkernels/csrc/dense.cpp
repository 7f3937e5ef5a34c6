// A rectified map written out: K values for every pixel, two of which differ.
//
// This is bound by the writes. A block of pixels is read once and stays in the second cache while every class's
// channel is written from it; where the whole map is larger than any cache, stores go around them.
#include <cstdint>
#include <cstring>

#include "maps.hpp"
#include "pool.hpp"
#include "simd.hpp"

namespace rwk::RWK_ISA {

extern const LabelKernels label_kernels;

namespace {

constexpr std::int64_t block = 8192;
constexpr std::int64_t streamed_from = std::int64_t{1} << 26;  // bytes

using Bits16 [[gnu::vector_size(2 * lanes), gnu::may_alias]] = std::int16_t;
using Doubles [[gnu::vector_size(8 * lanes), gnu::may_alias]] = double;

struct Bf16 {
  std::int16_t bits;
};
struct Half {
  std::int16_t bits;
};

RWK_INLINE void store_bits(std::int16_t* to, I v) {
  const Bits16 narrow = __builtin_convertvector(v, Bits16);
  std::memcpy(to, &narrow, sizeof narrow);
}

RWK_INLINE void put(float* to, F v) { store(to, v); }
RWK_INLINE void put(double* to, F v) {
  const Doubles wide = __builtin_convertvector(v, Doubles);
  std::memcpy(to, &wide, sizeof wide);
}
RWK_INLINE void put(Bf16* to, F v) {  // to nearest even
  I u = bits(v);
  u = select(less(splat(0x7f800000), u & 0x7fffffff), splat(0x7fc00000), u);
  store_bits(&to->bits, (u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
RWK_INLINE void put(Half* to, F v) {  // to nearest even
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
  const I u = bits(v) & 0x7fffffff, sign = (bits(v) >> 16) & 0x8000;
  const I beyond = select(less(splat(0x7f800000), u), splat(0x7e00), splat(0x7c00));
  const I small = bits(from_bits(u) + 0.5f) - bits(splat(0.5f));  // the addition rounds at 2^-24
  const I normal = (u + (0xfff - (112 << 23)) + ((u >> 13) & 1)) >> 13;
  const I half = select(less(u, splat(0x38800000)), small, select(less(u, splat(0x47800000)), normal, beyond));
  store_bits(&to->bits, half | sign);
#endif
}

#if defined(__AVX512F__)
RWK_INLINE void stream(float* to, F v) { _mm512_stream_ps(to, (__m512)v); }
RWK_INLINE void end_streams() { _mm_sfence(); }
#elif defined(__AVX2__)
RWK_INLINE void stream(float* to, F v) { _mm256_stream_ps(to, (__m256)v); }
RWK_INLINE void end_streams() { _mm_sfence(); }
#else
RWK_INLINE void stream(float* to, F v) { store(to, v); }
RWK_INLINE void end_streams() {}
#endif

struct Block {  // with room for a vector that starts at the last pixel
  std::int32_t codes[block + lanes];
  float foreground[block + lanes], background[block + lanes];
  std::int64_t count;
};

void read_block(const DenseMap& map, std::int64_t at, Block& b) {
  const Labels& labels = *map.labels;
  const auto* data = static_cast<const char*>(labels.data) + at * size_of(labels.type);
  label_kernels.encode_run(data, labels.type, b.count, map.classes, b.codes);
  std::memcpy(b.foreground, map.foreground + at, static_cast<std::size_t>(b.count) * sizeof(float));
  for (std::int64_t i = 0; i < b.count; ++i) {
    const float background = map.background ? map.background[at + i] : map.background_value;
    const bool bad = b.codes[i] > map.classes.num_classes, ignored = b.codes[i] == map.classes.num_classes;
    b.background[i] = bad ? __builtin_nanf("") : ignored ? 0.0f : background;
  }
  for (std::int64_t i = b.count; i < b.count + lanes; ++i) {
    b.codes[i] = -1;
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
    if (streamed) end_streams();
  });
}

}  // namespace

void dense(const DenseMap& map, int threads) {
  switch (map.type) {
    case Float::f4: return dense_of<float>(map, threads);
    case Float::f8: return dense_of<double>(map, threads);
    case Float::bf: return dense_of<Bf16>(map, threads);
    case Float::f2: return dense_of<Half>(map, threads);
  }
}

}  // namespace rwk::RWK_ISA
