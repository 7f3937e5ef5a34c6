#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <optional>
#include <string>
#include <vector>

#include "bind.hpp"
#include "bind_tensors.hpp"
#include "loss.hpp"

namespace nb = nanobind;

namespace rwk {
namespace {

std::int64_t region_wise(Address logits, const std::string& dtype, const Ints& sizes, const Ints& strides, Address map,
                         const std::string& map_dtype, const Ints& map_strides, bool compact, Address labels,
                         const std::string& label_code, std::optional<std::int64_t> ignore, Address background,
                         double background_value, Address class_scale, std::int64_t scale_groups, Address image_scale,
                         Address pixel_scale, Address grad, const Ints& grad_strides, Address image_sums,
                         Address pixel_loss, bool validate, int threads) {
  RegionWise task;
  read_sizes(sizes, task.sizes);
  task.logits = tensor(logits, real(dtype, "dtype"), strides, "strides");
  task.map = Tensor{pointer<void>(map), real(map_dtype, "map_dtype"), {}};
  if (!compact) task.map = tensor(map, task.map.dtype, map_strides, "map_strides");
  if (grad) task.grad = tensor(grad, task.logits.dtype, grad_strides, "grad_strides");
  task.compact = compact;
  task.labels = pointer<void>(labels);
  if (labels) task.label_type = label(label_code);
  task.has_ignore = ignore.has_value();
  task.ignore = ignore.value_or(0);
  task.background = pointer<void>(background);
  task.background_value = background_value;
  task.class_scale = pointer<double>(class_scale);
  task.scale_groups = scale_groups;
  task.image_scale = pointer<double>(image_scale);
  task.pixel_scale = pointer<void>(pixel_scale);
  task.image_sums = pointer<double>(image_sums);
  task.pixel_loss = pointer<void>(pixel_loss);
  task.threads = threads;
  require(task.sizes[0] * task.pixels() == 0 || task.logits.data, "logits: missing");
  check_map(task);
  const std::int64_t bad = active_loss_kernels().region_wise(task);
  return validate ? bad : -1;
}

// A fresh large buffer costs more in page faults than all the arithmetic that fills it: pages of 2 MiB need 512
// times fewer of them. Only whole pages inside the buffer are asked for, and where the system says no nothing is lost.
bool advise_huge_pages(Address address, std::uint64_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr std::uint64_t page = std::uint64_t{2} << 20;
  const Address first = (address + page - 1) / page * page, last = (address + bytes) / page * page;
  return first < last && madvise(pointer<void>(first), last - first, MADV_HUGEPAGE) == 0;
#else
  (void)address, (void)bytes;
  return false;
#endif
}

}  // namespace

void bind_loss(nb::module_& m) {
  m.def("region_wise", &region_wise, nb::kw_only(), nb::arg("logits"), nb::arg("dtype"), nb::arg("sizes"),
        nb::arg("strides"), nb::arg("map"), nb::arg("map_dtype"), nb::arg("map_strides"), nb::arg("compact"),
        nb::arg("labels"), nb::arg("label_code"), nb::arg("ignore").none(), nb::arg("background"),
        nb::arg("background_value"), nb::arg("class_scale"), nb::arg("scale_groups"), nb::arg("image_scale"),
        nb::arg("pixel_scale"), nb::arg("grad"), nb::arg("grad_strides"), nb::arg("image_sums"), nb::arg("pixel_loss"),
        nb::arg("validate"), nb::arg("threads"), nb::call_guard<nb::gil_scoped_release>(),
        "Loss and gradient in one pass. Addresses are integers, 0 where there is nothing. Returns the lowest flat "
        "index of a label that is neither a class nor ignored, or -1.");
  m.def("advise_huge_pages", &advise_huge_pages, nb::kw_only(), nb::arg("address"), nb::arg("bytes"),
        "Asks for huge pages under a buffer that nobody has written yet; says whether the system agreed.");
}

}  // namespace rwk
