// What Python says of a problem, read and checked once for all functions that take it.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <new>
#include <optional>

#include "bind.hpp"
#include "loss.hpp"
#include "maps.hpp"

namespace nb = nanobind;

namespace rwk {

Real real(const std::string& code, const char* what) {
  if (code == "f4") return Real::f32;
  if (code == "f8") return Real::f64;
  if (code == "bf") return Real::bf16;
  if (code == "f2") return Real::f16;
  throw std::invalid_argument(std::string(what) + ": expected f4, f8, bf or f2, got '" + code + "'");
}

Tensor tensor(Address data, Real dtype, const Ints& strides, const char* what) {
  const std::size_t given = strides.size();
  if (given < 2 || given > 5)
    throw std::invalid_argument(std::string(what) + ": expected 2 to 5 strides, got " + std::to_string(given));
  Tensor t{pointer<void>(data), dtype, {0, 0, 1, 1, 1}};
  for (std::size_t a = 0; a < given; ++a) {
    if (strides[a] < 0)
      throw std::invalid_argument(std::string(what) + ": expected strides of 0 or more, got " +
                                  std::to_string(strides[a]));
    t.stride[a < 2 ? a : a + 5 - given] = strides[a];
  }
  return t;
}

std::int64_t count_of(const Ints& shape) {
  std::int64_t product = 1;
  bool empty = false;
  for (const std::int64_t length : shape) {
    require(length >= 0, "shape: expected numbers of 0 or more");
    empty |= length == 0;
    // An empty axis must not hide that the others overflow.
    require(!__builtin_mul_overflow(product, length > 0 ? length : 1, &product) &&
                product <= std::numeric_limits<std::int64_t>::max() / 8,
            "shape: more elements than memory can hold");
  }
  return empty ? 0 : product;
}

int useful_threads(std::int64_t pixels, int threads) { return pixels < (1 << 17) ? 1 : std::max(threads, 1); }

namespace {

using Ignore = std::optional<std::int64_t>;

Label label(const std::string& code) {
  if (code == "u1") return Label::u8;
  if (code == "i1") return Label::i8;
  if (code == "i2") return Label::i16;
  if (code == "i4") return Label::i32;
  if (code == "i8") return Label::i64;
  throw std::invalid_argument("label_dtype: expected u1, i1, i2, i4 or i8, got '" + code + "'");
}

Classes make_classes(std::int64_t num_classes, const Ignore& ignore) {
  constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max() - 2;
  if (num_classes < 0 || num_classes > most)
    throw std::invalid_argument("num_classes: expected 0 to " + std::to_string(most) + ", got " +
                                std::to_string(num_classes));
  return {num_classes, ignore.has_value(), ignore.value_or(0)};
}

// Axes of length 1 at the end only cost time: columns are fast where pixels lie side by side.
void drop_trailing_axes(Grid& grid) {
  for (int i = 0; i < 2 && grid.length[2] == 1 && !grid.bounded[2]; ++i) {
    for (int axis = 2; axis > 0; --axis) {
      grid.length[axis] = grid.length[axis - 1];
      grid.spacing[axis] = grid.spacing[axis - 1];
      grid.bounded[axis] = grid.bounded[axis - 1];
    }
    grid.length[0] = 1;
    grid.bounded[0] = false;
  }
}

// Of a shape [B, *S], with a spacing for every axis of S, or none for 1 everywhere.
Grid make_grid(const Ints& shape, const std::vector<double>& spacing, bool black_border) {
  const std::size_t axes = shape.size() - 1;
  require(spacing.empty() || spacing.size() == axes, "spacing: expected one number for every spatial axis, or none");
  Grid grid;
  grid.batch = shape[0];
  for (std::size_t i = 0; i < axes; ++i) {
    const std::size_t axis = 3 - axes + i;
    if (axis < 2 && shape[1 + i] > std::numeric_limits<std::int32_t>::max() - 1)
      throw std::invalid_argument("shape: expected fewer than 2^31 rows along an axis");
    grid.length[axis] = shape[1 + i];
    grid.bounded[axis] = black_border;
    if (!spacing.empty()) grid.spacing[axis] = spacing[i];
    if (!(grid.spacing[axis] > 0) || !std::isfinite(grid.spacing[axis]))
      throw std::invalid_argument("spacing: expected positive finite numbers, got " +
                                  std::to_string(grid.spacing[axis]));
  }
  for (std::size_t axis = 0; axis < 3 - axes; ++axis) grid.spacing[axis] = grid.spacing[2];
  const auto [least, most] = std::minmax_element(grid.spacing, grid.spacing + 3);
  // Squares of both, and of a whole axis, must fit a float.
  if (*most / *least > 1e12) throw std::invalid_argument("spacing: expected a ratio of at most 1e12 between axes");
  drop_trailing_axes(grid);
  return grid;
}

void make_map_problem(MapProblem* self, Address labels, const std::string& label_dtype, const Ints& shape,
                      const std::vector<double>& spacing, bool black_border, std::int64_t num_classes,
                      Address class_max, const Ignore& ignore, bool validate, int threads) {
  require(shape.size() >= 2 && shape.size() <= 4, "shape: expected [B, *S] with 1 to 3 spatial axes");
  const std::int64_t pixels = count_of({shape.begin() + 1, shape.end()}), all = count_of(shape);
  MapProblem problem;
  problem.labels = {pointer<const void>(labels), label(label_dtype), shape[0], pixels};
  problem.shape = shape;
  problem.grid = make_grid(shape, spacing, black_border);
  problem.black_border = black_border;
  problem.classes = make_classes(num_classes, ignore);
  problem.class_max = pointer<const float>(class_max);
  problem.validate = validate;
  problem.threads = useful_threads(all, threads);
  require(problem.empty() || labels != 0, "labels: missing");
  new (self) MapProblem(std::move(problem));
}

void check(const LossProblem& problem) {
  const bool any = problem.sizes[0] * problem.pixels() > 0;
  require(problem.classes.num_classes >= 1, "shape: expected at least one class");
  require(!any || problem.logits.data, "logits: missing");
  require(!any || problem.map.data || !problem.has_map, "map: missing");
  if (problem.compact) {
    require(problem.map.dtype == Real::f32 || problem.map.dtype == Real::f64,
            "map_dtype: expected f4 or f8 for a compact map");
    require(!any || problem.labels.data, "labels: a compact map needs them");
  } else {
    require(!problem.background, "background: a dense map has none");
  }
  require(!any || !problem.classes.has_ignore || problem.labels.data, "labels: ignore needs them");
  require(problem.scale_groups >= 1 && problem.sizes[0] % problem.scale_groups == 0,
          "scale_groups: expected a divisor of the number of images");
  require(problem.threads >= 1, "threads: expected at least 1");
}

void make_loss_problem(LossProblem* self, Address logits, const std::string& dtype, const Ints& shape,
                       const Ints& strides, Address map, const std::optional<std::string>& map_dtype,
                       const std::optional<Ints>& map_strides, Address labels, const std::string& label_dtype,
                       const Ignore& ignore, Address background, double background_value, Address class_scale,
                       std::int64_t scale_groups, bool validate, int threads) {
  require(shape.size() >= 2 && shape.size() <= 5, "shape: expected [B, K, *S] with at most 3 spatial axes");
  count_of(shape);
  LossProblem problem;
  std::fill_n(problem.sizes, 5, 1);
  for (std::size_t a = 0; a < shape.size(); ++a) problem.sizes[a < 2 ? a : a + 5 - shape.size()] = shape[a];
  problem.logits = tensor(logits, real(dtype, "dtype"), strides, "strides");
  problem.has_map = map_dtype.has_value();
  const Real map_type = problem.has_map ? real(*map_dtype, "map_dtype") : Real::f32;
  problem.compact = !map_strides.has_value();
  problem.map = problem.compact ? Tensor{pointer<void>(map), map_type, {}}
                                : tensor(map, map_type, *map_strides, "map_strides");
  problem.labels = {pointer<const void>(labels), label(label_dtype), problem.sizes[0], problem.pixels()};
  problem.classes = make_classes(problem.sizes[1], ignore);
  problem.background = pointer<const void>(background);
  problem.background_value = background_value;
  problem.class_scale = pointer<const double>(class_scale);
  problem.scale_groups = scale_groups;
  problem.validate = validate;
  problem.threads = threads;
  check(problem);
  new (self) LossProblem(problem);
}

}  // namespace

void bind_problems(nb::module_& m) {
  nb::class_<MapProblem>(m, "MapProblem",
                         "What distances and maps are computed from: labels [B, *S] that lie side by side. It holds "
                         "addresses alone; whoever makes it keeps the arrays.")
      .def("__init__", &make_map_problem, nb::kw_only(), nb::arg("labels"), nb::arg("label_dtype"), nb::arg("shape"),
           nb::arg("spacing"), nb::arg("black_border"), nb::arg("num_classes"), nb::arg("class_max"),
           nb::arg("ignore").none(), nb::arg("validate"), nb::arg("threads"));
  nb::class_<LossProblem>(m, "LossProblem",
                          "What the loss is computed from: logits [B, K, *S] with strides in elements, and a dense map "
                          "of that shape or, without strides, the foreground [B, *S] of a compact one; or no map, "
                          "where it has no dtype. It holds "
                          "addresses alone; whoever makes it keeps the arrays.")
      .def("__init__", &make_loss_problem, nb::kw_only(), nb::arg("logits"), nb::arg("dtype"), nb::arg("shape"),
           nb::arg("strides"), nb::arg("map"), nb::arg("map_dtype").none(), nb::arg("map_strides").none(), nb::arg("labels"),
           nb::arg("label_dtype"), nb::arg("ignore").none(), nb::arg("background"), nb::arg("background_value"),
           nb::arg("class_scale"), nb::arg("scale_groups"), nb::arg("validate"), nb::arg("threads"));
}

}  // namespace rwk
