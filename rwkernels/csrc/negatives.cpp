#include "negatives.hpp"

#include <limits>

#include "loss_tile.hpp"
#include "pool.hpp"
#include "tile_pass.hpp"

namespace rwk::RWK_ISA {
namespace {

constexpr int tile_pixels = 256;
constexpr std::int64_t worth_a_thread = 1 << 16;  // products; fewer take less time than a thread to wake

// Entry k has the sign of -sum_l y_l (z_l - z_k). The sum is taken over the differences and not as (sum y z) - z_k, so
// that the rounding of a sum that does not cancel cannot turn its sign; that takes K^2 products a pixel.
template <class T>
class Counter : TilePass<T> {
  using Base = TilePass<T>;
  using Base::problem_, Base::images_, Base::classes_, Base::tiles_;

 public:
  Counter(const LossProblem& problem, const NegativesCount& task) : Base(problem, tile_pixels), task_(task) {}

  std::int64_t run() {
    const std::int64_t tiles = images_ * tiles_;
    const int threads = tiles * tile_pixels * classes_ * classes_ < worth_a_thread ? 1 : problem_.threads;
    parallel_for(tiles, threads, [&](std::int64_t t) { one_tile(this->patch(t)); });
    return this->first_bad_label();
  }

 private:
  using V = typename Lane<T>::V;
  using Ints = typename Lane<T>::Codes;
  static constexpr std::int64_t pitch = tile_pixels + pad;

  struct Scratch {
    T *y, *z, *foreground, *background;
    std::int32_t *codes, *counts;
    void* raw;
  };
  Scratch scratch() const {
    const std::int64_t rows = classes_ * pitch;
    Scratch s;
    s.y = static_cast<T*>(
        thread_scratch((2 * rows + 2 * pitch) * sizeof(T) + rows * sizeof(double) + 2 * pitch * sizeof(std::int32_t)));
    s.z = s.y + rows;
    s.foreground = s.z + rows;
    s.background = s.foreground + pitch;
    s.raw = s.background + pitch;
    s.codes = reinterpret_cast<std::int32_t*>(static_cast<double*>(s.raw) + rows);
    s.counts = s.codes + pitch;
    return s;
  }

  void one_tile(const Patch& patch) {
    const int n = patch.pixels;
    const Scratch s = scratch();
    for (int i = 0; i < tile_pixels; ++i) s.codes[i] = 0;
    if (problem_.labels.data) this->read_labels(patch, s.codes);
    load_rows(problem_.logits, this->logits_axes_, patch, s.y, pitch, s.raw);
    read_map(patch, s);
    const T* scale = this->class_scale(patch.image);
    for (int i = 0; i < n; i += Lane<T>::count) count(s, i, scale);
    std::memcpy(task_.out + this->flat(patch), s.counts, n * sizeof(std::int32_t));
  }

  void read_map(const Patch& patch, const Scratch& s) const {
    const Tensor& map = problem_.map;
    if (!problem_.compact) return load_rows(map, this->map_axes_, patch, s.z, pitch, s.raw);
    copy_pixels(map.data, map.dtype, this->flat(patch), patch.pixels, s.foreground);
    if (problem_.background)
      return copy_pixels(problem_.background, map.dtype, this->flat(patch), patch.pixels, s.background);
    for (int i = 0; i < patch.pixels; ++i) s.background[i] = static_cast<T>(problem_.background_value);
  }

  // Probabilities, of logits over the largest one; 0 below the smallest normal number.
  void to_probabilities(T* y, int i) const {
    const auto at = [&](std::int64_t k) { return y + k * pitch + i; };
    V top{};
    if (!task_.probabilities) {
      top = load(at(0));
      for (std::int64_t k = 1; k < classes_; ++k) top = max(top, load(at(k)));
    }
    for (std::int64_t k = 0; k < classes_; ++k) {
      V value = load(at(k));
      if (!task_.probabilities) value = exp(value - top);
      store(at(k), value < splat(std::numeric_limits<T>::min()) ? V{} : value);
    }
  }

  void to_map(const Scratch& s, int i, const T* scale) const {
    const Ints codes = Lane<T>::codes(s.codes + i);
    for (std::int64_t k = 0; k < classes_; ++k) {
      T* at = s.z + k * pitch + i;
      V value = problem_.compact ? (codes == Lane<T>::code(k) ? load(s.foreground + i) : load(s.background + i)) : load(at);
      store(at, scale ? value * scale[k] : value);
    }
  }

  void count(const Scratch& s, int i, const T* scale) const {
    to_probabilities(s.y, i);
    if (problem_.compact || scale) to_map(s, i, scale);
    const Ints codes = Lane<T>::codes(s.codes + i);
    Ints found{}, valid = codes >= Ints{};
    for (std::int64_t k = 0; k < classes_; ++k) {
      const V own = load(s.z + k * pitch + i), mine = load(s.y + k * pitch + i);
      V pull{};
      for (std::int64_t l = 0; l < classes_; ++l)
        pull = fma(load(s.y + l * pitch + i), load(s.z + l * pitch + i) - own, pull);
      Ints hit = pull > V{};
      if (task_.wrong) {
        const Ints up = pull < V{}, is_own = codes == Lane<T>::code(k);
        hit = (is_own & up) | (~is_own & hit);
      }
      found -= hit & (mine > V{});
      valid &= pull == pull;
    }
    for (int j = 0; j < Lane<T>::count; ++j) s.counts[i + j] = valid[j] ? static_cast<std::int32_t>(found[j]) : -1;
  }

  const NegativesCount& task_;
};

std::int64_t count(const LossProblem& problem, const NegativesCount& task) {
  if (problem.sizes[0] * problem.pixels() == 0) return -1;
  return problem.logits.dtype == Real::f64 ? Counter<double>(problem, task).run()
                                           : Counter<float>(problem, task).run();
}

}  // namespace

extern const NegativesKernels negatives_kernels;  // the header declares it only where RWK_ISA is the baseline
const NegativesKernels negatives_kernels{count};

}  // namespace rwk::RWK_ISA
