// How many entries of every pixel's gradient of the region-wise loss (Eq. 2) are negative, or have the wrong sign.
#pragma once

#include <cstdint>

#include "loss.hpp"

namespace rwk {

struct NegativesCount {
  bool probabilities = false;   // are the problem's logits?
  bool wrong = false;           // count a positive entry of the true class instead of a negative one
  std::int32_t* out = nullptr;  // [B, *S]
};

struct NegativesKernels {
  // The lowest flat index of a bad label, or -1.
  std::int64_t (*count)(const LossProblem&, const NegativesCount&);
};
RWK_DECLARE_TABLES(NegativesKernels, negatives_kernels)

}  // namespace rwk
