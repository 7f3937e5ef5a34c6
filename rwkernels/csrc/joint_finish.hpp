// From the sums of every image to the loss, and to its derivative by them.
#pragma once

#include <cstdint>

namespace rwk {

enum class Volumes { none, square, simple, uniform };

// `numerator * I / (intersection * I + prediction * P + target * T)` of a class, smoothed; the loss is `offset` minus it.
struct Overlap {
  double numerator = 2, intersection = 0, prediction = 1, target = 1, smooth_nr = 0, smooth_dr = 0, offset = 1;
};

// Whatever is null is absent. Sums and factors are as in joint.hpp.
struct JointFinish {
  std::int64_t images = 0, classes = 0;
  const double* sums = nullptr;  // [rows, 3 K + 3]
  std::int64_t rows = 0;         // as many as images, or those of several processes
  const double* weights = nullptr;  // of region-wise loss, cross-entropy, focal loss and Dice
  bool mean = true;
  double pixels = -1;  // that count; negative: the sum of the targets
  bool map = false, map_background = true;
  bool entropy = false, focal = false;
  const double* entropy_weight = nullptr;  // [K]
  bool dice = false, dice_background = true, whole_batch = false;
  const double* dice_weight = nullptr;  // [K]
  Volumes volumes = Volumes::none;
  Overlap overlap;
  double upstream = 1;
  double* factors = nullptr;  // [images, 2 K + 3], times `upstream`; null: not wanted
};

double finish(const JointFinish& task);

}  // namespace rwk
