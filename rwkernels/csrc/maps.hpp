// Maps that weigh a segmentation's softmax, from labels and their distances.
#pragma once

#include <cstdint>
#include <vector>

#include "distance.hpp"
#include "isa.hpp"
#include "types.hpp"

namespace rwk {

// What distances and maps are computed from.
struct MapProblem {
  Labels labels;
  std::vector<std::int64_t> shape;  // of the labels, [B, *S], as it was given
  Grid grid;
  bool black_border = false;
  Classes classes;
  const float* class_max = nullptr;  // [B, num_classes] or null: the largest distances of the images themselves
  bool validate = false;
  int threads = 1;  // as many as are worth waking

  bool empty() const { return labels.batch == 0 || labels.pixels == 0; }
};

struct RectifiedMap {
  std::int64_t num_classes;
  const float* class_max;  // [batch, num_classes] or null: the maxima found here
  float* maxima;           // [batch, codes.size], 0 on entry: largest squared distance, pixels of the last axis
  float* field;            // [batch, pixels]: squared distances, then the foreground unless it goes to `codes`
  void* codes = nullptr;   // [batch, pixels] of `code_bytes` each (quantise.hpp)
  int code_bytes = 0;      // 1, 2, or 0 for no codes
};

struct BoundaryMap {
  std::int64_t num_classes;
  const RowRange* ranges;
  float* inside;  // [batch, pixels], working memory
  float* out;     // [batch, num_classes, pixels]
  float absent, inside_offset;
};

struct DenseMap {
  const Labels* labels;
  Classes classes;
  const float* foreground;   // [batch, pixels]
  const float* background;   // [batch, pixels] or null: background_value
  float background_value;
  const float* class_scale;  // [num_classes] or null
  void* out;                 // [batch, num_classes, pixels]
  Real type;
};

struct MapKernels {
  void (*rectified)(const Codes&, const RectifiedMap&, const Grid&, int threads);
  // Eq. 4 alone: `field` holds squared distances, pixels of the last axis, and `maxima` is known.
  void (*rectify)(const Codes&, const RectifiedMap&, const Grid&, int threads);
  void (*boundary)(const Codes&, const BoundaryMap&, const Grid&, int threads);
  void (*class_max)(const Codes&, const float* distance, float* maxima, std::int64_t batch, std::int64_t pixels,
                    int threads);
  void (*dense)(const DenseMap&, int threads);
};
RWK_DECLARE_TABLES(MapKernels, map_kernels)

}  // namespace rwk
