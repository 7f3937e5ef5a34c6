// Python's way to the distance transforms and maps: checks sizes, owns working memory, lets go of the GIL.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>

#include "bind.hpp"
#include "distance.hpp"
#include "encoding.hpp"
#include "maps.hpp"
#include "reverse_axes.hpp"

namespace nb = nanobind;

namespace rwk {
namespace {

Float float_type(const std::string& code) {
  if (code == "f4") return Float::f4;
  if (code == "f8") return Float::f8;
  if (code == "bf") return Float::bf;
  if (code == "f2") return Float::f2;
  throw std::invalid_argument("out_code: expected one of f4, f8, bf, f2, got '" + code + "'");
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

Grid make_grid(const Dims& dims, int axes, const Spacing& spacing, bool black_border) {
  if (axes < 1 || axes > 3) throw std::invalid_argument("axes: expected 1, 2 or 3, got " + std::to_string(axes));
  Grid grid;
  grid.batch = std::get<0>(dims);
  const std::int64_t length[3] = {std::get<1>(dims), std::get<2>(dims), std::get<3>(dims)};
  const double size[3] = {std::get<0>(spacing), std::get<1>(spacing), std::get<2>(spacing)};
  double least = std::numeric_limits<double>::infinity(), most = 0;
  for (int axis = 0; axis < 3; ++axis) {
    const bool real = axis >= 3 - axes;
    if (!real && length[axis] != 1) throw std::invalid_argument("dims: expected length 1 on axes that are not there");
    if (axis < 2 && length[axis] > std::numeric_limits<std::int32_t>::max() - 1)
      throw std::invalid_argument("dims: expected fewer than 2^31 rows along an axis");
    if (!(size[axis] > 0) || !std::isfinite(size[axis]))
      throw std::invalid_argument("spacing: expected positive finite numbers, got " + std::to_string(size[axis]));
    grid.length[axis] = length[axis];
    grid.spacing[axis] = real ? size[axis] : size[2];
    grid.bounded[axis] = real && black_border;
    least = std::min(least, grid.spacing[axis]);
    most = std::max(most, grid.spacing[axis]);
  }
  // Squares of both, and of a whole axis, must fit a float.
  if (most / least > 1e12) throw std::invalid_argument("spacing: expected a ratio of at most 1e12 between axes");
  drop_trailing_axes(grid);
  return grid;
}

Array<RowRange> class_rows(const Codes& codes, std::int64_t num_classes, const Grid& grid, int threads) {
  auto ranges = make_array<RowRange>(grid.batch * num_classes * grid.length[0]);
  active_distance_kernels().class_rows(codes, num_classes, grid, ranges.get(), threads);
  return ranges;
}

void distance(Address data, const std::string& code, Address out, const Dims& dims, int axes, const Spacing& spacing,
              bool squared, bool black_border, int threads) {
  const Labels labels = make_labels(data, code, dims);
  const Grid grid = make_grid(dims, axes, spacing, black_border);
  if (empty(labels)) return;
  nb::gil_scoped_release release;
  threads = useful_threads(labels, threads);
  const Encoded encoded = encode_for_equality(labels, threads);
  active_distance_kernels().distance(encoded.codes, pointer<float>(out), grid, squared, threads);
}

std::int64_t class_distance(Address data, const std::string& code, Address out, const Dims& dims, int axes,
                            const Spacing& spacing, std::int64_t num_classes, bool squared, const Ignore& ignore,
                            bool validate, int threads) {
  const Labels labels = make_labels(data, code, dims);
  const Grid grid = make_grid(dims, axes, spacing, false);
  const Classes classes = make_classes(num_classes, ignore);
  if (empty(labels)) return -1;
  nb::gil_scoped_release release;
  threads = useful_threads(labels, threads);
  const Encoded encoded = encode(labels, classes, nullptr, threads);
  if (validate && encoded.first_bad >= 0) return encoded.first_bad;
  const auto ranges = class_rows(encoded.codes, num_classes, grid, threads);
  active_distance_kernels().class_distance(encoded.codes, num_classes, ranges.get(), pointer<float>(out), grid, squared,
                                           threads);
  return -1;
}

// -2 - (b * num_classes + k) of the first class that is present and whose class_max is no positive finite number.
std::int64_t bad_class_max(const RectifiedMap& map, std::int64_t batch, std::int64_t codes) {
  for (std::int64_t b = 0; b < batch; ++b)
    for (std::int64_t k = 0; k < std::min(map.num_classes, codes); ++k) {
      const float given = map.class_max[b * map.num_classes + k];
      const bool present = map.maxima[b * codes + k] > 0;
      if (present && !(given > 0 && std::isfinite(given))) return -2 - (b * map.num_classes + k);
    }
  return -1;
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

// The foreground into `field`, or, over working memory of this size, its codes into `codes`.
std::int64_t rectified_codes(Address data, const std::string& code, Address field, Address codes, int code_bytes,
                             Address largest, Address count, const Dims& dims, int axes, const Spacing& spacing,
                             std::int64_t num_classes, Address class_max, const Ignore& ignore, bool black_border,
                             bool validate, int threads) {
  const Labels labels = make_labels(data, code, dims);
  const Grid grid = make_grid(dims, axes, spacing, black_border);
  const Classes classes = make_classes(num_classes, ignore);
  if (code_bytes < 0 || code_bytes > 2) throw std::invalid_argument("code_bytes: expected 0, 1 or 2");
  if (empty(labels)) {
    if (count != 0) std::fill_n(pointer<std::int64_t>(count), labels.batch, 0);
    if (largest != 0) std::fill_n(pointer<float>(largest), labels.batch * num_classes, 0.0f);
    return -1;
  }
  nb::gil_scoped_release release;
  threads = useful_threads(labels, threads);
  const Encoded encoded = encode(labels, classes, pointer<std::int64_t>(count), threads);
  if (validate && encoded.first_bad >= 0) return encoded.first_bad;
  const auto maxima = make_array<float>(grid.batch * encoded.codes.size, true);
  const RectifiedMap map{num_classes,           pointer<const float>(class_max), maxima.get(),
                         pointer<float>(field), pointer<void>(codes),            code_bytes};
  active_map_kernels().rectified(encoded.codes, map, grid, threads);
  if (largest != 0) write_largest(maxima.get(), encoded.codes.size, num_classes, grid, pointer<float>(largest));
  return class_max != 0 ? bad_class_max(map, grid.batch, encoded.codes.size) : -1;
}

std::int64_t rectified(Address data, const std::string& code, Address foreground, Address count, const Dims& dims,
                       int axes, const Spacing& spacing, std::int64_t num_classes, Address class_max,
                       const Ignore& ignore, bool black_border, bool validate, int threads) {
  return rectified_codes(data, code, foreground, 0, 0, 0, count, dims, axes, spacing, num_classes, class_max, ignore,
                         black_border, validate, threads);
}

void class_max(Address data, const std::string& code, Address distance, Address out, const Dims& dims,
               std::int64_t num_classes, int threads) {
  const Labels labels = make_labels(data, code, dims);
  const Classes classes = make_classes(num_classes, std::nullopt);
  std::fill_n(pointer<float>(out), labels.batch * num_classes, 0.0f);
  if (empty(labels)) return;
  nb::gil_scoped_release release;
  threads = useful_threads(labels, threads);
  const Encoded encoded = encode(labels, classes, nullptr, threads);
  const std::int64_t size = encoded.codes.size;
  const auto maxima = make_array<float>(labels.batch * size, true);
  active_map_kernels().class_max(encoded.codes, pointer<const float>(distance), maxima.get(), labels.batch,
                                 labels.pixels, threads);
  for (std::int64_t b = 0; b < labels.batch; ++b)
    std::copy_n(maxima.get() + b * size, std::min(size, num_classes), pointer<float>(out) + b * num_classes);
}

std::int64_t boundary(Address data, const std::string& code, Address out, const Dims& dims, int axes,
                      const Spacing& spacing, std::int64_t num_classes, const Ignore& ignore, double absent,
                      double inside_offset, bool black_border, bool validate, int threads) {
  const Labels labels = make_labels(data, code, dims);
  const Grid grid = make_grid(dims, axes, spacing, black_border);
  const Classes classes = make_classes(num_classes, ignore);
  if (empty(labels)) return -1;
  nb::gil_scoped_release release;
  threads = useful_threads(labels, threads);
  const Encoded encoded = encode(labels, classes, nullptr, threads);
  if (validate && encoded.first_bad >= 0) return encoded.first_bad;
  const auto ranges = class_rows(encoded.codes, num_classes, grid, threads);
  const auto inside = make_array<float>(labels.batch * labels.pixels);
  const BoundaryMap map{num_classes,        ranges.get(),
                        inside.get(),       pointer<float>(out),
                        static_cast<float>(absent), static_cast<float>(inside_offset)};
  active_map_kernels().boundary(encoded.codes, map, grid, threads);
  return -1;
}

void dense(Address data, const std::string& code, Address foreground, Address background, double background_value,
           Address class_scale, Address out, const std::string& out_code, const Dims& dims, std::int64_t num_classes,
           const Ignore& ignore, int threads) {
  const Labels labels = make_labels(data, code, dims);
  const DenseMap map{&labels,
                     make_classes(num_classes, ignore),
                     pointer<const float>(foreground),
                     pointer<const float>(background),
                     static_cast<float>(background_value),
                     pointer<const float>(class_scale),
                     pointer<void>(out),
                     float_type(out_code)};
  if (empty(labels)) return;
  nb::gil_scoped_release release;
  active_map_kernels().dense(map, useful_threads(labels, threads));
}

std::int64_t first_bad_label(Address data, const std::string& code, std::int64_t n, std::int64_t num_classes,
                             const Ignore& ignore, int threads) {
  const Labels labels = make_labels(data, code, {1, 1, 1, n});
  const Classes classes = make_classes(num_classes, ignore);
  if (empty(labels)) return -1;
  nb::gil_scoped_release release;
  return find_bad_label(labels, classes, threads);
}

void reverse_axes_of_bytes(Address in, Address out, std::int64_t x_length, std::int64_t y_length, std::int64_t z_length,
                           int threads) {
  const Labels labels = make_labels(in, "u1", {1, x_length, y_length, z_length});
  nb::gil_scoped_release release;
  reverse_axes(pointer<const std::uint8_t>(in), pointer<std::uint8_t>(out), x_length, y_length, z_length,
               useful_threads(labels, threads));
}

}  // namespace

void bind_distance(nb::module_& m) {
  m.def("distance", &distance, nb::arg("labels"), nb::arg("code"), nb::arg("out"), nb::arg("dims"), nb::arg("axes"),
        nb::arg("spacing"), nb::arg("squared"), nb::arg("black_border"), nb::arg("threads"));
  m.def("class_distance", &class_distance, nb::arg("labels"), nb::arg("code"), nb::arg("out"), nb::arg("dims"),
        nb::arg("axes"), nb::arg("spacing"), nb::arg("num_classes"), nb::arg("squared"), nb::arg("ignore").none(),
        nb::arg("validate"), nb::arg("threads"));
  m.def("rectified", &rectified, nb::arg("labels"), nb::arg("code"), nb::arg("foreground_out"), nb::arg("count_out"),
        nb::arg("dims"), nb::arg("axes"), nb::arg("spacing"), nb::arg("num_classes"), nb::arg("class_max"),
        nb::arg("ignore").none(), nb::arg("black_border"), nb::arg("validate"), nb::arg("threads"));
  m.def("rectified_codes", &rectified_codes, nb::kw_only(), nb::arg("labels"), nb::arg("code"), nb::arg("field"),
        nb::arg("codes"), nb::arg("code_bytes"), nb::arg("largest"), nb::arg("count"), nb::arg("dims"),
        nb::arg("axes"), nb::arg("spacing"), nb::arg("num_classes"), nb::arg("class_max"), nb::arg("ignore").none(),
        nb::arg("black_border"), nb::arg("validate"), nb::arg("threads"));
  m.def("class_max", &class_max, nb::arg("labels"), nb::arg("code"), nb::arg("distance"), nb::arg("out"),
        nb::arg("dims"), nb::arg("num_classes"), nb::arg("threads"));
  m.def("boundary", &boundary, nb::arg("labels"), nb::arg("code"), nb::arg("out"), nb::arg("dims"), nb::arg("axes"),
        nb::arg("spacing"), nb::arg("num_classes"), nb::arg("ignore").none(), nb::arg("absent"),
        nb::arg("inside_offset"), nb::arg("black_border"), nb::arg("validate"), nb::arg("threads"));
  m.def("dense", &dense, nb::arg("labels"), nb::arg("code"), nb::arg("foreground"), nb::arg("background"),
        nb::arg("background_value"), nb::arg("class_scale"), nb::arg("out"), nb::arg("out_code"), nb::arg("dims"),
        nb::arg("num_classes"), nb::arg("ignore").none(), nb::arg("threads"));
  m.def("reverse_axes", &reverse_axes_of_bytes, nb::arg("bytes"), nb::arg("out"), nb::arg("x_length"),
        nb::arg("y_length"), nb::arg("z_length"), nb::arg("threads"));
  m.def("first_bad_label", &first_bad_label, nb::arg("labels"), nb::arg("code"), nb::arg("n"), nb::arg("num_classes"),
        nb::arg("ignore").none(), nb::arg("threads"));
}

}  // namespace rwk
