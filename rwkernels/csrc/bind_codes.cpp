// Python's way to what is stored and sent: codes of foreground values, packed labels, axes in another order.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include "bind.hpp"
#include "labels.hpp"
#include "maps.hpp"
#include "reverse_axes.hpp"
#include "value_codes.hpp"

namespace nb = nanobind;

namespace rwk {
namespace {

// A value costs so little that threads are woken one by one.
int threads_for_values(std::int64_t count, int threads) {
  constexpr std::int64_t worth_a_thread = 1 << 17;
  const std::int64_t useful = count / worth_a_thread + 1;
  return useful < threads ? static_cast<int>(useful) : threads;
}

void check_values(std::int64_t count, int bytes) {
  require(count >= 0, "count: expected no negative number");
  require(bytes == 1 || bytes == 2, "bytes: expected 1 or 2");
}

bool encode_values(Address values, std::int64_t count, int bytes, Address codes, int threads) {
  check_values(count, bytes);
  nb::gil_scoped_release release;
  return active_code_kernels().encode(pointer<const float>(values), count, bytes, pointer<void>(codes),
                                      threads_for_values(count, threads));
}

void decode_values(Address codes, std::int64_t count, int bytes, Address values, int threads) {
  check_values(count, bytes);
  nb::gil_scoped_release release;
  active_code_kernels().decode(pointer<const void>(codes), count, bytes, pointer<float>(values),
                               threads_for_values(count, threads));
}

void check_bits(int bits) {
  require(bits == 1 || bits == 2 || bits == 4 || bits == 8, "bits: expected 1, 2, 4 or 8");
}

bool pack_labels(const MapProblem& problem, int bits, Address packed) {
  check_bits(bits);
  const Classes& classes = problem.classes;
  const std::int64_t codes = classes.num_classes + (classes.has_ignore ? 1 : 0);
  if (codes > 1 << bits || classes.num_classes > 254)  // the byte after the last code is that of a label of no class
    throw std::invalid_argument("num_classes: expected codes that fit, got " + std::to_string(codes));
  nb::gil_scoped_release release;
  return active_label_kernels().pack(problem.labels, classes, bits, pointer<std::uint8_t>(packed));
}

void unpack_labels(Address packed, std::int64_t count, int bits, Address labels) {
  require(count >= 0, "count: expected no negative number");
  check_bits(bits);
  nb::gil_scoped_release release;
  active_label_kernels().unpack(pointer<const std::uint8_t>(packed), count, bits, pointer<std::uint8_t>(labels));
}

void reverse_axes_of_bytes(Address bytes, Address out, const Ints& shape, int threads) {
  require(shape.size() == 3, "shape: expected [X, Y, Z]");
  const std::int64_t count = count_of(shape);
  nb::gil_scoped_release release;
  reverse_axes(pointer<const std::uint8_t>(bytes), pointer<std::uint8_t>(out), shape[0], shape[1], shape[2],
               useful_threads(count, threads));
}

}  // namespace

void bind_codes(nb::module_& m) {
  m.def("encode_values", &encode_values, nb::kw_only(), nb::arg("values"), nb::arg("count"), nb::arg("bytes"),
        nb::arg("codes"), nb::arg("threads"), "Whether all of the float32 values lie in [-1, 0].");
  m.def("decode_values", &decode_values, nb::kw_only(), nb::arg("codes"), nb::arg("count"), nb::arg("bytes"),
        nb::arg("values"), nb::arg("threads"));
  m.def("pack_labels", &pack_labels, nb::arg("problem"), nb::kw_only(), nb::arg("bits"), nb::arg("packed"),
        "Whether all labels are classes or ignored.");
  m.def("unpack_labels", &unpack_labels, nb::kw_only(), nb::arg("packed"), nb::arg("count"), nb::arg("bits"),
        nb::arg("labels"));
  m.def("reverse_axes", &reverse_axes_of_bytes, nb::kw_only(), nb::arg("bytes"), nb::arg("out"), nb::arg("shape"),
        nb::arg("threads"));
}

}  // namespace rwk
