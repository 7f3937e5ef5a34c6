#include "maps.hpp"

#include <atomic>
#include <type_traits>

#include "transform.hpp"

namespace rwk::RWK_ISA {
namespace {

constexpr float not_a_number = __builtin_nanf("");

// Calls body(label, mask of its lanes) for every label of one vector of pixels. Mostly there is one.
template <class L, class Body>
RWK_INLINE void for_each_label(const L* labels, const Body& body) {
  const I all_labels = widen(labels);
  Mask left = equal(all_labels, all_labels);
  do {
    const std::int64_t label = labels[first_lane(left)];
    const Mask here = equal(all_labels, splat(static_cast<std::int32_t>(label)));
    body(label, here);
    left = both(left, negate(here));
  } while (any(left));
}

// The largest distance per label. Maxima only grow and do so rarely: threads share one table, and what ends up in
// it does not depend on their order. Neighbouring vectors mostly hold one label, the same: its maximum waits in a
// register.
struct KeepMaxima {
  float* maxima;
  I label = splat(-1);
  F largest{};

  void raise(std::int64_t of, F d) const {
    float known, wanted = horizontal_max(d);
    __atomic_load(maxima + of, &known, __ATOMIC_RELAXED);
    while (known < wanted &&
           !__atomic_compare_exchange(maxima + of, &known, &wanted, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
  }
  void done() const {
    if (label[0] >= 0) raise(label[0], largest);
  }
  template <class L>
  RWK_INLINE F operator()(F d, const L* labels, std::int64_t, int) {
    const I all_labels = widen(labels);
    if (all(equal(all_labels, label))) {
      largest = max(d, largest);
      return d;
    }
    if (all(equal(all_labels, splat(static_cast<std::int32_t>(labels[0]))))) {
      done();
      label = splat(static_cast<std::int32_t>(labels[0]));
      largest = d;
      return d;
    }
    for_each_label(labels, [&](std::int64_t of, Mask here) {
      float known;
      __atomic_load(maxima + of, &known, __ATOMIC_RELAXED);
      if (any(both(here, less(splat(known), d)))) raise(of, select(here, d, F{}));
    });
    return d;
  }
};

// 1 / x, so rounded that sqrt(x * reciprocal_above(x)) is exactly 1: the product lies in [1, 1 + 2^-23], and the
// root of either end rounds to 1. Smaller numbers give at most 1.
float reciprocal_above(float x) {
  const double exact = 1.0 / static_cast<double>(x);
  const float near = static_cast<float>(exact);
  return static_cast<double>(near) < exact ? __builtin_nextafterf(near, infinity) : near;
}

// factor[label]: what a squared distance is multiplied with to give the square of Eq. 4's -z.
void factors_of_image(const Codes& codes, const RectifiedMap& map, const Grid& grid, std::int64_t b, float* factors) {
  const double spacing = grid.spacing[last_axis(grid)];
  for (std::int64_t code = 0; code < codes.size; ++code) {
    const float found = map.maxima[b * codes.size + code];
    if (code == codes.ignored) {
      factors[code] = 0;
    } else if (code >= map.num_classes) {
      factors[code] = not_a_number;
    } else if (map.class_max) {
      const double ratio = spacing / static_cast<double>(map.class_max[b * map.num_classes + code]);
      factors[code] = static_cast<float>(ratio * ratio);
    } else {
      factors[code] = reciprocal_above(found);
    }
  }
}

// Eq. 4 at the true class, from the squared distance times the factor of its label.
RWK_INLINE F rectify(F d, F factors) {
  const F size = min(splat(1.0f), sqrt(d * factors));  // this order lets NaN through
  return select(less(F{}, size), F{} - size, size);    // ignored pixels get 0, not -0
}

// Labels that fit into one vector: their factors do too.
struct RectifyFew : Keep {
  F factors;

  RectifyFew(const float* factors_, std::int64_t size) {
    float padded[lanes] = {};
    for (std::int64_t i = 0; i < size; ++i) padded[i] = factors_[i];
    factors = load(padded);
  }
  template <class L>
  RWK_INLINE F operator()(F d, const L* labels, std::int64_t, int) const {
    return rectify(d, lookup(factors, widen(labels)));
  }
};

struct RectifyMany : Keep {
  const float* factors;
  I label = splat(-1);  // of the vector before, and its factor
  F factor{};

  explicit RectifyMany(const float* factors_) : factors(factors_) {}
  template <class L>
  RWK_INLINE F operator()(F d, const L* labels, std::int64_t, int) {
    const I all_labels = widen(labels);
    F factors_here = factor;
    if (!all(equal(all_labels, label))) {
      for_each_label(labels, [&](std::int64_t of, Mask here) {
        label = splat(static_cast<std::int32_t>(of));
        factor = splat(factors[of]);
        factors_here = select(here, factor, factors_here);
      });
    }
    return rectify(d, factors_here);
  }
};

template <class L, class To>
void rectify_to(To* out, const L* labels, const Codes& codes, const RectifiedMap& map, const Grid& grid, std::int64_t b,
                std::int64_t from, std::int64_t to) {
  const float* d = map.field + b * grid.pixels();
  const L* here = labels + b * grid.pixels();
  out += b * grid.pixels();
  if (d[from] == infinity) {  // a single label
    const bool of_class = here[from] < map.num_classes;
    To value[lanes];
    store(value, splat(here[from] == codes.ignored ? 0.0f : of_class ? -1.0f : not_a_number));
    for (std::int64_t i = from; i < to; ++i) out[i] = value[0];
    return;
  }
  auto* factors = static_cast<float*>(thread_scratch(static_cast<std::size_t>(codes.size) * sizeof(float)));
  factors_of_image(codes, map, grid, b, factors);
  if (codes.size <= lanes) {
    finish_all(RectifyFew(factors, codes.size), d + from, here + from, out + from, from, to - from);
  } else {
    finish_all(RectifyMany(factors), d + from, here + from, out + from, from, to - from);
  }
}

// Eq. 4 for pixels [from, to) of image b, once all of its maxima are known.
template <class L>
void rectify_run(const L* labels, const Codes& codes, const RectifiedMap& map, const Grid& grid, std::int64_t b,
                 std::int64_t from, std::int64_t to) {
  switch (map.code_bytes) {
    case 1: return rectify_to(static_cast<std::uint8_t*>(map.codes), labels, codes, map, grid, b, from, to);
    case 2: return rectify_to(static_cast<std::uint16_t*>(map.codes), labels, codes, map, grid, b, from, to);
    default: return rectify_to(map.field, labels, codes, map, grid, b, from, to);
  }
}

void rectified_images(const Codes& codes, const RectifiedMap& map, const Grid& grid, int threads) {
  with_labels(codes, [&](const auto* labels) {
    label_transform(
        labels, map.field, grid, threads,
        [&](std::int64_t b) { return KeepMaxima{map.maxima + b * codes.size}; },
        [&](std::int64_t b, std::int64_t from, std::int64_t to) { rectify_run(labels, codes, map, grid, b, from, to); });
  });
}

// One image a thread, over a field for every thread: it stays in the cache if an image is small.
void codes_by_image(const Codes& codes, const RectifiedMap& map, const Grid& grid, int threads) {
  const std::int64_t image = grid.pixels();
  Grid one = grid;
  one.batch = 1;
  std::atomic<std::int64_t> next{0};
  parallel_for(threads < 1 ? 1 : threads, threads, [&](std::int64_t slot) {
    for (std::int64_t b = next.fetch_add(1); b < grid.batch; b = next.fetch_add(1)) {
      Codes labels = codes;
      labels.data = static_cast<const char*>(codes.data) + b * image * codes.bytes;
      RectifiedMap part = map;
      part.class_max = map.class_max ? map.class_max + b * map.num_classes : nullptr;
      part.maxima = map.maxima + b * codes.size;
      part.field = map.field + slot * image;
      part.codes = static_cast<char*>(map.codes) + b * image * map.code_bytes;
      rectified_images(labels, part, one, 1);
    }
  });
}

void rectified(const Codes& codes, const RectifiedMap& map, const Grid& grid, int threads) {
  const bool by_image = map.code_bytes > 0 && grid.batch > 1 && whole_slices(grid.batch, threads);
  (by_image ? codes_by_image : rectified_images)(codes, map, grid, threads);
}

void rectify_all(const Codes& codes, const RectifiedMap& map, const Grid& grid, int threads) {
  const std::int64_t image = grid.pixels(), blocks = pieces(image, pixels_per_piece);
  with_labels(codes, [&](const auto* labels) {
    parallel_for(grid.batch * blocks, threads, [&](std::int64_t i) {
      const std::int64_t from = i % blocks * pixels_per_piece;
      rectify_run(labels, codes, map, grid, i / blocks, from,
                  from + pixels_per_piece < image ? from + pixels_per_piece : image);
    });
  });
}

// Eq. 3 in channel k, from the squared distance to class k.
struct FinishBoundary : Keep {
  const float* inside;  // squared, of the image
  float spacing, inside_spacing, offset, absent;
  bool is_absent, single, special;
  std::int32_t num_classes, ignored;

  template <class L>
  RWK_INLINE F operator()(F d, const L* labels, std::int64_t at, int count) const {
    F v = splat(absent);
    if (!is_absent) {
      const Mask outside = less(F{}, d);
      F own;
      if (count == lanes) {
        own = load(inside + at);
      } else {
        float padded[lanes];
        copy_padded(padded, inside + at, count);
        own = load(padded);
      }
      const F out = sqrt(d) * spacing;
      v = single ? F{} : splat(offset) - sqrt(own) * inside_spacing;
      v = select(outside, out, v);
    }
    if (special) {
      const I label = widen(labels);
      v = select(less(label, splat(num_classes)), v, splat(not_a_number));
      v = select(equal(label, splat(ignored)), F{}, v);
    }
    return v;
  }
};

void boundary(const Codes& codes, const BoundaryMap& map, const Grid& grid, int threads) {
  Grid open = grid;  // the outside of an image is no pixel of any class
  for (bool& bounded : open.bounded) bounded = false;
  const std::int64_t image = grid.pixels(), z_length = grid.length[0];
  with_labels(codes, [&](const auto* labels) {
    label_transform(
        labels, map.inside, grid, threads, [](std::int64_t) { return Keep{}; },
        [](std::int64_t, std::int64_t, std::int64_t) {});
    const auto finish_of = [&](std::int64_t b, std::int64_t k) {
      FinishBoundary finish;
      finish.inside = map.inside + b * image;
      finish.spacing = static_cast<float>(open.spacing[last_axis(open)]);
      finish.inside_spacing = static_cast<float>(grid.spacing[last_axis(grid)]);
      finish.offset = map.inside_offset;
      finish.absent = map.absent;
      finish.is_absent = true;
      for (std::int64_t z = 0; z < z_length; ++z) {
        const RowRange range = map.ranges[(b * map.num_classes + k) * z_length + z];
        if (range.low < range.high) finish.is_absent = false;
      }
      finish.single = finish.inside[0] == infinity;
      finish.special = codes.special;
      finish.num_classes = static_cast<std::int32_t>(map.num_classes);
      finish.ignored = static_cast<std::int32_t>(codes.ignored);
      return finish;
    };
    class_transform(labels, map.num_classes, map.ranges, map.out, open, threads, finish_of);
  });
}

void class_max(const Codes& codes, const float* distance, float* maxima, std::int64_t batch, std::int64_t pixels,
               int threads) {
  const std::int64_t blocks = pieces(pixels, pixels_per_piece);
  with_labels(codes, [&](const auto* labels) {
    using L = std::remove_cv_t<std::remove_reference_t<decltype(*labels)>>;
    parallel_for(batch * blocks, threads, [&](std::int64_t i) {
      const std::int64_t from = i % blocks * pixels_per_piece, at = i / blocks * pixels + from;
      const std::int64_t count = pixels - from < pixels_per_piece ? pixels - from : pixels_per_piece;
      KeepMaxima keep{maxima + i / blocks * codes.size};
      std::int64_t x = 0;
      for (; x + lanes <= count; x += lanes) keep(load(distance + at + x), labels + at + x, 0, lanes);
      if (x < count) {
        float padded[lanes];
        L padded_labels[lanes];
        copy_padded(padded, distance + at + x, static_cast<int>(count - x));
        copy_padded(padded_labels, labels + at + x, static_cast<int>(count - x));
        keep(load(padded), padded_labels, 0, lanes);
      }
      keep.done();
    });
  });
}

}  // namespace

void dense(const DenseMap&, int threads);

extern const MapKernels map_kernels;
const MapKernels map_kernels = {rectified, rectify_all, boundary, class_max, dense};

}  // namespace rwk::RWK_ISA
