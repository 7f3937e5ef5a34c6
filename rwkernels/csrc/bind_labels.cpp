// Python's way to packed labels: checks sizes, lets go of the GIL.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "bind.hpp"
#include "encoding.hpp"
#include "labels.hpp"

namespace nb = nanobind;

namespace rwk {
namespace {

void check(std::int64_t count, int bits) {
  if (count < 0) throw std::invalid_argument("count: expected no negative number");
  if (bits != 1 && bits != 2 && bits != 4 && bits != 8) throw std::invalid_argument("bits: expected 1, 2, 4 or 8");
}

bool pack_labels(Address data, const std::string& code, std::int64_t count, std::int64_t num_classes,
                 const Ignore& ignore, int bits, Address packed) {
  check(count, bits);
  const Labels labels = make_labels(data, code, {1, 1, 1, count});
  const Classes classes = make_classes(num_classes, ignore);
  const std::int64_t codes = num_classes + (classes.has_ignore ? 1 : 0);
  if (codes > 1 << bits || num_classes > 254)  // the byte after the last code is that of a label of no class
    throw std::invalid_argument("num_classes: expected codes that fit, got " + std::to_string(codes));
  nb::gil_scoped_release release;
  return active_label_kernels().pack(labels, classes, bits, pointer<std::uint8_t>(packed));
}

void unpack_labels(Address packed, std::int64_t count, int bits, Address labels) {
  check(count, bits);
  nb::gil_scoped_release release;
  active_label_kernels().unpack(pointer<const std::uint8_t>(packed), count, bits, pointer<std::uint8_t>(labels));
}

}  // namespace

void bind_labels(nb::module_& m) {
  m.def("pack_labels", &pack_labels, nb::arg("labels"), nb::arg("code"), nb::arg("count"), nb::arg("num_classes"),
        nb::arg("ignore").none(), nb::arg("bits"), nb::arg("packed"));
  m.def("unpack_labels", &unpack_labels, nb::arg("packed"), nb::arg("count"), nb::arg("bits"), nb::arg("labels"));
}

}  // namespace rwk
