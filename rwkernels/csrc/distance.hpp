// Exact Euclidean distance transforms of label images.
#pragma once

#include <cstdint>

#include "isa.hpp"

namespace rwk {

// A batch of images, and how far apart the centres of neighbours are along each axis. Fewer than three axes:
// the first ones have length 1. Axes are numbered 0 (z), 1 (y), 2 (x, contiguous).
struct Grid {
  std::int64_t batch = 0;
  std::int64_t length[3] = {1, 1, 1};
  double spacing[3] = {1, 1, 1};
  bool bounded[3] = {false, false, false};  // is the outside of the image, along this axis, another label?

  std::int64_t pixels() const { return length[0] * length[1] * length[2]; }
  bool needs_pass(int axis) const { return length[axis] > 1 || bounded[axis]; }
};

// The axis that is passed last: results are in its pixels.
inline int last_axis(const Grid& grid) { return grid.needs_pass(0) ? 0 : grid.needs_pass(1) ? 1 : 2; }

// Labels as the kernels read them: unsigned integers of 1, 2 or 4 bytes (labels.hpp).
struct Codes {
  const void* data = nullptr;
  int bytes = 1;
  std::int64_t size = 0;      // every code is below it
  std::int64_t ignored = -1;  // the code of ignored pixels; -1 where there are none
  bool special = false;       // some pixel is ignored, or of no class
};

// Rows of a slice that hold a class: [low, high), empty where low >= high.
struct RowRange {
  std::int32_t low, high;
};

// One axis of the transform alone, over lines that are whole: pixel (o, y, i) lies at (o * n + y) * inner + i.
struct AxisPass {
  std::int64_t outer, n, inner;
  float* field;  // squared distance so far, in squared pixels of the axis passed before; out: of this axis
  float unit;    // squared pixels of the axis passed before to those of this one; of no use to the first
  bool first;    // is it the first axis? Then field need not hold anything, and inner is 1.
  bool bounded;
};

struct DistanceKernels {
  // Squared distance to the nearest pixel of another label, or its root.
  void (*distance)(const Codes&, float* out, const Grid&, bool squared, int threads);
  // ranges[(b * num_classes + k) * length[0] + z] for every slice and class.
  void (*class_rows)(const Codes&, std::int64_t num_classes, const Grid&, RowRange* ranges, int threads);
  void (*class_distance)(const Codes&, std::int64_t num_classes, const RowRange*, float* out, const Grid&, bool squared,
                         int threads);
  void (*axis)(const Codes&, const AxisPass&, int threads);
};
RWK_DECLARE_TABLES(DistanceKernels, distance_kernels)

}  // namespace rwk
