// The arithmetic of the loss on one tile: rows of pixels, one row per class.
#pragma once

#include <cmath>
#include <limits>

#include "codes.hpp"
#include "simd.hpp"

namespace rwk::RWK_ISA {

template <class T>
struct Tile {
  int pixels = 0;  // a multiple of 16; what pads it is marked as ignored
  std::int64_t classes = 0;
  const T* logits = nullptr;
  std::int64_t logits_pitch = 0;
  T* grad = nullptr;  // null if not wanted; may be the logits
  std::int64_t grad_pitch = 0;
  bool streams = false;  // the gradient, whose rows are then aligned to the vector
  const T* map = nullptr;  // rows of a dense map, or the foreground
  std::int64_t map_pitch = 0;
  const T* background = nullptr;
  T background_value = 0;
  const T* class_scale = nullptr;
  const std::int32_t* codes = nullptr;
  bool all_classes = true;  // no code is negative
  T scale = 1;              // of the gradient
  const T* pixel_scale = nullptr;
  T* pixel_loss = nullptr;
};

// The vectors of a type, with the operations that simd.hpp has for float.
template <class T>
struct Lane;

template <>
struct Lane<float> {
  using V = F;
  using Codes = I;
  static constexpr int count = lanes;
  RWK_INLINE static Codes codes(const std::int32_t* from) { return load(from); }
  RWK_INLINE static Codes code(std::int64_t k) { return splat(static_cast<std::int32_t>(k)); }
  RWK_INLINE static Mask positive(F v) { return less(F{}, v); }
};

using D [[gnu::vector_size(4 * lanes), gnu::may_alias]] = double;
using L [[gnu::vector_size(4 * lanes), gnu::may_alias]] = std::int64_t;

template <>
struct Lane<double> {
  using V = D;
  using Codes = L;
  static constexpr int count = lanes / 2;
  RWK_INLINE static Codes codes(const std::int32_t* from) {
    Codes c;
    for (int i = 0; i < count; ++i) c[i] = from[i];
    return c;
  }
  RWK_INLINE static Codes code(std::int64_t k) { return k - Codes{}; }
  RWK_INLINE static L positive(D v) { return v > D{}; }
};

RWK_INLINE D load(const double* from) {
  D v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
RWK_INLINE void store(double* to, D v) { std::memcpy(to, &v, sizeof v); }
RWK_INLINE D splat(double x) { return x - D{}; }
RWK_INLINE D max(D a, D b) { return a > b ? a : b; }
RWK_INLINE D fma(D a, D b, D c) { return a * b + c; }
RWK_INLINE L equal(L a, L b) { return a == b; }
RWK_INLINE D select(L m, D yes, D no) { return m ? yes : no; }
RWK_INLINE D exp(D x) {
  for (int i = 0; i < lanes / 2; ++i) x[i] = std::exp(x[i]);
  return x;
}

template <class V>
RWK_INLINE double sum_lanes(V v) {
  double sum = 0;
  for (unsigned i = 0; i < sizeof v / sizeof v[0]; ++i) sum += v[i];
  return sum;
}

// Loss and gradient of one vector of pixels whose e_k = exp(logit_k - largest logit) are there, `sum` their sum.
// `e(k)` gives e_k, `put(k, g)` takes the gradient (e_k is not asked for again), `each(body)` calls body(k) for every
// class: unrolled where there are few, a loop where there are many.
//
// A logit that is NaN or +inf, or nothing but -inf, makes the sum NaN, and so the loss and every gradient of the
// pixel: what softmax and its derivative do as well.
template <class T, bool dense, bool scaled, class E, class Put, class Each>
RWK_INLINE typename Lane<T>::V finish(const Tile<T>& t, int i, typename Lane<T>::V sum, const E& e, const Put& put,
                                      const Each& each) {
  using V = typename Lane<T>::V;
  const V inverse = T(1) / sum;
  const V zero{};
  V loss{}, scale = splat(t.scale);
  if (t.pixel_scale) scale *= load(t.pixel_scale + i);

  if constexpr (dense) {
    const auto z = [&](std::int64_t k) {
      const V value = load(t.map + k * t.map_pitch + i);
      return scaled ? value * t.class_scale[k] : value;
    };
    each([&](std::int64_t k) { loss = fma(z(k), e(k) * inverse, loss); });
    // The difference comes first: where z is the loss itself (one class, or a constant map) it is exactly zero.
    if (t.grad) each([&](std::int64_t k) { put(k, (e(k) * inverse) * ((z(k) - loss) * scale)); });
  } else {
    const auto codes = Lane<T>::codes(t.codes + i);
    const auto is = [&](std::int64_t k) { return equal(codes, Lane<T>::code(k)); };
    const V background = t.background ? load(t.background + i) : splat(t.background_value);
    const V difference = load(t.map + i) - background;
    V own = splat(std::numeric_limits<T>::quiet_NaN());  // stays where the label is no class
    if constexpr (scaled) {
      V mean{};
      each([&](std::int64_t k) {
        const V weighted = e(k) * t.class_scale[k];
        own = select(is(k), weighted, own);
        mean += weighted;
      });
      loss = fma(background, mean * inverse, difference * (own * inverse));
      if (t.grad) each([&](std::int64_t k) {
        const V z = (background + select(is(k), difference, zero)) * t.class_scale[k];
        put(k, (e(k) * inverse) * ((z - loss) * scale));
      });
    } else {
      each([&](std::int64_t k) { own = select(is(k), e(k), own); });
      const V pull = difference * (own * inverse);
      loss = background + pull;
      const V outward = pull * scale, slope = outward * -inverse;
      if (t.grad) each([&](std::int64_t k) { put(k, fma(slope, e(k), select(is(k), outward, zero))); });
    }
  }
  return loss;
}

// Ignored pixels get zero and bad labels NaN by selection: whatever their logits and maps hold is gone.
template <class T>
RWK_INLINE typename Lane<T>::V judge(typename Lane<T>::Codes codes, typename Lane<T>::V v) {
  using V = typename Lane<T>::V;
  v = select(equal(codes, Lane<T>::code(bad_label)), splat(std::numeric_limits<T>::quiet_NaN()), v);
  return select(equal(codes, Lane<T>::code(ignored)), V{}, v);
}

// Few classes: they stay in registers from the logits to the gradient. Returns the sum of the losses.
template <int K, bool dense, bool scaled>
double tile_in_registers(const Tile<float>& t) {
  F total{};
  const auto each = [](const auto& body) {
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k) body(k);
  };
  for (int i = 0; i < t.pixels; i += lanes) {
    F e[K];
    each([&](int k) { e[k] = load(t.logits + k * t.logits_pitch + i); });
    F top = e[0];
    each([&](int k) { top = max(top, e[k]); });
    F sum{};
    each([&](int k) {
      e[k] = exp(e[k] - top);
      sum += e[k];
    });
    F loss = finish<float, dense, scaled>(
        t, i, sum, [&](int k) { return e[k]; }, [&](int k, F g) { e[k] = g; }, each);
    if (!t.all_classes) {
      const I codes = load(t.codes + i);
      loss = judge<float>(codes, loss);
      each([&](int k) { e[k] = judge<float>(codes, e[k]); });
    }
    if (t.grad && t.streams)
      each([&](int k) { stream(t.grad + k * t.grad_pitch + i, e[k]); });
    else if (t.grad)
      each([&](int k) { store(t.grad + k * t.grad_pitch + i, e[k]); });
    if (t.pixel_loss) store(t.pixel_loss + i, loss);
    total += loss;
  }
  return sum_lanes(total);
}

// Many classes: the logits' rows, which must be the caller's own, take the e_k and then the gradient.
template <class T, bool dense, bool scaled>
double tile_in_cache(const Tile<T>& t, T* rows) {
  using V = typename Lane<T>::V;
  V total{};
  const auto each = [&](const auto& body) {
    for (std::int64_t k = 0; k < t.classes; ++k) body(k);
  };
  for (int i = 0; i < t.pixels; i += Lane<T>::count) {
    const auto at = [&](std::int64_t k) { return rows + k * t.logits_pitch + i; };
    V top = load(at(0));
    each([&](std::int64_t k) { top = max(top, load(at(k))); });
    V sum{};
    each([&](std::int64_t k) {
      const V e = exp(load(at(k)) - top);
      store(at(k), e);
      sum += e;
    });
    const auto e = [&](std::int64_t k) { return load(at(k)); };
    V loss;
    if (t.all_classes) {
      loss = finish<T, dense, scaled>(t, i, sum, e, [&](std::int64_t k, V g) { store(at(k), g); }, each);
    } else {
      const auto codes = Lane<T>::codes(t.codes + i);
      loss = judge<T>(codes, finish<T, dense, scaled>(
          t, i, sum, e, [&](std::int64_t k, V g) { store(at(k), judge<T>(codes, g)); }, each));
    }
    if (t.pixel_loss) store(t.pixel_loss + i, loss);
    total += loss;
  }
  return sum_lanes(total);
}

}  // namespace rwk::RWK_ISA
