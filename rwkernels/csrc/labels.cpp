#include "labels.hpp"

#include <type_traits>

#include "pool.hpp"

namespace rwk::RWK_ISA {
namespace {

// Calls body(address of pixel `at`) with the type of the labels.
template <class Body>
void with_type(LabelType type, const void* data, std::int64_t at, const Body& body) {
  switch (type) {
    case LabelType::u1: return body(static_cast<const std::uint8_t*>(data) + at);
    case LabelType::i1: return body(static_cast<const std::int8_t*>(data) + at);
    case LabelType::i2: return body(static_cast<const std::int16_t*>(data) + at);
    case LabelType::i4: return body(static_cast<const std::int32_t*>(data) + at);
    case LabelType::i8: return body(static_cast<const std::int64_t*>(data) + at);
  }
}

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

void encode_run_32(const void* labels, LabelType type, std::int64_t count, const Classes& classes,
                   std::int32_t* codes) {
  with_type(type, labels, 0, [&](const auto* from) { encode_run(from, count, classes, codes); });
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

}  // namespace

extern const LabelKernels label_kernels;
const LabelKernels label_kernels = {encode, encode_run_32, extents, truncate};

}  // namespace rwk::RWK_ISA
