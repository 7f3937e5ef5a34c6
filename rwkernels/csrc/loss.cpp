#include "loss.hpp"

#include <vector>

#include "gradient_pass.hpp"
#include "loss_tile.hpp"
#include "pool.hpp"

namespace rwk::RWK_ISA {
namespace {

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
class Pass : GradientPass<T> {
  using Base = GradientPass<T>;
  using Base::problem_, Base::images_, Base::classes_, Base::tiles_, Base::pitch_, Base::wide;

 public:
  Pass(const LossProblem& problem, const LossPass& task)
      : Base(problem, task.grad), task_(task), partial_(task.image_sums ? images_ * tiles_ : 0) {}

  std::int64_t run() {
    const std::int64_t tiles = images_ * tiles_;
    const int threads = this->useful_threads();
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
  // The thread's scratch, cut into pieces.
  struct Scratch : Room<T> {
    T *pixel_scale, *loss;
    std::int32_t* codes;
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

  void one_tile(std::int64_t index) {
    const Patch patch = this->patch(index);
    const int n = patch.pixels;
    const std::int64_t flat = this->flat(patch);
    const Scratch s = scratch();

    Tile<T> tile;
    tile.pixels = (n + pad - 1) / pad * pad;
    tile.classes = classes_;
    read_codes(patch, s.codes, tile);
    this->read_map(patch, s, tile);
    this->place(patch, s, tile);
    tile.class_scale = this->class_scale(patch.image);
    if (task_.image_scale) tile.scale = static_cast<T>(task_.image_scale[patch.image]);
    tile.pixel_scale = this->per_pixel(task_.pixel_scale, wide, flat, n, s.pixel_scale);
    T* loss = task_.pixel_loss ? static_cast<T*>(task_.pixel_loss) + flat : nullptr;
    if (loss) tile.pixel_loss = n % pad == 0 ? loss : s.loss;

    const double sum = compute(tile, s.logits, !problem_.compact);
    if (!partial_.empty()) partial_[index] = sum;
    if (loss && n % pad != 0) convert_row(loss, s.loss, n);
    this->store(patch, s);
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

  const LossPass& task_;
  std::vector<double> partial_;
};

std::int64_t region_wise(const LossProblem& problem, const LossPass& task) {
  return problem.logits.dtype == Real::f64 ? Pass<double>(problem, task).run() : Pass<float>(problem, task).run();
}

}  // namespace

extern const LossKernels loss_kernels;  // the header declares it only where RWK_ISA is the baseline
const LossKernels loss_kernels{region_wise};

}  // namespace rwk::RWK_ISA
