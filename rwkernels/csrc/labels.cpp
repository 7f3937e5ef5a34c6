#include "labels.hpp"

#include <cstring>
#include <type_traits>

#include "codes.hpp"
#include "pool.hpp"
#include "simd.hpp"

namespace rwk::RWK_ISA {
namespace {

template <class Body>
void with_codes(int bytes, void* data, std::int64_t at, const Body& body) {
  switch (bytes) {
    case 1: return body(static_cast<std::uint8_t*>(data) + at);
    case 2: return body(static_cast<std::uint16_t*>(data) + at);
    default: return body(static_cast<std::uint32_t*>(data) + at);
  }
}

template <class S>
constexpr bool is_signed = static_cast<S>(-1) < static_cast<S>(1);
template <class S>
constexpr std::int64_t largest =
    is_signed<S> ? (std::int64_t{1} << (8 * sizeof(S) - 2)) - 1 + (std::int64_t{1} << (8 * sizeof(S) - 2))
                 : (std::int64_t{1} << (8 * sizeof(S) % 64)) - 1;

// Classes in the type of the labels, so that the loops below compare without widening.
template <class S>
struct Test {
  S last, ignore;
  bool has_ignore, any;

  explicit Test(const Classes& c)
      : last(static_cast<S>(c.num_classes - 1 < largest<S> ? c.num_classes - 1 : largest<S>)),
        ignore(static_cast<S>(c.ignore)),
        has_ignore(c.has_ignore && static_cast<std::int64_t>(static_cast<S>(c.ignore)) == c.ignore),
        any(c.num_classes > 0) {}
  bool ignored(S label) const { return has_ignore & (label == ignore); }
  bool of_class(S label) const { return any & (label >= 0) & (label <= last); }
};

template <class S, class D>
void encode_run(const S* from, std::int64_t count, const Classes& classes, D* to) {
  const Test<S> test(classes);
  const D ignored = static_cast<D>(classes.num_classes), bad = static_cast<D>(classes.num_classes + 1);
  for (std::int64_t i = 0; i < count; ++i) {
    const D code = test.of_class(from[i]) ? static_cast<D>(from[i]) : bad;
    to[i] = test.ignored(from[i]) ? ignored : code;
  }
}

template <class S>
Tally tally_run(const S* from, std::int64_t count, const Classes& classes) {
  const Test<S> test(classes);
  Tally tally{0, -1};
  for (std::int64_t begin = 0; begin < count; begin += 128) {
    const std::int64_t n = count - begin < 128 ? count - begin : 128;
    S bad = 0, ignored = 0;  // counters of the labels' own width; 128 pixels fit the narrowest
    for (std::int64_t i = 0; i < n; ++i) {
      const S label = from[begin + i];
      const bool skip = test.ignored(label);
      ignored = static_cast<S>(ignored - static_cast<S>(skip));
      bad = static_cast<S>(bad | static_cast<S>(!test.of_class(label) & !skip));
    }
    const std::int64_t ignored_here = -static_cast<std::int64_t>(ignored);
    tally.ignored += is_signed<S> ? ignored_here : ignored_here & largest<S>;
    if (bad == 0 || tally.first_bad >= 0) continue;
    for (std::int64_t i = 0; i < n && tally.first_bad < 0; ++i)
      if (!test.of_class(from[begin + i]) && !test.ignored(from[begin + i])) tally.first_bad = begin + i;
  }
  return tally;
}

struct Blocks {
  std::int64_t per_image, pixels;
  explicit Blocks(const Labels& labels)
      : per_image((labels.pixels + tally_block - 1) / tally_block), pixels(labels.pixels) {}
  std::int64_t begin(std::int64_t i) const { return i / per_image * pixels + i % per_image * tally_block; }
  std::int64_t count(std::int64_t i) const {
    const std::int64_t left = pixels - i % per_image * tally_block;
    return left < tally_block ? left : tally_block;
  }
};

void encode(const Labels& labels, const Classes& classes, void* codes, int bytes, Tally* tallies, int threads) {
  const Blocks blocks(labels);
  parallel_for(labels.batch * blocks.per_image, threads, [&](std::int64_t i) {
    const std::int64_t at = blocks.begin(i), count = blocks.count(i);
    with_type(labels.type, labels.data, at, [&](const auto* from) {
      Tally tally{0, -1};
      constexpr std::int64_t chunk = 4096;  // tallied and encoded while it is in the first cache
      for (std::int64_t x = 0; x < count; x += chunk) {
        const std::int64_t n = count - x < chunk ? count - x : chunk;
        const Tally here = tally_run(from + x, n, classes);
        tally.ignored += here.ignored;
        if (tally.first_bad < 0 && here.first_bad >= 0) tally.first_bad = at + x + here.first_bad;
        if (codes) with_codes(bytes, codes, at + x, [&](auto* to) { encode_run(from + x, n, classes, to); });
      }
      tallies[i] = tally;
    });
  });
}

void extents(const Labels& labels, Extent* extents, int threads) {
  const Blocks blocks(labels);
  parallel_for(labels.batch * blocks.per_image, threads, [&](std::int64_t i) {
    with_type(labels.type, labels.data, blocks.begin(i), [&](const auto* from) {
      auto low = from[0], high = from[0];
      for (std::int64_t x = 0; x < blocks.count(i); ++x) {
        low = from[x] < low ? from[x] : low;
        high = from[x] > high ? from[x] : high;
      }
      extents[i] = {static_cast<std::int64_t>(low), static_cast<std::int64_t>(high)};
    });
  });
}

void truncate(const Labels& labels, void* codes, int bytes, int threads) {
  const Blocks blocks(labels);
  parallel_for(labels.batch * blocks.per_image, threads, [&](std::int64_t i) {
    const std::int64_t at = blocks.begin(i), count = blocks.count(i);
    with_type(labels.type, labels.data, at, [&](const auto* from) {
      with_codes(bytes, codes, at, [&](auto* to) {
        using D = std::remove_reference_t<decltype(*to)>;
        for (std::int64_t x = 0; x < count; ++x) to[x] = static_cast<D>(from[x]);
      });
    });
  });
}

// Labels as codes of a byte each, those of no class left as anything. Whether there are none of those.
template <class S>
bool narrow_run(const S* from, std::int64_t count, const Classes& classes, std::uint8_t* to) {
  const Test<S> test(classes);
  const auto ignored = static_cast<std::uint8_t>(classes.num_classes);
  S bad = 0;
  if (test.has_ignore) {
    for (std::int64_t i = 0; i < count; ++i) {
      const bool skip = from[i] == test.ignore;
      bad = static_cast<S>(bad | static_cast<S>(!test.of_class(from[i]) & !skip));
      to[i] = skip ? ignored : static_cast<std::uint8_t>(from[i]);
    }
  } else {
    for (std::int64_t i = 0; i < count; ++i) {
      bad = static_cast<S>(bad | static_cast<S>(!test.of_class(from[i])));
      to[i] = static_cast<std::uint8_t>(from[i]);
    }
  }
  return bad == 0;
}

constexpr std::int64_t bytes_at_once = 4096;  // they stay in the first cache from one plane of codes to the next

// Calls body(first byte, first code, number of both, shift) for what lies side by side in packed bytes and codes.
template <class Body>
void for_each_plane(std::int64_t count, int bits, const Body& body) {
  const std::int64_t size = (count * bits + 7) / 8;
  for (std::int64_t byte = 0; byte < size; byte += bytes_at_once)
    for (int shift = 0; shift < 8; shift += bits) {
      const std::int64_t at = shift / bits * size + byte;
      std::int64_t n = size - byte < bytes_at_once ? size - byte : bytes_at_once;
      n = count - at < n ? count - at : n;
      if (n > 0) body(byte, at, n, shift);
    }
}

// to[i] = combine(to[i], from[i]), eight bytes at a time: `combine` must let no bit cross from one to the next.
template <class Combine>
RWK_INLINE void for_each_word(const std::uint8_t* from, std::uint8_t* to, std::int64_t count, const Combine& combine) {
  std::int64_t i = 0;
  const auto words = [&](std::size_t bytes) {
    std::uint64_t a = 0, b = 0;
    std::memcpy(&a, to + i, bytes);
    std::memcpy(&b, from + i, bytes);
    a = combine(a, b);
    std::memcpy(to + i, &a, bytes);
  };
  for (; i + 8 <= count; i += 8) words(8);
  if (i < count) words(static_cast<std::size_t>(count - i));
}

bool pack(const Labels& labels, const Classes& classes, int bits, std::uint8_t* packed) {
  std::uint8_t codes[bytes_at_once];
  bool good = true;
  for_each_plane(labels.batch * labels.pixels, bits, [&](std::int64_t byte, std::int64_t at, std::int64_t n, int shift) {
    std::uint8_t* to = shift == 0 ? packed + byte : codes;
    with_type(labels.type, labels.data, at, [&](const auto* from) { good &= narrow_run(from, n, classes, to); });
    if (shift > 0)
      for_each_word(codes, packed + byte, n, [shift](std::uint64_t a, std::uint64_t b) { return a | b << shift; });
  });
  return good;
}

void unpack(const std::uint8_t* packed, std::int64_t count, int bits, std::uint8_t* codes) {
  const std::uint64_t lowest = ((1u << bits) - 1) * 0x0101010101010101u;
  for_each_plane(count, bits, [&](std::int64_t byte, std::int64_t at, std::int64_t n, int shift) {
    for_each_word(packed + byte, codes + at, n,
                  [shift, lowest](std::uint64_t, std::uint64_t b) { return b >> shift & lowest; });
  });
}

}  // namespace

extern const LabelKernels label_kernels;
const LabelKernels label_kernels = {encode, extents, truncate, pack, unpack};

}  // namespace rwk::RWK_ISA
