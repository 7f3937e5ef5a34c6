// What the bindings of the loss and of its signs share: addresses and checked sizes become tensors.
#pragma once

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "loss.hpp"

namespace rwk {

using Address = std::uintptr_t;
using Ints = std::vector<std::int64_t>;

inline void require(bool holds, const char* message) {
  if (!holds) throw std::invalid_argument(message);
}

inline Real real(const std::string& code, const char* what) {
  if (code == "f4") return Real::f32;
  if (code == "f8") return Real::f64;
  if (code == "bf") return Real::bf16;
  if (code == "f2") return Real::f16;
  throw std::invalid_argument(std::string(what) + ": expected f4, f8, bf or f2, got '" + code + "'");
}

inline Label label(const std::string& code) {
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

inline Tensor tensor(Address data, Real dtype, const Ints& strides, const char* what) {
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

inline void read_sizes(const Ints& given, std::int64_t* sizes) {
  require(given.size() == 5, "sizes: expected [B, K, S0, S1, S2]");
  std::int64_t product = 1;
  for (int a = 0; a < 5; ++a) {
    require(given[a] >= 0, "sizes: expected numbers of 0 or more");
    sizes[a] = given[a];
    // An empty axis must not hide that the others overflow.
    require(!__builtin_mul_overflow(product, given[a] > 0 ? given[a] : 1, &product), "sizes: too many elements");
  }
  require(sizes[1] >= 1, "sizes: expected at least one class");
  require(sizes[1] <= std::numeric_limits<std::int32_t>::max(), "sizes: too many classes");
}

// Map, labels and weights of a task.
template <class Task>
void check_map(const Task& task) {
  const bool any = task.sizes[0] * task.pixels() > 0;
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

}  // namespace rwk
