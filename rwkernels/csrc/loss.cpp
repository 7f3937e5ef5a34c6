#include "loss.hpp"

#include <vector>

#include "loss_tile.hpp"
#include "openmp.hpp"
#include "pool.hpp"
#include "tile_pass.hpp"

namespace rwk::RWK_ISA {
namespace {

constexpr int max_in_registers = 8;
constexpr std::int64_t worth_a_thread = 1 << 18;  // logits; fewer take less time than a thread to wake
// A gradient of this many bytes has left the caches before the network reads it: it is written past them, which
// saves fetching every line only to overwrite it.
constexpr std::int64_t worth_streaming = std::int64_t{32} << 20;

// The tile decides which losses are added together first, so it depends on the number of classes alone, and neither
// on the layout nor on the threads. A tile of logits and one of the map fit in half a megabyte of cache together.
int tile_pixels(std::int64_t classes) {
  int pixels = classes <= max_in_registers ? 512 : 256;
  while (pixels > 64 && pixels * classes > 65536) pixels /= 2;
  return pixels;
}

template <bool dense, bool scaled>
double in_registers(const Tile<float>& tile) {
  switch (tile.classes) {
    case 1: return tile_in_registers<1, dense, scaled>(tile);
    case 2: return tile_in_registers<2, dense, scaled>(tile);
    case 3: return tile_in_registers<3, dense, scaled>(tile);
    case 4: return tile_in_registers<4, dense, scaled>(tile);
    case 5: return tile_in_registers<5, dense, scaled>(tile);
    case 6: return tile_in_registers<6, dense, scaled>(tile);
    case 7: return tile_in_registers<7, dense, scaled>(tile);
    default: return tile_in_registers<8, dense, scaled>(tile);
  }
}

template <class T, bool dense, bool scaled>
double compute(const Tile<T>& tile, T* rows) {
  if constexpr (std::is_same_v<T, float>)
    if (tile.classes <= max_in_registers) return in_registers<dense, scaled>(tile);
  return tile_in_cache<T, dense, scaled>(tile, rows);
}

template <class T>
double compute(const Tile<T>& tile, T* rows, bool dense) {
  if (dense) return tile.class_scale ? compute<T, true, true>(tile, rows) : compute<T, true, false>(tile, rows);
  return tile.class_scale ? compute<T, false, true>(tile, rows) : compute<T, false, false>(tile, rows);
}

// One call: what every tile needs to know, and what it leaves behind.
template <class T>
class Pass : TilePass<T> {
  using Base = TilePass<T>;
  using Base::problem_, Base::images_, Base::classes_, Base::pixels_, Base::tile_, Base::tiles_;
  using Base::logits_axes_, Base::map_axes_;

 public:
  Pass(const LossProblem& problem, const LossPass& task)
      : Base(problem, tile_pixels(problem.sizes[1])),
        task_(task),
        pitch_(tile_ + pad),
        in_registers_(std::is_same_v<T, float> && classes_ <= max_in_registers),
        grad_axes_(problem.sizes + 2, task.grad.stride + 2),
        streams_(may_stream()),
        partial_(task.image_sums ? images_ * tiles_ : 0) {}

  std::int64_t run() {
    const std::int64_t tiles = images_ * tiles_;
    const int threads = images_ * classes_ * pixels_ < worth_a_thread ? 1 : problem_.threads;
    if (threads > 1) say_it_runs_torch();  // as it did for the logits
    // A thread takes neighbouring tiles, so that what the processor prefetches is its own.
    std::int64_t chunk = tiles / (8 * threads);
    chunk = chunk < 1 ? 1 : chunk > 64 ? 64 : chunk;
    parallel_for((tiles + chunk - 1) / chunk, threads, [&](std::int64_t c) {
      const std::int64_t last = (c + 1) * chunk < tiles ? (c + 1) * chunk : tiles;
      for (std::int64_t t = c * chunk; t < last; ++t) one_tile(t);
      stream_fence();
    });
    if (task_.image_sums)
      for (std::int64_t b = 0; b < images_; ++b) {
        double sum = 0;
        for (std::int64_t t = 0; t < tiles_; ++t) sum += partial_[b * tiles_ + t];
        task_.image_sums[b] = sum;
      }
    return this->first_bad_label();
  }

 private:
  static constexpr Real wide = std::is_same_v<T, float> ? Real::f32 : Real::f64;

  bool may_stream() const {
    constexpr std::int64_t vector = lanes * sizeof(float);
    const Tensor& grad = task_.grad;
    if (!std::is_same_v<T, float> || grad.data == nullptr || grad.dtype != Real::f32) return false;
    const bool aligned = reinterpret_cast<std::uintptr_t>(grad.data) % vector == 0 && grad.stride[0] % lanes == 0 &&
                         grad.stride[1] % lanes == 0;
    return aligned && grad_axes_.rows_are_dense() &&
           images_ * classes_ * pixels_ >= worth_streaming / std::int64_t{sizeof(float)};
  }

  // The thread's scratch, cut into pieces.
  struct Scratch {
    T *logits, *map, *background, *pixel_scale, *loss;
    std::int32_t* codes;
    void* raw;
  };
  Scratch scratch() const {
    const std::int64_t rows = classes_ * pitch_;
    const std::size_t bytes =
        (2 * rows + 3 * pitch_) * sizeof(T) + rows * sizeof(double) + pitch_ * sizeof(std::int32_t);
    Scratch s;
    s.logits = static_cast<T*>(thread_scratch(bytes));
    s.map = s.logits + rows;
    s.background = s.map + rows;
    s.pixel_scale = s.background + pitch_;
    s.loss = s.pixel_scale + pitch_;
    s.raw = s.loss + pitch_;
    s.codes = reinterpret_cast<std::int32_t*>(static_cast<double*>(s.raw) + rows);
    return s;
  }

  // One number per pixel: in place if it can be read there, else padded or converted.
  const T* per_pixel(const void* data, Real dtype, std::int64_t first, int n, T* buffer) const {
    if (data == nullptr) return nullptr;
    if (dtype == wide && n % pad == 0) return static_cast<const T*>(data) + first;
    copy_pixels(data, dtype, first, n, buffer);
    return buffer;
  }

  bool in_place(const Tensor& tensor, const Axes& axes, int n) const {
    return in_registers_ && tensor.dtype == wide && axes.rows_are_dense() && n % pad == 0;
  }
  T* address(const Tensor& tensor, const Patch& patch) const {
    return static_cast<T*>(tensor.data) + patch.image * tensor.stride[0] + patch.first;
  }

  void one_tile(std::int64_t index) {
    const Patch patch = this->patch(index);
    const int n = patch.pixels;
    const std::int64_t flat = this->flat(patch);
    const Scratch s = scratch();

    Tile<T> tile;
    tile.pixels = (n + pad - 1) / pad * pad;
    tile.classes = classes_;
    read_codes(patch, s.codes, tile);
    read_map(patch, flat, s, tile);
    if (in_place(problem_.logits, logits_axes_, n)) {
      tile.logits = address(problem_.logits, patch);
      tile.logits_pitch = problem_.logits.stride[1];
    } else {
      load_rows(problem_.logits, logits_axes_, patch, s.logits, pitch_, s.raw);
      tile.logits = s.logits;
      tile.logits_pitch = pitch_;
    }
    const bool grad_in_place = task_.grad.data && in_place(task_.grad, grad_axes_, n);
    if (task_.grad.data) {
      tile.grad = grad_in_place ? address(task_.grad, patch) : s.logits;
      tile.grad_pitch = grad_in_place ? task_.grad.stride[1] : pitch_;
      tile.streams = streams_ && grad_in_place;
    }
    tile.class_scale = this->class_scale(patch.image);
    if (task_.image_scale) tile.scale = static_cast<T>(task_.image_scale[patch.image]);
    tile.pixel_scale = per_pixel(task_.pixel_scale, wide, flat, n, s.pixel_scale);
    T* loss = task_.pixel_loss ? static_cast<T*>(task_.pixel_loss) + flat : nullptr;
    if (loss) tile.pixel_loss = n % pad == 0 ? loss : s.loss;

    const double sum = compute(tile, s.logits, !problem_.compact);
    if (!partial_.empty()) partial_[index] = sum;
    if (loss && n % pad != 0) convert_row(loss, s.loss, n);
    if (task_.grad.data && !grad_in_place)
      store_rows(task_.grad, grad_axes_, patch, s.logits, pitch_, s.raw, streams_ && n % pad == 0);
  }

  void read_codes(const Patch& patch, std::int32_t* codes, Tile<T>& tile) {
    const int n = patch.pixels;
    if (problem_.labels.data) {
      tile.all_classes = this->read_labels(patch, codes);
    } else if (n < tile.pixels) {
      for (int i = 0; i < n; ++i) codes[i] = 0;
    }
    if (n < tile.pixels) tile.all_classes = false;
    for (int i = n; i < tile.pixels; ++i) codes[i] = ignored;
    tile.codes = codes;
  }

  void read_map(const Patch& patch, std::int64_t flat, const Scratch& s, Tile<T>& tile) const {
    const Tensor& map = problem_.map;
    if (problem_.compact) {
      tile.map = per_pixel(map.data, map.dtype, flat, patch.pixels, s.map);
      tile.background = per_pixel(problem_.background, map.dtype, flat, patch.pixels, s.background);
      tile.background_value = static_cast<T>(problem_.background_value);
    } else if (in_place(map, map_axes_, patch.pixels)) {
      tile.map = address(map, patch);
      tile.map_pitch = map.stride[1];
    } else {
      load_rows(map, map_axes_, patch, s.map, pitch_, s.raw);
      tile.map = s.map;
      tile.map_pitch = pitch_;
    }
  }

  const LossPass& task_;
  const std::int64_t pitch_;
  const bool in_registers_;
  const Axes grad_axes_;
  const bool streams_;
  std::vector<double> partial_;
};

std::int64_t region_wise(const LossProblem& problem, const LossPass& task) {
  return problem.logits.dtype == Real::f64 ? Pass<double>(problem, task).run() : Pass<float>(problem, task).run();
}

}  // namespace

extern const LossKernels loss_kernels;  // the header declares it only where RWK_ISA is the baseline
const LossKernels loss_kernels{region_wise};

}  // namespace rwk::RWK_ISA
