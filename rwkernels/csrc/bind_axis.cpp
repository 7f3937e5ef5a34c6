// Python's way to single steps of the transform, for images that are cut into blocks: one axis over whole lines, and
// Eq. 4 once the largest distances are known.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <cmath>
#include <limits>
#include <stdexcept>

#include "bind.hpp"
#include "encoding.hpp"
#include "maps.hpp"

namespace nb = nanobind;

namespace rwk {
namespace {

void axis_pass(Address data, const std::string& code, Address field, std::int64_t outer, std::int64_t n,
               std::int64_t inner, double unit, bool first, bool bounded, int threads) {
  const Labels labels = make_labels(data, code, {1, outer, n, inner});
  if (first && inner != 1) throw std::invalid_argument("inner: expected 1 on the first axis");
  if (n > std::numeric_limits<std::int32_t>::max() - 1 && !first)
    throw std::invalid_argument("n: expected fewer than 2^31 rows along an axis");
  if (!(unit > 0) || !std::isfinite(unit)) throw std::invalid_argument("unit: expected a positive finite number");
  if (empty(labels)) return;
  const AxisPass pass{outer, n, inner, pointer<float>(field), static_cast<float>(unit), first, bounded};
  nb::gil_scoped_release release;
  threads = useful_threads(labels, threads);
  const Encoded encoded = encode_for_equality(labels, threads);
  active_distance_kernels().axis(encoded.codes, pass, threads);
}

void rectify(Address data, const std::string& code, Address field, std::int64_t n, std::int64_t num_classes,
             Address squared_max, Address class_max, double spacing, const Ignore& ignore, int threads) {
  const Labels labels = make_labels(data, code, {1, 1, 1, n});
  const Classes classes = make_classes(num_classes, ignore);
  if (empty(labels)) return;
  Grid grid;
  grid.batch = 1;
  grid.length[2] = n;
  grid.spacing[2] = spacing;
  nb::gil_scoped_release release;
  threads = useful_threads(labels, threads);
  const Encoded encoded = encode(labels, classes, nullptr, threads);
  const auto maxima = make_array<float>(encoded.codes.size, true);
  if (squared_max != 0)
    std::copy_n(pointer<const float>(squared_max), std::min(num_classes, encoded.codes.size), maxima.get());
  const RectifiedMap map{num_classes, pointer<const float>(class_max), maxima.get(), pointer<float>(field)};
  active_map_kernels().rectify(encoded.codes, map, grid, threads);
}

}  // namespace

void bind_axis(nb::module_& m) {
  m.def("axis_pass", &axis_pass, nb::kw_only(), nb::arg("labels"), nb::arg("code"), nb::arg("field"), nb::arg("outer"),
        nb::arg("n"), nb::arg("inner"), nb::arg("unit"), nb::arg("first"), nb::arg("bounded"), nb::arg("threads"));
  m.def("rectify", &rectify, nb::kw_only(), nb::arg("labels"), nb::arg("code"), nb::arg("field"), nb::arg("n"),
        nb::arg("num_classes"), nb::arg("squared_max"), nb::arg("class_max"), nb::arg("spacing"),
        nb::arg("ignore").none(), nb::arg("threads"));
}

}  // namespace rwk
