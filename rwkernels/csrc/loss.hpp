// The region-wise loss and its gradient in one pass over the logits (Eq. 1 and 2).
#pragma once

#include <cstdint>

#include "isa.hpp"
#include "types.hpp"

namespace rwk {

// What the loss is computed from, and the signs of its gradient. Whatever is null is absent. Arrays without strides are
// contiguous. "wide" is what is computed in: double for double logits, float for all others.
struct LossProblem {
  std::int64_t sizes[5] = {};  // B, K, S0, S1, S2
  Tensor logits;
  Tensor map;  // dense: [B, K, *S]; compact: the foreground, contiguous [B, *S]
  bool compact = false;
  bool has_map = true;  // without it there is no region-wise loss
  const void* background = nullptr;  // [B, *S], the dtype of the map
  double background_value = 0;
  Labels labels;
  Classes classes;
  const double* class_scale = nullptr;  // [scale_groups, K]; each group serves the same number of images
  std::int64_t scale_groups = 1;
  bool validate = false;
  int threads = 1;

  std::int64_t pixels() const { return sizes[2] * sizes[3] * sizes[4]; }
};

// What one pass over the logits reads and writes beside the problem.
struct LossPass {
  Tensor grad;                          // the logits' dtype
  const double* image_scale = nullptr;  // [B], multiplies the gradient
  const void* pixel_scale = nullptr;    // wide [B, *S], multiplies the gradient
  double* image_sums = nullptr;         // [B]
  void* pixel_loss = nullptr;           // wide [B, *S]
};

struct LossKernels {
  // The lowest flat index of a bad label, or -1. At such a pixel loss and
  // gradient are NaN.
  std::int64_t (*region_wise)(const LossProblem&, const LossPass&);
};
RWK_DECLARE_TABLES(LossKernels, loss_kernels)

}  // namespace rwk
