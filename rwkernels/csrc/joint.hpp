// Region-wise loss, cross-entropy, focal loss and Dice over one softmax: their sums over every image, and the gradient
// from the derivative by those sums.
#pragma once

#include <cstdint>

#include "isa.hpp"
#include "loss.hpp"

namespace rwk {

// One pass over the logits. Of the problem, the map may be absent: then there is no region-wise loss.
//
// Sums of an image: intersection, prediction and target of every class, then region-wise loss, cross-entropy and focal
// loss. Factors: the derivative of the loss by them, without the target, which no logit changes.
struct JointPass {
  Tensor grad;                      // the logits' dtype; absent: no gradient
  const double* factors = nullptr;  // [B, 2 K + 3], with a gradient
  double* sums = nullptr;           // [B, 3 K + 3]; those of the classes are written if `of_classes`
  bool of_classes = false;          // not with a gradient, which waits for them
  bool squared = false;             // the prediction is squared
  bool entropy = false, focal = false;
  const double* entropy_weight = nullptr;  // [K]; null: 1
  const double* focal_weight = nullptr;    // [K]; null: 1
  double smoothing = 0, gamma = 2;
};

struct JointKernels {
  // The lowest flat index of a bad label, or -1. Such a pixel makes sums NaN, and its gradient is NaN.
  std::int64_t (*pass)(const LossProblem&, const JointPass&);
  // Adds the pixels of every class to counts[image * row + class].
  void (*count)(const Labels&, const Classes&, int threads, double* counts, std::int64_t row);
};
RWK_DECLARE_TABLES(JointKernels, joint_kernels)

}  // namespace rwk
