// The arithmetic of a weighted sum of losses on one tile. With y = softmax, true class m and p = y_m, the gradient of
// every loss is of one form, y_k (b_k - sum_l y_l b_l) + c ([k = m] - y_k): what differs is b and c.
#pragma once

#include <cmath>
#include <limits>

#include "loss_tile.hpp"

namespace rwk::RWK_ISA {

// ln(x) for normal numbers above 0, to about one unit in the last place; NaN for NaN and infinity. With x = 2^n (1 + r)
// and 1 + r between sqrt(1/2) and sqrt(2), ln(1 + r) = r - r^2 / 2 + r^3 q(r); q is the polynomial of Cephes' logf.
RWK_INLINE F log(F x) {
  const F half = from_bits((bits(x) & splat(0x007fffff)) | splat(0x3f000000));  // in [1/2, 1)
  const Mask low = less(half, splat(0.707106781f));
  const F n = to_float((bits(x) >> 23) - splat(126)) - select(low, splat(1.0f), F{});
  const F r = half - 1.0f + select(low, half, F{});
  F q = splat(7.0376836292e-2f);
  q = fma(q, r, splat(-1.1514610310e-1f));
  q = fma(q, r, splat(1.1676998740e-1f));
  q = fma(q, r, splat(-1.2420140846e-1f));
  q = fma(q, r, splat(1.4249322787e-1f));
  q = fma(q, r, splat(-1.6668057665e-1f));
  q = fma(q, r, splat(2.0000714765e-1f));
  q = fma(q, r, splat(-2.4999993993e-1f));
  q = fma(q, r, splat(3.3333331174e-1f));
  const F square = r * r;
  F tail = fma(n, splat(-2.12194440e-4f), q * (r * square));
  tail = fma(square, splat(-0.5f), tail);
  return fma(n, splat(0.693359375f), r + tail) + (x - x);
}
RWK_INLINE D log(D x) {
  for (int i = 0; i < lanes / 2; ++i) x[i] = std::log(x[i]);
  return x;
}

// ln(1 - q); `rough` is its value where q is not small.
RWK_INLINE F log_of_rest(F q, F rough) {
  F series = fma(q, splat(0.2f), splat(0.25f));
  series = fma(series, q, splat(1.0f / 3));
  series = fma(series, q, splat(0.5f));
  series = fma(series, q, splat(1.0f));
  return select(less(q, splat(0.03f)), -q * series, rough);
}
RWK_INLINE D log_of_rest(D q, D rough) {
  for (int i = 0; i < lanes / 2; ++i) q[i] = q[i] < 0.5 ? std::log1p(-q[i]) : rough[i];
  return q;
}

template <class T>
struct JointTile : Tile<T> {  // its scales and its loss of a pixel are not used
  bool dense = false;
  bool losses = true;  // the sums of the losses are wanted
  bool squared = false, entropy = false, focal = false;
  const T *by_intersection = nullptr, *by_prediction = nullptr;  // [K], the derivatives by an image's sums
  T of_map = 0, of_entropy = 0, of_focal = 0;
  const T *entropy_weight = nullptr, *focal_weight = nullptr;  // [K] or null
  T kept = 1, spread = 0;  // how much of the target the true class has, and how much every class has beside
  T spread_weight = 0;     // spread times the sum of the weights
  T gamma = 2;
};

// Of the lanes of a tile.
template <class T>
struct LossSums {
  typename Lane<T>::V map{}, entropy{}, focal{};
  // ln a + ln b = ln ab: a logarithm for every `waiting` sums of exponentials, each between 1 and K.
  typename Lane<T>::V product = splat(T(1));
};
constexpr int waiting = 8;

// One vector of pixels. `raw(k)` gives a logit, `set(k, e)` keeps its exponential, `e(k)` gives that, `put(k, g)` takes
// the gradient (e(k) is not asked for again); `add(part, k, v)` adds to a sum of class k: intersection, prediction or
// target. `each(body)` calls body(k) for every class.
//
// A logit that is NaN or +inf, or nothing but -inf, makes sums and gradient of the pixel NaN, as softmax does.
template <bool few, bool classes, bool grads, class T, class Raw, class Set, class E, class Put, class Add, class Each>
RWK_INLINE void joint_vector(const JointTile<T>& t, int i, LossSums<T>& total, const Raw& raw, const Set& set,
                             const E& e, const Put& put, const Add& add, const Each& each) {
  using V = typename Lane<T>::V;
  const auto codes = Lane<T>::codes(t.codes + i);
  const auto is = [&](std::int64_t k) { return equal(codes, Lane<T>::code(k)); };
  const auto judged = [&](V v) { return t.all_classes ? v : judge<T>(codes, v); };
  // The number of the true class; 0 where there is none.
  const auto of_true = [&](const T* values) {
    V found{};
    each([&](std::int64_t k) { found = select(is(k), splat(values[k]), found); });
    return found;
  };
  const V zero{}, one = splat(T(1));
  const bool logs = (t.entropy && t.losses) || t.focal;
  const bool waits = few && logs && !t.focal && !t.entropy_weight;  // for the product of several sums

  V top = raw(0);
  each([&](std::int64_t k) { top = max(top, raw(k)); });
  V sum{}, own = splat(std::numeric_limits<T>::quiet_NaN()), own_logit = own, spread_logits{};
  each([&](std::int64_t k) {
    const V below = raw(k) - top, value = exp(below);
    if (logs) {
      own_logit = select(is(k), below, own_logit);
      if (t.spread != 0) spread_logits += t.entropy_weight ? below * t.entropy_weight[k] : below;
    }
    own = select(is(k), value, own);
    sum += value;
    set(k, value);
  });
  const V inverse = one / sum, p = own * inverse;
  V c{};

  V log_sum{}, log_p{};
  if (waits) {
    total.product *= t.all_classes ? sum : select(equal(codes, Lane<T>::code(ignored)), one, sum);
    log_p = own_logit;
  } else if (logs) {
    log_sum = log(sum);
    log_p = own_logit - log_sum;
  }
  if (t.entropy) {
    const V weight = t.entropy_weight ? of_true(t.entropy_weight) : one;
    if (t.losses) {
      V loss = weight * log_p * -t.kept;
      if (t.spread != 0) loss += log_sum * t.spread_weight - spread_logits * t.spread;
      total.entropy += judged(loss);
    }
    if constexpr (grads) c -= weight * (t.of_entropy * t.kept);
  }
  if (t.focal) {
    V others{};
    each([&](std::int64_t k) { others += select(is(k), zero, e(k)); });
    const V rest = others * inverse, log_true = log_of_rest(rest, log_p);
    const V q = max(splat(std::numeric_limits<T>::min()), rest);  // NaN stays
    V power, slope;  // q^gamma and its derivative
    if (t.gamma == T(2)) {
      power = q * q;
      slope = q + q;
    } else if (t.gamma == T(1)) {
      power = q;
      slope = one;
    } else if (t.gamma == T(0)) {
      power = one;
      slope = zero;
    } else {
      const V log_q = log(q);
      power = exp(log_q * t.gamma);
      slope = exp(log_q * (t.gamma - 1)) * t.gamma;
    }
    const V weight = t.focal_weight ? of_true(t.focal_weight) : one;
    if (t.losses) total.focal += judged(-weight * power * log_true);
    if constexpr (grads) {
      const V pull = select(Lane<T>::positive(p), p * log_true, zero);
      c += weight * t.of_focal * (slope * pull - power);
    }
  }

  V background{}, difference{};
  const bool general_map = t.map && (t.dense || t.class_scale);
  if (t.map && !t.dense) {
    background = t.background ? load(t.background + i) : splat(t.background_value);
    difference = load(t.map + i) - background;
  }
  const auto z = [&](std::int64_t k) {
    const V value = t.dense ? load(t.map + k * t.map_pitch + i) : background + select(is(k), difference, zero);
    return t.class_scale ? value * t.class_scale[k] : value;
  };
  V map_loss{};
  if (general_map) {
    each([&](std::int64_t k) { map_loss = fma(z(k), e(k) * inverse, map_loss); });
  } else if (t.map) {
    const V pull = difference * p;
    map_loss = background + pull;
    if constexpr (grads) c += pull * t.of_map;
  }
  if (t.losses) total.map += judged(map_loss);

  if constexpr (classes) each([&](std::int64_t k) {
    const V y = judged(e(k) * inverse);
    const auto mine = is(k);
    add(0, k, select(mine, y, zero));
    add(1, k, t.squared ? y * y : y);
    add(2, k, select(mine, one, zero));
  });
  if constexpr (grads) {
    if (t.by_intersection) c += of_true(t.by_intersection) * p;
    if (!t.by_prediction && !general_map && t.spread == 0) {
      const V slope = c * -inverse;
      each([&](std::int64_t k) {
        const V gradient = fma(slope, e(k), select(is(k), c, zero));
        put(k, judged(t.classes == 1 ? inverse - inverse : gradient));  // of one class y is 1 whatever its logit
      });
      return;
    }
    const auto b = [&](std::int64_t k, V y) {
      V value = t.by_prediction ? splat(t.by_prediction[k]) : zero;
      if (t.squared) value *= y + y;
      return general_map ? fma(z(k), splat(t.of_map), value) : value;
    };
    V mean = c;
    if (t.by_prediction || general_map) each([&](std::int64_t k) {
      const V y = e(k) * inverse;
      mean = fma(y, b(k, y), mean);
    });
    if (t.spread != 0) mean -= splat(t.of_entropy * t.spread_weight);
    each([&](std::int64_t k) {
      const V y = e(k) * inverse;
      V gradient = fma(y, b(k, y) - mean, select(is(k), c, zero));
      if (t.spread != 0) gradient -= splat(t.of_entropy * t.spread * (t.entropy_weight ? t.entropy_weight[k] : T(1)));
      put(k, judged(t.classes == 1 ? inverse - inverse : gradient));
    });
  }
}

// The logarithms that cross-entropy has left out of every loss, with the sign of the loss.
template <class T>
RWK_INLINE void take_logarithm(const JointTile<T>& t, LossSums<T>& total) {
  total.entropy += log(total.product) * (t.kept + t.spread_weight);
  total.product = splat(T(1));
}

template <class T>
void add_losses(const LossSums<T>& total, double* sums) {
  sums[0] += sum_lanes(total.map);
  sums[1] += sum_lanes(total.entropy);
  sums[2] += sum_lanes(total.focal);
}

// Few classes: they stay in registers from the logits to the gradient. Adds to sums[3 K + 3].
template <int K, bool classes, bool grads>
void joint_in_registers(const JointTile<float>& tile, double* sums) {
  const JointTile<float> t = tile;  // a copy that no store of a vector can change
  F parts[3][K] = {};
  LossSums<float> total;
  const auto each = [](const auto& body) {
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k) body(k);
  };
  const bool waits = t.entropy && t.losses && !t.focal && !t.entropy_weight;
  for (int i = 0; i < t.pixels; i += lanes) {
    F e[K];
    each([&](int k) { e[k] = load(t.logits + k * t.logits_pitch + i); });
    const auto at = [&](std::int64_t k) { return e[k]; };
    const auto keep = [&](std::int64_t k, F v) { e[k] = v; };
    joint_vector<true, classes, grads>(
        t, i, total, at, keep, at, keep, [&](int part, std::int64_t k, F v) { parts[part][k] += v; }, each);
    if (waits && i / lanes % waiting == waiting - 1) take_logarithm(t, total);
    if constexpr (grads) {
      if (t.streams)
        each([&](int k) { stream(t.grad + k * t.grad_pitch + i, e[k]); });
      else
        each([&](int k) { store(t.grad + k * t.grad_pitch + i, e[k]); });
    }
  }
  if constexpr (classes)
    for (int part = 0; part < 3; ++part)
      for (int k = 0; k < K; ++k) sums[part * K + k] += sum_lanes(parts[part][k]);
  if (waits) take_logarithm(t, total);
  if (t.losses) add_losses(total, sums + 3 * K);
}

// Many classes: the logits' rows, which must be the caller's own, take the exponentials and then the gradient; `parts`
// has room for three vectors a class.
template <bool classes, bool grads, class T>
void joint_in_cache(const JointTile<T>& t, T* rows, T* parts, double* sums) {
  using V = typename Lane<T>::V;
  LossSums<T> total;
  const auto each = [&](const auto& body) {
    for (std::int64_t k = 0; k < t.classes; ++k) body(k);
  };
  const auto part_of = [&](int part, std::int64_t k) { return parts + (part * t.classes + k) * Lane<T>::count; };
  if constexpr (classes)
    for (std::int64_t k = 0; k < 3 * t.classes; ++k) store(part_of(0, k), V{});
  for (int i = 0; i < t.pixels; i += Lane<T>::count) {
    const auto at = [&](std::int64_t k) { return load(rows + k * t.logits_pitch + i); };
    const auto keep = [&](std::int64_t k, V v) { store(rows + k * t.logits_pitch + i, v); };
    const auto add = [&](int part, std::int64_t k, V v) { store(part_of(part, k), load(part_of(part, k)) + v); };
    joint_vector<false, classes, grads>(t, i, total, at, keep, at, keep, add, each);
  }
  if constexpr (classes)
    for (std::int64_t k = 0; k < 3 * t.classes; ++k) sums[k] += sum_lanes(load(part_of(0, k)));
  if (t.losses) add_losses(total, sums + 3 * t.classes);
}

}  // namespace rwk::RWK_ISA
