#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "bind.hpp"
#include "loss.hpp"

namespace nb = nanobind;

namespace rwk {
namespace {

using Address = std::uintptr_t;
using Ints = std::vector<std::int64_t>;

void require(bool holds, const char* message) {
  if (!holds) throw std::invalid_argument(message);
}

Real real(const std::string& code, const char* what) {
  if (code == "f4") return Real::f32;
  if (code == "f8") return Real::f64;
  if (code == "bf") return Real::bf16;
  if (code == "f2") return Real::f16;
  throw std::invalid_argument(std::string(what) + ": expected f4, f8, bf or f2, got '" + code + "'");
}

Label label(const std::string& code) {
  if (code == "u1") return Label::u8;
  if (code == "i1") return Label::i8;
  if (code == "i2") return Label::i16;
  if (code == "i4") return Label::i32;
  if (code == "i8") return Label::i64;
  throw std::invalid_argument("label_code: expected u1, i1, i2, i4 or i8, got '" + code + "'");
}

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

Tensor tensor(Address data, Real dtype, const Ints& strides, const char* what) {
  if (strides.size() != 5)
    throw std::invalid_argument(std::string(what) + ": expected 5 strides, got " + std::to_string(strides.size()));
  Tensor t{pointer<void>(data), dtype, {}};
  for (int a = 0; a < 5; ++a) {
    if (strides[a] < 0)
      throw std::invalid_argument(std::string(what) + ": expected strides of 0 or more, got " +
                                  std::to_string(strides[a]));
    t.stride[a] = strides[a];
  }
  return t;
}

void read_sizes(const Ints& sizes, RegionWise& task) {
  require(sizes.size() == 5, "sizes: expected [B, K, S0, S1, S2]");
  std::int64_t product = 1;
  for (int a = 0; a < 5; ++a) {
    require(sizes[a] >= 0, "sizes: expected numbers of 0 or more");
    task.sizes[a] = sizes[a];
    // An empty axis must not hide that the others overflow.
    require(!__builtin_mul_overflow(product, sizes[a] > 0 ? sizes[a] : 1, &product), "sizes: too many elements");
  }
  require(sizes[1] >= 1, "sizes: expected at least one class");
  require(sizes[1] <= std::numeric_limits<std::int32_t>::max(), "sizes: too many classes");
}

void check(const RegionWise& task) {
  const bool any = task.sizes[0] * task.pixels() > 0;
  require(!any || task.logits.data, "logits: missing");
  require(!any || task.map.data, "map: missing");
  if (task.compact) {
    require(task.map.dtype == Real::f32 || task.map.dtype == Real::f64,
            "map_dtype: expected f4 or f8 for a compact map");
    require(!any || task.labels, "labels: a compact map needs them");
  } else {
    require(!task.background, "background: a dense map has none");
  }
  require(!any || !task.has_ignore || task.labels, "labels: ignore needs them");
  require(task.scale_groups >= 1 && task.sizes[0] % task.scale_groups == 0,
          "scale_groups: expected a divisor of the number of images");
  require(task.threads >= 1, "threads: expected at least 1");
}

std::int64_t region_wise(Address logits, const std::string& dtype, const Ints& sizes, const Ints& strides, Address map,
                         const std::string& map_dtype, const Ints& map_strides, bool compact, Address labels,
                         const std::string& label_code, std::optional<std::int64_t> ignore, Address background,
                         double background_value, Address class_scale, std::int64_t scale_groups, Address image_scale,
                         Address pixel_scale, Address grad, const Ints& grad_strides, Address image_sums,
                         Address pixel_loss, bool validate, int threads) {
  RegionWise task;
  read_sizes(sizes, task);
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
  check(task);
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
