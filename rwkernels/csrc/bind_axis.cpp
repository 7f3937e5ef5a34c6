// Python's way to single steps of the transform, for images that are cut into blocks: one axis over whole lines, and
// Eq. 4 once the largest distances are known.
#include <nanobind/nanobind.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "bind.hpp"
#include "encoding.hpp"
#include "maps.hpp"

namespace nb = nanobind;

namespace rwk {
namespace {

// The labels of the problem are [outer, n, inner], or [outer, n] where inner is 1.
void axis_pass(const MapProblem& problem, Address field, double unit, bool first) {
  const Ints& shape = problem.shape;
  require(shape.size() <= 3, "shape: expected [outer, n, inner]");
  const std::int64_t n = shape[1], inner = shape.size() == 3 ? shape[2] : 1;
  require(!first || inner == 1, "inner: expected 1 on the first axis");
  require(first || n < std::numeric_limits<std::int32_t>::max(), "shape: expected fewer than 2^31 rows along an axis");
  require(unit > 0 && std::isfinite(unit), "unit: expected a positive finite number");
  if (problem.empty()) return;
  const AxisPass pass{shape[0], n, inner, pointer<float>(field), static_cast<float>(unit), first,
                      problem.black_border};
  nb::gil_scoped_release release;
  const Encoded encoded = encode_for_equality(problem);
  active_distance_kernels().axis(encoded.codes, pass, problem.threads);
}

// One image in pixels of one size, whatever its axes.
void rectify(const MapProblem& problem, Address field, Address squared_max) {
  require(problem.labels.batch == 1, "shape: expected one image");
  if (problem.empty()) return;
  nb::gil_scoped_release release;
  const Encoded encoded = encode(problem, nullptr);
  const auto maxima = make_array<float>(encoded.codes.size, true);
  if (squared_max != 0)
    std::copy_n(pointer<const float>(squared_max), std::min(problem.classes.num_classes, encoded.codes.size),
                maxima.get());
  const RectifiedMap map{problem.classes.num_classes, problem.class_max, maxima.get(), pointer<float>(field)};
  active_map_kernels().rectify(encoded.codes, map, problem.grid, problem.threads);
}

}  // namespace

void bind_axis(nb::module_& m) {
  m.def("axis_pass", &axis_pass, nb::arg("problem"), nb::kw_only(), nb::arg("field"), nb::arg("unit"),
        nb::arg("first"));
  m.def("rectify", &rectify, nb::arg("problem"), nb::kw_only(), nb::arg("field"), nb::arg("squared_max"));
}

}  // namespace rwk
