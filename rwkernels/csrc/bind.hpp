// What the bindings share. They take addresses as integers, 0 where there is nothing, and everything but a problem by
// its name alone: a swapped number and flag would pass for each other. They check sizes and let go of the GIL.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "types.hpp"

namespace rwk {

using Address = std::uintptr_t;
using Ints = std::vector<std::int64_t>;

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

inline void require(bool holds, const char* message) {
  if (!holds) throw std::invalid_argument(message);
}

// The type that a code stands for; `what` is the argument that names it.
Real real(const std::string& code, const char* what);

// A tensor [B, K, *S] of up to three spatial axes; those that are missing come first.
Tensor tensor(Address data, Real dtype, const Ints& strides, const char* what);

// How many elements an array has; refuses more than can be addressed.
std::int64_t count_of(const Ints& shape);

// Waking threads costs more than so many pixels.
int useful_threads(std::int64_t pixels, int threads);

void bind_problems(nanobind::module_& m);
void bind_distance(nanobind::module_& m);
void bind_axis(nanobind::module_& m);
void bind_codes(nanobind::module_& m);
void bind_loss(nanobind::module_& m);
void bind_joint(nanobind::module_& m);

}  // namespace rwk
