// Python's way to a weighted sum of losses over one softmax.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include "bad_value.hpp"
#include "bind.hpp"
#include "joint.hpp"

namespace nb = nanobind;

namespace rwk {
namespace {

void joint(const LossProblem& problem, Address grad, const Ints& grad_strides, Address factors, Address sums,
           bool of_classes, bool squared, bool entropy, bool focal, Address entropy_weight, Address focal_weight,
           double smoothing, double gamma) {
  const bool any = problem.sizes[0] * problem.pixels() > 0;
  require(!any || problem.labels.data, "labels: missing");
  require(!any || (grad != 0) == (factors != 0), "factors: expected with a gradient, and only then");
  require(!any || grad || sums, "sums: missing");
  require(!grad || !of_classes, "of_classes: a gradient needs the sums of the classes before");
  if (!any) return;
  JointPass pass;
  if (grad) pass.grad = tensor(grad, problem.logits.dtype, grad_strides, "grad_strides");
  pass.factors = pointer<const double>(factors);
  pass.sums = pointer<double>(sums);
  pass.of_classes = of_classes;
  pass.squared = squared;
  pass.entropy = entropy;
  pass.focal = focal;
  pass.entropy_weight = pointer<const double>(entropy_weight);
  pass.focal_weight = pointer<const double>(focal_weight);
  pass.smoothing = smoothing;
  pass.gamma = gamma;
  nb::gil_scoped_release release;
  const std::int64_t bad = active_joint_kernels().pass(problem, pass);
  if (problem.validate) require_no_bad_label(bad);
}

void count_classes(const LossProblem& problem, Address counts, std::int64_t row) {
  if (problem.sizes[0] * problem.pixels() == 0) return;
  require(problem.labels.data && counts, "labels, counts: missing");
  require(row >= problem.sizes[1], "row: expected at least one number a class");
  nb::gil_scoped_release release;
  const int threads = useful_threads(problem.sizes[0] * problem.pixels(), problem.threads);
  active_joint_kernels().count(problem.labels, problem.classes, threads, pointer<double>(counts), row);
}

}  // namespace

void bind_joint(nb::module_& m) {
  m.def("joint", &joint, nb::arg("problem"), nb::kw_only(), nb::arg("grad"), nb::arg("grad_strides"),
        nb::arg("factors"), nb::arg("sums"), nb::arg("of_classes"), nb::arg("squared"), nb::arg("entropy"),
        nb::arg("focal"), nb::arg("entropy_weight"), nb::arg("focal_weight"), nb::arg("smoothing"), nb::arg("gamma"),
        "Sums of every image, or the gradient from the derivative by them, or both, in one pass. Raises BadValue once "
        "everything is written.");
  m.def("count_classes", &count_classes, nb::arg("problem"), nb::kw_only(), nb::arg("counts"), nb::arg("row"),
        "Adds the pixels of every class of every image to rows of numbers.");
}

}  // namespace rwk
