#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bind.hpp"
#include "isa.hpp"

namespace nb = nanobind;

NB_MODULE(_native, m) {
  m.doc() = "The C++ core. Takes addresses and checked sizes; backends/native.py is its only caller.";
  m.def("isas", [] {
    std::vector<std::string> names;
    for (rwk::Isa isa : rwk::runnable_isas()) names.emplace_back(rwk::name(isa));
    return names;
  });
  m.def("active_isa", [] { return std::string(rwk::name(rwk::active_isa())); });
  m.def("force_isa", &rwk::force_isa, nb::arg("name"));
  rwk::bind_value_codes(m);
  rwk::bind_labels(m);
  rwk::bind_distance(m);
  rwk::bind_axis(m);
  rwk::bind_loss(m);
  rwk::bind_negatives(m);
}
