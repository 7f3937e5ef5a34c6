// Python's way to the distance transforms and maps: checks sizes, owns working memory, lets go of the GIL.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <algorithm>

#include "bind.hpp"
#include "encoding.hpp"
#include "maps.hpp"
#include "rectified.hpp"

namespace nb = nanobind;

namespace rwk {
namespace {

Array<RowRange> class_rows(const Codes& codes, const MapProblem& problem) {
  const Grid& grid = problem.grid;
  auto ranges = make_array<RowRange>(grid.batch * problem.classes.num_classes * grid.length[0]);
  active_distance_kernels().class_rows(codes, problem.classes.num_classes, grid, ranges.get(), problem.threads);
  return ranges;
}

void distance(const MapProblem& problem, Address out, bool squared) {
  if (problem.empty()) return;
  nb::gil_scoped_release release;
  const Encoded encoded = encode_for_equality(problem);
  active_distance_kernels().distance(encoded.codes, pointer<float>(out), problem.grid, squared, problem.threads);
}

void class_distance(const MapProblem& problem, Address out, bool squared) {
  require(!problem.black_border, "black_border: the outside of an image is no pixel of any class");
  if (problem.empty()) return;
  nb::gil_scoped_release release;
  const Encoded encoded = encode(problem, nullptr);
  const auto ranges = class_rows(encoded.codes, problem);
  active_distance_kernels().class_distance(encoded.codes, problem.classes.num_classes, ranges.get(),
                                           pointer<float>(out), problem.grid, squared, problem.threads);
}

// The foreground into `field`, or, over working memory of this size, its codes into `codes`.
void rectified(const MapProblem& problem, Address field, Address count, Address codes, int code_bytes,
               Address largest) {
  require(code_bytes >= 0 && code_bytes <= 2, "code_bytes: expected 0, 1 or 2");
  const Grid& grid = problem.grid;
  const std::int64_t num_classes = problem.classes.num_classes;
  if (problem.empty()) {
    if (count != 0) std::fill_n(pointer<std::int64_t>(count), grid.batch, 0);
    if (largest != 0) std::fill_n(pointer<float>(largest), grid.batch * num_classes, 0.0f);
    return;
  }
  nb::gil_scoped_release release;
  const RectifiedOutput out{pointer<float>(field), pointer<std::int64_t>(count), pointer<void>(codes), code_bytes,
                            pointer<float>(largest)};
  make_rectified(problem, out);
}

void class_max(const MapProblem& problem, Address distance, Address out) {
  const std::int64_t num_classes = problem.classes.num_classes, batch = problem.labels.batch;
  std::fill_n(pointer<float>(out), batch * num_classes, 0.0f);
  if (problem.empty()) return;
  nb::gil_scoped_release release;
  const Encoded encoded = encode(problem, nullptr);
  const std::int64_t size = encoded.codes.size;
  const auto maxima = make_array<float>(batch * size, true);
  active_map_kernels().class_max(encoded.codes, pointer<const float>(distance), maxima.get(), batch,
                                 problem.labels.pixels, problem.threads);
  for (std::int64_t b = 0; b < batch; ++b)
    std::copy_n(maxima.get() + b * size, std::min(size, num_classes), pointer<float>(out) + b * num_classes);
}

void boundary(const MapProblem& problem, Address out, double absent, double inside_offset) {
  if (problem.empty()) return;
  nb::gil_scoped_release release;
  const Encoded encoded = encode(problem, nullptr);
  const auto ranges = class_rows(encoded.codes, problem);
  const auto inside = make_array<float>(problem.labels.batch * problem.labels.pixels);
  const BoundaryMap map{problem.classes.num_classes, ranges.get(),
                        inside.get(),                pointer<float>(out),
                        static_cast<float>(absent),  static_cast<float>(inside_offset)};
  active_map_kernels().boundary(encoded.codes, map, problem.grid, problem.threads);
}

void dense(const MapProblem& problem, Address foreground, Address background, double background_value,
           Address class_scale, Address out, const std::string& out_dtype) {
  const DenseMap map{&problem.labels,
                     problem.classes,
                     pointer<const float>(foreground),
                     pointer<const float>(background),
                     static_cast<float>(background_value),
                     pointer<const float>(class_scale),
                     pointer<void>(out),
                     real(out_dtype, "out_dtype")};
  if (problem.empty()) return;
  nb::gil_scoped_release release;
  active_map_kernels().dense(map, problem.threads);
}

std::int64_t first_bad_label(const MapProblem& problem) {
  if (problem.empty()) return -1;
  nb::gil_scoped_release release;
  return find_bad_label(problem);
}

}  // namespace

void bind_distance(nb::module_& m) {
  m.def("distance", &distance, nb::arg("problem"), nb::kw_only(), nb::arg("out"), nb::arg("squared"));
  m.def("class_distance", &class_distance, nb::arg("problem"), nb::kw_only(), nb::arg("out"), nb::arg("squared"));
  m.def("rectified", &rectified, nb::arg("problem"), nb::kw_only(), nb::arg("field"), nb::arg("count"),
        nb::arg("codes") = 0, nb::arg("code_bytes") = 0, nb::arg("largest") = 0);
  m.def("class_max", &class_max, nb::arg("problem"), nb::kw_only(), nb::arg("distance"), nb::arg("out"));
  m.def("boundary", &boundary, nb::arg("problem"), nb::kw_only(), nb::arg("out"), nb::arg("absent"),
        nb::arg("inside_offset"));
  m.def("dense", &dense, nb::arg("problem"), nb::kw_only(), nb::arg("foreground"), nb::arg("background"),
        nb::arg("background_value"), nb::arg("class_scale"), nb::arg("out"), nb::arg("out_dtype"));
  m.def("first_bad_label", &first_bad_label, nb::arg("problem"),
        "Flat index of the first label that is neither a class nor ignored; -1 if there is none.");
}

}  // namespace rwk
