#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bad_value.hpp"
#include "bind.hpp"
#include "isa.hpp"
#include "openmp.hpp"

namespace nb = nanobind;

namespace {

// BadValue becomes an exception class of the module, with its place as attributes.
void bind_bad_value(nb::module_& m) {
  m.attr("BadValue") = nb::steal(PyErr_NewExceptionWithDoc(
      "_native.BadValue",
      "A value that an array of the caller's may not hold: `argument` is \"labels\" or \"class_max\", `index` the "
      "flat index of the first one there.",
      PyExc_ValueError, nullptr));
  nb::register_exception_translator(
      [](const std::exception_ptr& thrown, void* type) {
        try {
          std::rethrow_exception(thrown);
        } catch (const rwk::BadValue& bad) {
          const nb::handle raised(static_cast<PyObject*>(type));
          nb::object error = raised(bad.what());
          error.attr("argument") = bad.argument;
          error.attr("index") = bad.index;
          PyErr_SetObject(raised.ptr(), error.ptr());
        }
      },
      nb::object(m.attr("BadValue")).ptr());
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "The C++ core. Takes addresses and checked sizes; backends/native is its only caller.";
  // A loss that a script still holds when Python ends holds its plan, in a graph that nobody takes apart any more.
  nb::set_leak_warnings(false);
  m.def("shares_threads", [] { return rwk::torch_openmp() != nullptr; },
        "Whether work in several threads is handed to those that torch computes with.");
  m.def("isas", [] {
    std::vector<std::string> names;
    for (rwk::Isa isa : rwk::runnable_isas()) names.emplace_back(rwk::name(isa));
    return names;
  });
  m.def("active_isa", [] { return std::string(rwk::name(rwk::active_isa())); });
  m.def("force_isa", &rwk::force_isa, nb::arg("name"));
  bind_bad_value(m);
  rwk::bind_problems(m);
  rwk::bind_distance(m);
  rwk::bind_axis(m);
  rwk::bind_codes(m);
  rwk::bind_loss(m);
  rwk::bind_joint(m);
}
