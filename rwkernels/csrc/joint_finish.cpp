#include "joint_finish.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

namespace rwk {
namespace {

constexpr double smallest = 1e-8;  // of a denominator, as nnU-Net has it
enum { region_wise, cross_entropy, focal_loss, dice_loss };

class Finisher {
 public:
  explicit Finisher(const JointFinish& task)
      : task_(task), k_(task.classes), columns_(3 * k_ + 3), first_(task.dice_background ? 0 : 1) {}

  double run() {
    count();
    double total = 0;
    const double classes = static_cast<double>(k_);
    if (task_.map) total += pixel_loss(region_wise, pixels_ * (classes - (task_.map_background ? 0 : 1)));
    if (task_.entropy) total += pixel_loss(cross_entropy, weighed_);
    if (task_.focal) total += pixel_loss(focal_loss, pixels_ * classes);
    if (task_.dice) total += task_.weights[dice_loss] * dice();
    if (task_.factors) {
      const std::int64_t numbers = task_.images * (2 * k_ + 3);
      for (std::int64_t i = 0; i < numbers; ++i) task_.factors[i] *= task_.upstream;
    }
    return total;
  }

 private:
  const double* row(std::int64_t r) const { return task_.sums + r * columns_; }
  double* factors(std::int64_t image) const { return task_.factors + image * (2 * k_ + 3); }

  // What the sums over pixels are divided by.
  void count() {
    std::vector<double> target(k_);
    for (std::int64_t r = 0; r < task_.rows; ++r)
      for (std::int64_t k = 0; k < k_; ++k) target[k] += row(r)[2 * k_ + k];
    double all = 0, weighed = 0;
    for (std::int64_t k = 0; k < k_; ++k) {
      all += target[k];
      if (task_.entropy_weight) weighed += target[k] * task_.entropy_weight[k];
    }
    pixels_ = task_.pixels >= 0 ? task_.pixels : all;
    if (pixels_ < 1) pixels_ = 1;
    weighed_ = !task_.entropy_weight ? pixels_ : weighed > 0 ? weighed : weighed <= 0 ? 1 : weighed;  // NaN stays
    if (!task_.mean) pixels_ = weighed_ = 1;
  }

  double pixel_loss(int place, double divisor) const {
    if (!task_.mean) divisor = 1;
    double sum = 0;
    for (std::int64_t r = 0; r < task_.rows; ++r) sum += row(r)[3 * k_ + place];
    if (task_.factors)
      for (std::int64_t b = 0; b < task_.images; ++b) factors(b)[2 * k_ + place] = task_.weights[place] / divisor;
    return task_.weights[place] * (sum / divisor);
  }

  double dice() const {
    const std::int64_t groups = task_.whole_batch ? 1 : task_.rows;
    const bool joined = task_.volumes != Volumes::none;
    const std::int64_t quotients = groups * (joined ? 1 : k_ - first_);
    const double divisor = task_.mean ? static_cast<double>(std::max<std::int64_t>(quotients, 1)) : 1;
    double total = 0;
    std::vector<double> group(3 * k_), share(k_);
    for (std::int64_t g = 0; g < groups; ++g) {
      for (std::int64_t column = 0; column < 3 * k_; ++column) {
        group[column] = 0;
        for (std::int64_t r = task_.whole_batch ? 0 : g; r < (task_.whole_batch ? task_.rows : g + 1); ++r)
          group[column] += row(r)[column];
      }
      find_shares(group.data() + 2 * k_, share.data());
      if (joined) {
        total += quotient(group.data(), share.data(), first_, k_, 1, divisor, g);
      } else {
        for (std::int64_t k = first_; k < k_; ++k) {
          const double weight = task_.dice_weight ? task_.dice_weight[k] : 1;
          total += weight * quotient(group.data(), share.data(), k, k + 1, weight, divisor, g);
        }
      }
    }
    return total / divisor;
  }

  // What every class counts for: by its volume; one that is absent as much as the one that counts most.
  void find_shares(const double* target, double* share) const {
    std::fill(share, share + k_, 1.0);
    if (task_.volumes != Volumes::square && task_.volumes != Volumes::simple) return;
    double largest = 0;
    for (std::int64_t k = first_; k < k_; ++k) {
      share[k] = 1 / (task_.volumes == Volumes::square ? target[k] * target[k] : target[k]);
      if (!std::isinf(share[k])) largest = std::max(largest, share[k]);
    }
    for (std::int64_t k = first_; k < k_; ++k)
      if (std::isinf(share[k])) share[k] = largest;
  }

  // The loss of one quotient over the classes [first, last), and what it adds to the derivative by their sums.
  double quotient(const double* group, const double* share, std::int64_t first, std::int64_t last, double weight,
                  double divisor, std::int64_t g) const {
    const Overlap& o = task_.overlap;
    double numerator = 0, denominator = 0;
    for (std::int64_t k = first; k < last; ++k) {
      const double i = group[k], p = group[k_ + k], t = group[2 * k_ + k];
      numerator += o.numerator * i * share[k];
      denominator += (o.intersection * i + o.prediction * p + o.target * t) * share[k];
    }
    numerator += o.smooth_nr;
    denominator += o.smooth_dr;
    const bool live = !(denominator < smallest);  // NaN stays
    if (!live) denominator = smallest;
    const double score = numerator / denominator;
    if (task_.factors) {
      const double outer = weight * task_.weights[dice_loss] / divisor / denominator, inner = live ? outer * score : 0;
      const std::int64_t begin = task_.whole_batch ? 0 : g, end = task_.whole_batch ? task_.images : g + 1;
      for (std::int64_t b = begin; b < end; ++b)
        for (std::int64_t k = first; k < last; ++k) {
          factors(b)[k] = share[k] * (o.intersection * inner - o.numerator * outer);
          factors(b)[k_ + k] = share[k] * o.prediction * inner;
        }
    }
    return o.offset - score;
  }

  const JointFinish& task_;
  const std::int64_t k_, columns_, first_;
  double pixels_ = 1, weighed_ = 1;
};

}  // namespace

double finish(const JointFinish& task) {
  if (task.factors) std::fill_n(task.factors, task.images * (2 * task.classes + 3), 0.0);
  return Finisher(task).run();
}

}  // namespace rwk
