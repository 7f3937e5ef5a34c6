#include "joint.hpp"

#include <vector>

#include "gradient_pass.hpp"
#include "joint_tile.hpp"
#include "pool.hpp"

namespace rwk::RWK_ISA {
namespace {

constexpr std::int64_t block_tiles = 8;  // neighbours in an image, whose sums are added up by one thread

template <bool classes, bool grads>
void in_registers(const JointTile<float>& tile, double* sums) {
  switch (tile.classes) {
    case 1: return joint_in_registers<1, classes, grads>(tile, sums);
    case 2: return joint_in_registers<2, classes, grads>(tile, sums);
    case 3: return joint_in_registers<3, classes, grads>(tile, sums);
    case 4: return joint_in_registers<4, classes, grads>(tile, sums);
    case 5: return joint_in_registers<5, classes, grads>(tile, sums);
    case 6: return joint_in_registers<6, classes, grads>(tile, sums);
    case 7: return joint_in_registers<7, classes, grads>(tile, sums);
    default: return joint_in_registers<8, classes, grads>(tile, sums);
  }
}

template <class T, bool classes, bool grads>
void compute(const JointTile<T>& tile, T* rows, T* parts, double* sums) {
  if constexpr (std::is_same_v<T, float>)
    if (tile.classes <= max_in_registers) return in_registers<classes, grads>(tile, sums);
  joint_in_cache<classes, grads>(tile, rows, parts, sums);
}

template <class T>
void compute(const JointTile<T>& tile, T* rows, T* parts, double* sums, bool of_classes) {
  if (tile.grad) return compute<T, false, true>(tile, rows, parts, sums);
  if (of_classes) return compute<T, true, false>(tile, rows, parts, sums);
  compute<T, false, false>(tile, rows, parts, sums);
}

// One call: what every tile needs to know, and what it leaves behind.
template <class T>
class Pass : GradientPass<T> {
  using Base = GradientPass<T>;
  using Base::problem_, Base::images_, Base::classes_, Base::tiles_, Base::pitch_;

 public:
  Pass(const LossProblem& problem, const JointPass& task)
      : Base(problem, task.grad),
        task_(task),
        columns_(3 * classes_ + 3),
        blocks_((tiles_ + block_tiles - 1) / block_tiles) {
    if (task.entropy_weight) entropy_weight_.assign(task.entropy_weight, task.entropy_weight + classes_);
    if (task.focal_weight) focal_weight_.assign(task.focal_weight, task.focal_weight + classes_);
    if (task.factors) factors_.assign(task.factors, task.factors + images_ * (2 * classes_ + 3));
    for (std::int64_t k = 0; k < classes_; ++k) all_weights_ += entropy_weight_.empty() ? T(1) : entropy_weight_[k];
    if (task.sums) partial_.assign(images_ * blocks_ * columns_, 0.0);
  }

  std::int64_t run() {
    const int threads = this->useful_threads();
    // A thread takes neighbouring blocks, and waits for what it has streamed once for all of them.
    const std::int64_t blocks = images_ * blocks_;
    std::int64_t chunk = blocks / (8 * threads);
    chunk = chunk < 1 ? 1 : chunk > 8 ? 8 : chunk;
    parallel_for((blocks + chunk - 1) / chunk, threads, [&](std::int64_t c) {
      const std::int64_t last = (c + 1) * chunk < blocks ? (c + 1) * chunk : blocks;
      for (std::int64_t block = c * chunk; block < last; ++block) one_block(block);
      stream_fence();
    });
    if (task_.sums) add_up();
    return this->first_bad_label();
  }

 private:
  void one_block(std::int64_t block) {
    const std::int64_t first = block % blocks_ * block_tiles;
    const std::int64_t last = first + block_tiles < tiles_ ? first + block_tiles : tiles_;
    double* sums = task_.sums ? partial_.data() + block * columns_ : nullptr;
    for (std::int64_t t = first; t < last; ++t) one_tile(block / blocks_ * tiles_ + t, sums);
  }

  void add_up() const {
    const std::int64_t start = task_.of_classes ? 0 : 3 * classes_;
    for (std::int64_t b = 0; b < images_; ++b)
      for (std::int64_t column = start; column < columns_; ++column) {
        double sum = 0;
        for (std::int64_t block = 0; block < blocks_; ++block)
          sum += partial_[(b * blocks_ + block) * columns_ + column];
        task_.sums[b * columns_ + column] = sum;
      }
  }

  // The thread's scratch, cut into pieces.
  struct Scratch : Room<T> {
    T* parts;
    double* sums;
    std::int32_t* codes;
  };
  Scratch scratch() const {
    const std::int64_t rows = classes_ * pitch_, parts = 3 * classes_ * Lane<T>::count;
    const std::size_t bytes = (2 * rows + pitch_ + parts) * sizeof(T) + (rows + columns_) * sizeof(double) +
                              pitch_ * sizeof(std::int32_t);
    Scratch s;
    s.logits = static_cast<T*>(thread_scratch(bytes));
    s.map = s.logits + rows;
    s.background = s.map + rows;
    s.parts = s.background + pitch_;
    s.raw = s.parts + parts;
    s.sums = static_cast<double*>(s.raw) + rows;
    s.codes = reinterpret_cast<std::int32_t*>(s.sums + columns_);
    return s;
  }

  void one_tile(std::int64_t index, double* sums) {
    const Patch patch = this->patch(index);
    const int n = patch.pixels;
    const Scratch s = scratch();
    JointTile<T> tile;
    tile.pixels = (n + pad - 1) / pad * pad;
    tile.classes = classes_;
    tile.all_classes = this->read_labels(patch, s.codes) && n == tile.pixels;
    for (int i = n; i < tile.pixels; ++i) s.codes[i] = ignored;
    tile.codes = s.codes;
    this->read_map(patch, s, tile);
    this->place(patch, s, tile);
    describe(patch.image, tile);
    tile.losses = sums != nullptr;
    compute(tile, s.logits, s.parts, sums, task_.of_classes);
    this->store(patch, s);
  }

  // What all tiles of an image share.
  void describe(std::int64_t image, JointTile<T>& tile) const {
    tile.class_scale = this->class_scale(image);
    tile.dense = !problem_.compact;
    tile.squared = task_.squared;
    tile.entropy = task_.entropy;
    tile.focal = task_.focal;
    tile.entropy_weight = entropy_weight_.empty() ? nullptr : entropy_weight_.data();
    tile.focal_weight = focal_weight_.empty() ? nullptr : focal_weight_.data();
    tile.kept = static_cast<T>(1 - task_.smoothing);
    tile.spread = task_.entropy ? static_cast<T>(task_.smoothing / classes_) : T(0);
    tile.spread_weight = tile.spread * all_weights_;
    tile.gamma = static_cast<T>(task_.gamma);
    if (factors_.empty()) return;
    const T* factors = factors_.data() + image * (2 * classes_ + 3);
    bool any = false;
    for (std::int64_t k = 0; k < 2 * classes_; ++k) any = any || factors[k] != 0;
    if (any) {
      tile.by_intersection = factors;
      tile.by_prediction = factors + classes_;
    }
    tile.of_map = factors[2 * classes_];
    tile.of_entropy = factors[2 * classes_ + 1];
    tile.of_focal = factors[2 * classes_ + 2];
  }

  const JointPass& task_;
  const std::int64_t columns_, blocks_;
  std::vector<T> entropy_weight_, focal_weight_, factors_;
  T all_weights_ = 0;
  std::vector<double> partial_;
};

std::int64_t pass(const LossProblem& problem, const JointPass& task) {
  return problem.logits.dtype == Real::f64 ? Pass<double>(problem, task).run() : Pass<float>(problem, task).run();
}

// Whole numbers: the order in which threads add does not matter.
void count(const Labels& labels, const Classes& classes, int threads, double* counts, std::int64_t row) {
  constexpr std::int64_t piece = 1 << 16;
  constexpr int tile = 512;
  const std::int64_t pieces = (labels.pixels + piece - 1) / piece;
  std::vector<std::int64_t> partial(labels.batch * pieces * classes.num_classes);
  parallel_for(labels.batch * pieces, threads, [&](std::int64_t p) {
    const std::int64_t start = p / pieces * labels.pixels, at = p % pieces * piece;
    const std::int64_t end = at + piece < labels.pixels ? at + piece : labels.pixels;
    std::int64_t* found = partial.data() + p * classes.num_classes;
    std::int32_t codes[tile];
    for (std::int64_t first = at; first < end; first += tile) {
      const int n = static_cast<int>(end - first < tile ? end - first : tile);
      read_codes(labels, classes, start + first, n, codes);
      if (classes.num_classes <= max_in_registers) {
        for (std::int32_t k = 0; k < classes.num_classes; ++k) {
          std::int32_t same = 0;
          for (int i = 0; i < n; ++i) same += codes[i] == k;
          found[k] += same;
        }
      } else {
        for (int i = 0; i < n; ++i)
          if (codes[i] >= 0) ++found[codes[i]];
      }
    }
  });
  for (std::int64_t p = 0; p < labels.batch * pieces; ++p)
    for (std::int64_t k = 0; k < classes.num_classes; ++k)
      counts[p / pieces * row + k] += static_cast<double>(partial[p * classes.num_classes + k]);
}

}  // namespace

extern const JointKernels joint_kernels;  // the header declares it only where RWK_ISA is the baseline
const JointKernels joint_kernels{pass, count};

}  // namespace rwk::RWK_ISA
