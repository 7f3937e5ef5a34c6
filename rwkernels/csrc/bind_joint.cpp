// Python's way to a weighted sum of losses over one softmax.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bad_value.hpp"
#include "bind.hpp"
#include "joint.hpp"
#include "joint_finish.hpp"

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

Volumes volumes(const std::string& name) {
  if (name.empty()) return Volumes::none;
  if (name == "square") return Volumes::square;
  if (name == "simple") return Volumes::simple;
  if (name == "uniform") return Volumes::uniform;
  throw std::invalid_argument("volumes: expected '', 'square', 'simple' or 'uniform', got '" + name + "'");
}

double joint_finish(Address sums, std::int64_t rows, std::int64_t images, std::int64_t classes, Address weights,
                    bool mean, double pixels, bool map, bool map_background, bool entropy, bool focal,
                    Address entropy_weight, bool dice, bool dice_background, bool whole_batch, Address dice_weight,
                    const std::string& volumes_by, const std::vector<double>& overlap, double upstream,
                    Address factors) {
  require(classes >= 1 && rows >= 0 && images >= 0, "classes, rows, images: expected at least 1, 0 and 0");
  require((sums || rows == 0) && weights, "sums, weights: missing");
  require(!dice || overlap.size() == 7, "overlap: expected 7 numbers");
  require(!dice || whole_batch || rows == images, "rows: expected one for every image");
  JointFinish task;
  task.images = images;
  task.classes = classes;
  task.sums = pointer<const double>(sums);
  task.rows = rows;
  task.weights = pointer<const double>(weights);
  task.mean = mean;
  task.pixels = pixels;
  task.map = map;
  task.map_background = map_background;
  task.entropy = entropy;
  task.focal = focal;
  task.entropy_weight = entropy ? pointer<const double>(entropy_weight) : nullptr;
  task.dice = dice;
  task.dice_background = dice_background;
  task.whole_batch = whole_batch;
  task.dice_weight = pointer<const double>(dice_weight);
  task.volumes = volumes(volumes_by);
  if (dice) task.overlap = {overlap[0], overlap[1], overlap[2], overlap[3], overlap[4], overlap[5], overlap[6]};
  task.upstream = upstream;
  task.factors = pointer<double>(factors);
  return finish(task);
}

}  // namespace

void bind_joint(nb::module_& m) {
  m.def("joint", &joint, nb::arg("problem"), nb::kw_only(), nb::arg("grad"), nb::arg("grad_strides"),
        nb::arg("factors"), nb::arg("sums"), nb::arg("of_classes"), nb::arg("squared"), nb::arg("entropy"),
        nb::arg("focal"), nb::arg("entropy_weight"), nb::arg("focal_weight"), nb::arg("smoothing"), nb::arg("gamma"),
        "Sums of every image, or the gradient from the derivative by them, or both, in one pass. Raises BadValue once "
        "everything is written.");
  m.def("joint_finish", &joint_finish, nb::kw_only(), nb::arg("sums"), nb::arg("rows"), nb::arg("images"),
        nb::arg("classes"), nb::arg("weights"), nb::arg("mean"), nb::arg("pixels"), nb::arg("map"),
        nb::arg("map_background"), nb::arg("entropy"), nb::arg("focal"), nb::arg("entropy_weight"), nb::arg("dice"),
        nb::arg("dice_background"), nb::arg("whole_batch"), nb::arg("dice_weight"), nb::arg("volumes"),
        nb::arg("overlap"), nb::arg("upstream"), nb::arg("factors"),
        "The loss from the sums of every image and, on request, its derivative by them times the incoming gradient.");
  m.def("count_classes", &count_classes, nb::arg("problem"), nb::kw_only(), nb::arg("counts"), nb::arg("row"),
        "Adds the pixels of every class of every image to rows of numbers.");
}

}  // namespace rwk
