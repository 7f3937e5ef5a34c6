#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>

#include "bind.hpp"
#include "bind_tensors.hpp"
#include "negatives.hpp"

namespace nb = nanobind;

namespace rwk {
namespace {

std::int64_t negatives(Address values, const std::string& dtype, const Ints& sizes, const Ints& strides, Address map,
                       const std::string& map_dtype, const Ints& map_strides, bool compact, Address labels,
                       const std::string& label_code, std::optional<std::int64_t> ignore, Address background,
                       double background_value, Address class_scale, std::int64_t scale_groups, bool probabilities,
                       bool wrong, Address out, bool validate, int threads) {
  Negatives task;
  read_sizes(sizes, task.sizes);
  task.values = tensor(values, real(dtype, "dtype"), strides, "strides");
  task.map = Tensor{pointer<void>(map), real(map_dtype, "map_dtype"), {}};
  if (!compact) task.map = tensor(map, task.map.dtype, map_strides, "map_strides");
  task.compact = compact;
  task.labels = pointer<void>(labels);
  if (labels) task.label_type = label(label_code);
  task.has_ignore = ignore.has_value();
  task.ignore = ignore.value_or(0);
  task.background = pointer<void>(background);
  task.background_value = background_value;
  task.class_scale = pointer<double>(class_scale);
  task.scale_groups = scale_groups;
  task.probabilities = probabilities;
  task.wrong = wrong;
  task.out = pointer<std::int32_t>(out);
  task.threads = threads;
  const bool any = task.sizes[0] * task.pixels() > 0;
  require(!any || task.values.data, "values: missing");
  require(!any || task.out, "out: missing");
  require(!any || !wrong || task.labels, "labels: wrong signs need them");
  check_map(task);
  const std::int64_t bad = active_negatives_kernels().count(task);
  return validate ? bad : -1;
}

}  // namespace

void bind_negatives(nb::module_& m) {
  m.def("negatives", &negatives, nb::kw_only(), nb::arg("values"), nb::arg("dtype"), nb::arg("sizes"),
        nb::arg("strides"), nb::arg("map"), nb::arg("map_dtype"), nb::arg("map_strides"), nb::arg("compact"),
        nb::arg("labels"), nb::arg("label_code"), nb::arg("ignore").none(), nb::arg("background"),
        nb::arg("background_value"), nb::arg("class_scale"), nb::arg("scale_groups"), nb::arg("probabilities"),
        nb::arg("wrong"), nb::arg("out"), nb::arg("validate"), nb::arg("threads"),
        nb::call_guard<nb::gil_scoped_release>(),
        "How many entries of every pixel's gradient are negative, or wrong. Returns the lowest flat index of a label "
        "that is neither a class nor ignored, or -1.");
}

}  // namespace rwk
