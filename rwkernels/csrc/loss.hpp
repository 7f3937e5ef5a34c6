// The region-wise loss and its gradient in one pass over the logits (Eq. 1 and 2).
#pragma once

#include <cstdint>

#include "isa.hpp"

namespace rwk {

enum class Real { f32, f64, bf16, f16 };
enum class Label { u8, i8, i16, i32, i64 };

// A tensor [B, K, S0, S1, S2] that lies anywhere; strides are in elements.
struct Tensor {
  void* data = nullptr;
  Real dtype = Real::f32;
  std::int64_t stride[5] = {};
};

// Whatever is null is absent. Arrays without strides are contiguous. "wide" is what the loss is computed in:
// double for double logits, float for all others.
struct RegionWise {
  std::int64_t sizes[5] = {};  // B, K, S0, S1, S2
  Tensor logits;
  Tensor grad;  // the logits' dtype
  Tensor map;   // dense: [B, K, *S]; compact: the foreground, contiguous [B, *S]
  bool compact = false;
  const void* background = nullptr;  // [B, *S], the dtype of the map
  double background_value = 0;
  const void* labels = nullptr;  // [B, *S]
  Label label_type = Label::u8;
  bool has_ignore = false;
  std::int64_t ignore = 0;
  const double* class_scale = nullptr;  // [scale_groups, K]; each group serves the same number of images
  std::int64_t scale_groups = 1;
  const double* image_scale = nullptr;  // [B], multiplies the gradient
  const void* pixel_scale = nullptr;    // wide [B, *S], multiplies the gradient
  double* image_sums = nullptr;         // [B]
  void* pixel_loss = nullptr;           // wide [B, *S]
  int threads = 1;

  std::int64_t pixels() const { return sizes[2] * sizes[3] * sizes[4]; }
};

struct LossKernels {
  // The lowest flat index of a label that is neither a class nor ignored, or -1. At such a pixel loss and
  // gradient are NaN.
  std::int64_t (*region_wise)(const RegionWise&);
};
RWK_DECLARE_TABLES(LossKernels, loss_kernels)

}  // namespace rwk
