// How many entries of every pixel's gradient of the region-wise loss (Eq. 2) are negative, or have the wrong sign.
#pragma once

#include <cstdint>

#include "loss.hpp"

namespace rwk {

// Fields that `RegionWise` has too mean the same here.
struct Negatives {
  std::int64_t sizes[5] = {};  // B, K, S0, S1, S2
  Tensor values;               // logits, or probabilities
  Tensor map;
  bool compact = false;
  const void* background = nullptr;
  double background_value = 0;
  const void* labels = nullptr;
  Label label_type = Label::u8;
  bool has_ignore = false;
  std::int64_t ignore = 0;
  const double* class_scale = nullptr;
  std::int64_t scale_groups = 1;
  bool probabilities = false;
  bool wrong = false;  // count a positive entry of the true class instead of a negative one
  std::int32_t* out = nullptr;  // [B, *S]
  int threads = 1;

  std::int64_t pixels() const { return sizes[2] * sizes[3] * sizes[4]; }
};

struct NegativesKernels {
  // The lowest flat index of a label that is neither a class nor ignored, or -1.
  std::int64_t (*count)(const Negatives&);
};
RWK_DECLARE_TABLES(NegativesKernels, negatives_kernels)

}  // namespace rwk
