// Python's way to the loss and to the signs of its gradient.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <numeric>
#include <optional>
#include <vector>

#include "bad_value.hpp"
#include "bind.hpp"
#include "loss.hpp"
#include "negatives.hpp"
#include "rectified.hpp"

namespace nb = nanobind;

namespace rwk {
namespace {

void require_map(const LossProblem& problem) { require(problem.has_map, "map: missing"); }

void region_wise(const LossProblem& problem, Address grad, const Ints& grad_strides, Address image_scale,
                 Address pixel_scale, Address image_sums, Address pixel_loss) {
  require_map(problem);
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

// A loss whose tensors come anew at every step, in the same shapes and strides: what follows from those is worked out
// once. With a map problem the step begins at the labels, and the map is made first.
class LossPlan {
 public:
  // The addresses in both problems are of no account.
  LossPlan(const LossProblem& problem, const MapProblem* maps, const std::optional<Ints>& grad_strides, bool mean,
           bool divide, std::int64_t channels, double weight)
      : problem_(problem), mean_(mean), divide_(divide), channels_(channels), weight_(weight) {
    require(channels >= 0 && channels <= problem.sizes[1], "channels: expected as many as the logits have, or fewer");
    require(problem.sizes[0] > 0 && problem.pixels() > 0, "shape: expected pixels");
    if (maps != nullptr) {
      require(problem.compact && problem.map.dtype == Real::f32, "maps: expected the problem of a float32 foreground");
      require(maps->labels.batch == problem.sizes[0] && maps->labels.pixels == problem.pixels(),
              "maps: expected as many labels as the logits have pixels");
      maps_ = *maps;
    }
    if (grad_strides) pass_.grad = tensor(0, problem.logits.dtype, *grad_strides, "grad_strides");
  }

  // Writes the map (`map` and `count`, of a plan that makes one), the gradient of the weighted loss, and
  // `before` + weight * loss, which is returned too. BadValue comes before anything but the map is written.
  double run(Address logits, Address map, Address labels, Address background, Address class_scale, Address count,
             Address grad, Address loss, double before, int threads) const {
    LossProblem problem = problem_;
    LossPass pass = pass_;
    problem.logits.data = pointer<void>(logits);
    problem.map.data = pointer<void>(map);
    problem.labels.data = pointer<const void>(labels);
    problem.background = pointer<const void>(background);
    problem.class_scale = pointer<const double>(class_scale);
    problem.threads = std::max(threads, 1);
    pass.grad.data = pointer<void>(grad);
    require(logits && map && loss && (labels || !problem_.labels.data), "a tensor of the problem is missing");
    require(!problem.classes.has_ignore || !mean_ || count, "count: missing");

    nb::gil_scoped_release release;
    if (maps_) {
      MapProblem maps = *maps_;
      maps.labels.data = problem.labels.data;
      maps.threads = useful_threads(maps.labels.batch * maps.labels.pixels, threads);
      make_rectified(maps, {pointer<float>(map), pointer<std::int64_t>(count)});
    }
    const std::int64_t images = problem.sizes[0];
    std::int64_t pixels = images * problem.pixels();
    if (problem.classes.has_ignore && count) {
      const auto* counted = pointer<const std::int64_t>(count);
      pixels = std::accumulate(counted, counted + images, std::int64_t{0});
    }
    const double divisor = static_cast<double>(std::max<std::int64_t>(pixels * channels_, 1));
    const double scale = (mean_ && divide_ ? 1 / divisor : 1) * (divide_ ? weight_ : 1);
    const std::vector<double> scales(images, scale);
    std::vector<double> sums(images);
    if (scale != 1) pass.image_scale = scales.data();
    pass.image_sums = sums.data();
    const std::int64_t bad = active_loss_kernels().region_wise(problem, pass);
    if (problem.validate) require_no_bad_label(bad);
    const double sum = std::accumulate(sums.begin(), sums.end(), 0.0);
    const double total = before + weight_ * (mean_ ? sum / divisor : sum);
    if (problem.logits.dtype == Real::f64)
      *pointer<double>(loss) = total;
    else
      *pointer<float>(loss) = static_cast<float>(total);
    return total;
  }

 private:
  LossProblem problem_;
  LossPass pass_;
  std::optional<MapProblem> maps_;
  bool mean_, divide_;
  std::int64_t channels_;
  double weight_;
};

void negatives(const LossProblem& problem, bool probabilities, bool wrong, Address out) {
  require_map(problem);
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
  nb::class_<LossPlan>(m, "LossPlan",
                       "A loss, from labels or from a map, of tensors that come anew in the shapes of a problem.")
      .def(nb::init<const LossProblem&, const MapProblem*, const std::optional<Ints>&, bool, bool, std::int64_t,
                    double>(),
           nb::arg("problem"), nb::kw_only(), nb::arg("maps").none(), nb::arg("grad_strides").none(), nb::arg("mean"),
           nb::arg("divide"), nb::arg("channels"), nb::arg("weight"))
      .def("run", &LossPlan::run, nb::arg("logits"), nb::arg("map"), nb::arg("labels"), nb::arg("background"),
           nb::arg("class_scale"), nb::arg("count"), nb::arg("grad"), nb::arg("loss"), nb::arg("before"),
           nb::arg("threads"));
  m.def("negatives", &negatives, nb::arg("problem"), nb::kw_only(), nb::arg("probabilities"), nb::arg("wrong"),
        nb::arg("out"),
        "How many entries of every pixel's gradient are negative, or wrong. Raises BadValue once everything is "
        "written.");
  m.def("advise_huge_pages", &advise_huge_pages, nb::kw_only(), nb::arg("address"), nb::arg("bytes"),
        "Asks for huge pages under a buffer that nobody has written yet; says whether the system agreed.");
}

}  // namespace rwk
