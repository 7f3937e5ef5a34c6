// Numbers, labels and tensors as the caller has them: the one list of what the core reads and writes.
#pragma once

#include <cstdint>

namespace rwk {

enum class Real { f32, f64, bf16, f16 };
enum class Label { u8, i8, i16, i32, i64 };

inline int size_of(Label type) {
  switch (type) {
    case Label::i64: return 8;
    case Label::i32: return 4;
    case Label::i16: return 2;
    default: return 1;
  }
}

// A tensor [B, K, S0, S1, S2] that lies anywhere; strides are in elements.
struct Tensor {
  void* data = nullptr;
  Real dtype = Real::f32;
  std::int64_t stride[5] = {};
};

// Labels [batch, pixels] that lie side by side.
struct Labels {
  const void* data = nullptr;
  Label type = Label::u8;
  std::int64_t batch = 0, pixels = 0;
};

// Classes are [0, num_classes) without `ignore`. A label that is neither one of them nor ignored is bad.
struct Classes {
  std::int64_t num_classes = 0;
  bool has_ignore = false;
  std::int64_t ignore = 0;
};

}  // namespace rwk
