// A whole rectified map, from labels to its foreground or codes.
#pragma once

#include <cstdint>

#include "maps.hpp"

namespace rwk {

// Where a map goes. Whatever is null is not wanted.
struct RectifiedOutput {
  float* field;                    // [batch, pixels]: the foreground; working memory of this size beside `codes`
  std::int64_t* count = nullptr;   // [batch]: pixels that are not ignored
  void* codes = nullptr;           // [batch, pixels] of `code_bytes` each (quantise.hpp)
  int code_bytes = 0;
  float* largest = nullptr;        // [batch, num_classes]: the largest distances
};

// Throws BadValue. The problem is not empty.
void make_rectified(const MapProblem& problem, const RectifiedOutput& out);

}  // namespace rwk
