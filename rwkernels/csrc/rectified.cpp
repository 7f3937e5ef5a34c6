#include "rectified.hpp"

#include <algorithm>
#include <cmath>

#include "bad_value.hpp"
#include "encoding.hpp"

namespace rwk {
namespace {

// Refuses a class_max that is no positive finite number, of a class that is present.
void require_class_max(const RectifiedMap& map, std::int64_t batch, std::int64_t codes) {
  for (std::int64_t b = 0; b < batch; ++b)
    for (std::int64_t k = 0; k < std::min(map.num_classes, codes); ++k) {
      const float given = map.class_max[b * map.num_classes + k];
      const bool present = map.maxima[b * codes + k] > 0;
      if (present && !(given > 0 && std::isfinite(given))) throw BadValue("class_max", b * map.num_classes + k);
    }
}

// largest[b, k]: the largest distance of class k in image b; 0 where it is absent, 1 where it has no other label.
void write_largest(const float* maxima, std::int64_t codes, std::int64_t num_classes, const Grid& grid, float* largest) {
  const double spacing = grid.spacing[last_axis(grid)];
  for (std::int64_t b = 0; b < grid.batch; ++b)
    for (std::int64_t k = 0; k < num_classes; ++k) {
      const double squared = k < codes ? static_cast<double>(maxima[b * codes + k]) : 0;
      const double distance = std::isinf(squared) ? 1 : std::sqrt(squared) * spacing;
      largest[b * num_classes + k] = static_cast<float>(distance);
    }
}

}  // namespace

void make_rectified(const MapProblem& problem, const RectifiedOutput& out) {
  const Grid& grid = problem.grid;
  const std::int64_t num_classes = problem.classes.num_classes;
  const Encoded encoded = encode(problem, out.count);
  const auto maxima = make_array<float>(grid.batch * encoded.codes.size, true);
  const RectifiedMap map{num_classes, problem.class_max, maxima.get(), out.field, out.codes, out.code_bytes};
  active_map_kernels().rectified(encoded.codes, map, grid, problem.threads);
  if (out.largest) write_largest(maxima.get(), encoded.codes.size, num_classes, grid, out.largest);
  if (problem.class_max) require_class_max(map, grid.batch, encoded.codes.size);
}

}  // namespace rwk
