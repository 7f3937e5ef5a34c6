// Python's way to the loss and to the signs of its gradient.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "bad_value.hpp"
#include "bind.hpp"
#include "loss.hpp"
#include "negatives.hpp"

namespace nb = nanobind;

namespace rwk {
namespace {

void region_wise(const LossProblem& problem, Address grad, const Ints& grad_strides, Address image_scale,
                 Address pixel_scale, Address image_sums, Address pixel_loss) {
  LossPass pass;
  if (grad) pass.grad = tensor(grad, problem.logits.dtype, grad_strides, "grad_strides");
  pass.image_scale = pointer<const double>(image_scale);
  pass.pixel_scale = pointer<const void>(pixel_scale);
  pass.image_sums = pointer<double>(image_sums);
  pass.pixel_loss = pointer<void>(pixel_loss);
  nb::gil_scoped_release release;
  const std::int64_t bad = active_loss_kernels().region_wise(problem, pass);
  if (problem.validate) require_no_bad_label(bad);
}

void negatives(const LossProblem& problem, bool probabilities, bool wrong, Address out) {
  const bool any = problem.sizes[0] * problem.pixels() > 0;
  require(!any || out != 0, "out: missing");
  require(!any || !wrong || problem.labels.data, "labels: wrong signs need them");
  const NegativesCount task{probabilities, wrong, pointer<std::int32_t>(out)};
  nb::gil_scoped_release release;
  const std::int64_t bad = active_negatives_kernels().count(problem, task);
  if (problem.validate) require_no_bad_label(bad);
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
  m.def("region_wise", &region_wise, nb::arg("problem"), nb::kw_only(), nb::arg("grad"), nb::arg("grad_strides"),
        nb::arg("image_scale"), nb::arg("pixel_scale"), nb::arg("image_sums"), nb::arg("pixel_loss"),
        "Loss and gradient in one pass. Raises BadValue once everything is written.");
  m.def("negatives", &negatives, nb::arg("problem"), nb::kw_only(), nb::arg("probabilities"), nb::arg("wrong"),
        nb::arg("out"),
        "How many entries of every pixel's gradient are negative, or wrong. Raises BadValue once everything is "
        "written.");
  m.def("advise_huge_pages", &advise_huge_pages, nb::kw_only(), nb::arg("address"), nb::arg("bytes"),
        "Asks for huge pages under a buffer that nobody has written yet; says whether the system agreed.");
}

}  // namespace rwk
