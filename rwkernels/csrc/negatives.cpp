#include "negatives.hpp"

#include <atomic>
#include <limits>
#include <vector>

#include "codes.hpp"
#include "loss_rows.hpp"
#include "pool.hpp"

namespace rwk::RWK_ISA {
namespace {

constexpr int pad = 16;  // the widest vector
constexpr int tile_pixels = 256;
constexpr std::int64_t worth_a_thread = 1 << 16;  // products; fewer take less time than a thread to wake

// Entry k has the sign of -sum_l y_l (z_l - z_k). The sum is taken over the differences and not as (sum y z) - z_k, so
// that the rounding of a sum that does not cancel cannot turn its sign; that takes K^2 products a pixel.
template <class T>
class Counter {
 public:
  explicit Counter(const Negatives& task)
      : task_(task),
        classes_(task.sizes[1]),
        pixels_(task.pixels()),
        tiles_((pixels_ + tile_pixels - 1) / tile_pixels),
        values_axes_(task.sizes + 2, task.values.stride + 2),
        map_axes_(task.sizes + 2, task.map.stride + 2) {
    if (task.class_scale)
      class_scale_.assign(task.class_scale, task.class_scale + task.scale_groups * classes_);
  }

  std::int64_t run() {
    const std::int64_t tiles = task_.sizes[0] * tiles_;
    const int threads = tiles * tile_pixels * classes_ * classes_ < worth_a_thread ? 1 : task_.threads;
    parallel_for(tiles, threads, [&](std::int64_t t) { one_tile(t / tiles_, t % tiles_ * tile_pixels); });
    const std::int64_t bad = lowest_bad_.load();
    return bad == none ? -1 : bad;
  }

 private:
  using V = typename Lane<T>::V;
  using Ints = typename Lane<T>::Codes;
  static constexpr std::int64_t none = std::numeric_limits<std::int64_t>::max();
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

  void one_tile(std::int64_t image, std::int64_t first) {
    const int n = static_cast<int>(pixels_ - first < tile_pixels ? pixels_ - first : tile_pixels);
    const std::int64_t flat = image * pixels_ + first;
    const Patch patch{image, first, n, classes_};
    const Scratch s = scratch();
    read_labels(flat, n, s.codes);
    load_rows(task_.values, values_axes_, patch, s.y, pitch, s.raw);
    read_map(patch, flat, s);
    const T* scale = class_scale_.empty()
                         ? nullptr
                         : class_scale_.data() + image / (task_.sizes[0] / task_.scale_groups) * classes_;
    for (int i = 0; i < n; i += Lane<T>::count) count(s, i, scale);
    std::memcpy(task_.out + flat, s.counts, n * sizeof(std::int32_t));
  }

  void read_labels(std::int64_t flat, int n, std::int32_t* codes) {
    for (int i = 0; i < tile_pixels; ++i) codes[i] = 0;
    if (!task_.labels || encode(flat, n, task_, codes)) return;
    for (int i = 0; i < n; ++i)
      if (codes[i] == bad_label) return lower(lowest_bad_, flat + i);
  }

  void read_map(const Patch& patch, std::int64_t flat, const Scratch& s) const {
    const Tensor& map = task_.map;
    if (!task_.compact) return load_rows(map, map_axes_, patch, s.z, pitch, s.raw);
    per_pixel(map.data, map.dtype, flat, patch.pixels, s.foreground);
    if (task_.background) return per_pixel(task_.background, map.dtype, flat, patch.pixels, s.background);
    for (int i = 0; i < patch.pixels; ++i) s.background[i] = static_cast<T>(task_.background_value);
  }

  static void per_pixel(const void* data, Real dtype, std::int64_t first, int n, T* rows) {
    if (dtype == Real::f64)
      convert_row(rows, static_cast<const double*>(data) + first, n);
    else
      convert_row(rows, static_cast<const float*>(data) + first, n);
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
      V value = task_.compact ? (codes == Lane<T>::code(k) ? load(s.foreground + i) : load(s.background + i)) : load(at);
      store(at, scale ? value * scale[k] : value);
    }
  }

  void count(const Scratch& s, int i, const T* scale) const {
    to_probabilities(s.y, i);
    if (task_.compact || scale) to_map(s, i, scale);
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

  const Negatives& task_;
  const std::int64_t classes_, pixels_, tiles_;
  const Axes values_axes_, map_axes_;
  std::vector<T> class_scale_;
  std::atomic<std::int64_t> lowest_bad_{none};
};

std::int64_t count(const Negatives& task) {
  if (task.sizes[0] * task.pixels() == 0) return -1;
  return task.values.dtype == Real::f64 ? Counter<double>(task).run() : Counter<float>(task).run();
}

}  // namespace

extern const NegativesKernels negatives_kernels;  // the header declares it only where RWK_ISA is the baseline
const NegativesKernels negatives_kernels{count};

}  // namespace rwk::RWK_ISA
