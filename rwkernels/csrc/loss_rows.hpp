// From a tensor of any layout to a tile [K][pitch] of rows with neighbouring pixels side by side, and back.
#pragma once

#include "convert.hpp"
#include "loss.hpp"

namespace rwk::RWK_ISA {

// The spatial axes of one tensor, merged where a step of the outer axis is a whole inner axis.
struct Axes {
  int count = 0;
  std::int64_t size[3] = {}, stride[3] = {};

  Axes(const std::int64_t* sizes, const std::int64_t* strides) {
    for (int a = 0; a < 3; ++a) {
      if (sizes[a] == 1) continue;
      if (count > 0 && stride[count - 1] == sizes[a] * strides[a]) {
        size[count - 1] *= sizes[a];
        stride[count - 1] = strides[a];
      } else {
        size[count] = sizes[a];
        stride[count++] = strides[a];
      }
    }
    if (count == 0) {
      size[0] = stride[0] = 1;
      count = 1;
    }
  }

  bool rows_are_dense() const { return count == 1 && stride[0] == 1; }
  std::int64_t pixel_stride() const { return stride[count - 1]; }

  // Calls run(offset in the tensor, first pixel of the tile, pixels) for every piece of the pixels
  // [first, first + n) (in C order) that has one stride.
  template <class Run>
  void runs(std::int64_t first, int n, const Run& run) const {
    const std::int64_t inner = size[count - 1];
    for (int at = 0; at < n;) {
      const std::int64_t pixel = first + at, column = pixel % inner;
      std::int64_t offset = column * stride[count - 1], outer = pixel / inner;
      for (int a = count - 2; a >= 0; --a) {
        offset += outer % size[a] * stride[a];
        outer /= size[a];
      }
      const std::int64_t left = inner - column;
      const int length = left < n - at ? static_cast<int>(left) : n - at;
      run(offset, at, length);
      at += length;
    }
  }
};

// Channels last and nothing between the pixels. With the distance known, the compiler loads vectors and shuffles.
template <int K, class E>
void split_channels(const E* __restrict from, int n, E* __restrict rows, std::int64_t pitch) {
  for (int i = 0; i < n; ++i)
    for (int k = 0; k < K; ++k) rows[k * pitch + i] = from[i * K + k];
}
template <int K, class E>
void join_channels(E* __restrict to, int n, const E* __restrict rows, std::int64_t pitch) {
  for (int i = 0; i < n; ++i)
    for (int k = 0; k < K; ++k) to[i * K + k] = rows[k * pitch + i];
}

// Many channels: blocks of pixels small enough that a line fetched for one class is still there for the next.
constexpr int channel_block = 16;

// Each class starts a new stream of addresses, too short for the processor to see it coming: it is asked for while
// the two before it are read.
template <class E>
RWK_INLINE void prefetch_class(const E* from, std::int64_t k, std::int64_t class_stride, std::int64_t classes, int n) {
  constexpr std::int64_t ahead = 2;
  if (k + ahead >= classes) return;
  constexpr int line = 64 / sizeof(E);
  for (int i = 0; i < n; i += line) __builtin_prefetch(from + (k + ahead) * class_stride + i);
}

template <class E>
void gather_run(const E* from, std::int64_t class_stride, std::int64_t pixel_stride, std::int64_t classes, int n,
                E* rows, std::int64_t pitch) {
  if (pixel_stride == 1) {
    for (std::int64_t k = 0; k < classes; ++k) {
      prefetch_class(from, k, class_stride, classes, n);
      std::memcpy(rows + k * pitch, from + k * class_stride, n * sizeof(E));
    }
    return;
  }
  if (class_stride == 1 && pixel_stride == classes) switch (classes) {
      case 2: return split_channels<2>(from, n, rows, pitch);
      case 3: return split_channels<3>(from, n, rows, pitch);
      case 4: return split_channels<4>(from, n, rows, pitch);
      case 5: return split_channels<5>(from, n, rows, pitch);
      case 6: return split_channels<6>(from, n, rows, pitch);
      case 7: return split_channels<7>(from, n, rows, pitch);
      case 8: return split_channels<8>(from, n, rows, pitch);
    }
  for (int first = 0; first < n; first += channel_block) {
    const int last = first + channel_block < n ? first + channel_block : n;
    for (std::int64_t k = 0; k < classes; ++k)
      for (int i = first; i < last; ++i) rows[k * pitch + i] = from[k * class_stride + i * pixel_stride];
  }
}

template <class E>
void scatter_run(E* to, std::int64_t class_stride, std::int64_t pixel_stride, std::int64_t classes, int n,
                 const E* rows, std::int64_t pitch) {
  if (pixel_stride == 1) {
    for (std::int64_t k = 0; k < classes; ++k) std::memcpy(to + k * class_stride, rows + k * pitch, n * sizeof(E));
    return;
  }
  if (class_stride == 1 && pixel_stride == classes) switch (classes) {
      case 2: return join_channels<2>(to, n, rows, pitch);
      case 3: return join_channels<3>(to, n, rows, pitch);
      case 4: return join_channels<4>(to, n, rows, pitch);
      case 5: return join_channels<5>(to, n, rows, pitch);
      case 6: return join_channels<6>(to, n, rows, pitch);
      case 7: return join_channels<7>(to, n, rows, pitch);
      case 8: return join_channels<8>(to, n, rows, pitch);
    }
  for (int first = 0; first < n; first += channel_block) {
    const int last = first + channel_block < n ? first + channel_block : n;
    for (std::int64_t k = 0; k < classes; ++k)
      for (int i = first; i < last; ++i) to[k * class_stride + i * pixel_stride] = rows[k * pitch + i];
  }
}

// n floats, n and the address of `to` both whole vectors.
RWK_INLINE void stream_row(float* to, const float* from, int n) {
  for (int i = 0; i < n; i += lanes) stream(to + i, load(from + i));
}

// A part of a tensor: some pixels of one image, all its classes.
struct Patch {
  std::int64_t image, first;
  int pixels;
  std::int64_t classes;
};

template <class Wide, class E>
void load_as(const Tensor& tensor, const Axes& axes, const Patch& patch, Wide* rows, std::int64_t pitch, void* raw) {
  const E* image = static_cast<const E*>(tensor.data) + patch.image * tensor.stride[0];
  const std::int64_t class_stride = tensor.stride[1], pixel_stride = axes.pixel_stride();
  axes.runs(patch.first, patch.pixels, [&](std::int64_t offset, int at, int n) {
    const E* from = image + offset;
    if constexpr (std::is_same_v<Wide, E>) {
      gather_run(from, class_stride, pixel_stride, patch.classes, n, rows + at, pitch);
    } else {
      std::int64_t row_stride = class_stride;
      if (pixel_stride != 1) {
        E* gathered = static_cast<E*>(raw);
        gather_run(from, class_stride, pixel_stride, patch.classes, n, gathered, pitch);
        from = gathered;
        row_stride = pitch;
      }
      for (std::int64_t k = 0; k < patch.classes; ++k) {
        if (pixel_stride == 1) prefetch_class(from, k, row_stride, patch.classes, n);
        convert_row(rows + k * pitch + at, from + k * row_stride, n);
      }
    }
  });
}

template <class E>
void store_as(const Tensor& tensor, const Axes& axes, const Patch& patch, const float* rows, std::int64_t pitch,
              void* raw) {
  E* image = static_cast<E*>(tensor.data) + patch.image * tensor.stride[0];
  const std::int64_t class_stride = tensor.stride[1], pixel_stride = axes.pixel_stride();
  axes.runs(patch.first, patch.pixels, [&](std::int64_t offset, int at, int n) {
    E* to = image + offset;
    E* narrow = pixel_stride == 1 ? to : static_cast<E*>(raw);
    const std::int64_t row_stride = pixel_stride == 1 ? class_stride : pitch;
    for (std::int64_t k = 0; k < patch.classes; ++k) convert_row(narrow + k * row_stride, rows + k * pitch + at, n);
    if (pixel_stride != 1) scatter_run(to, class_stride, pixel_stride, patch.classes, n, narrow, pitch);
  });
}

template <class E>
void store_unchanged(const Tensor& tensor, const Axes& axes, const Patch& patch, const E* rows, std::int64_t pitch) {
  E* image = static_cast<E*>(tensor.data) + patch.image * tensor.stride[0];
  axes.runs(patch.first, patch.pixels, [&](std::int64_t offset, int at, int n) {
    scatter_run(image + offset, tensor.stride[1], axes.pixel_stride(), patch.classes, n, rows + at, pitch);
  });
}

// `raw` has room for a tile of the tensor's own type.
template <class Wide>
void load_rows(const Tensor& tensor, const Axes& axes, const Patch& patch, Wide* rows, std::int64_t pitch, void* raw) {
  switch (tensor.dtype) {
    case Real::f32: return load_as<Wide, float>(tensor, axes, patch, rows, pitch, raw);
    case Real::f64: return load_as<Wide, double>(tensor, axes, patch, rows, pitch, raw);
    case Real::bf16: return load_as<Wide, bf16>(tensor, axes, patch, rows, pitch, raw);
    case Real::f16: return load_as<Wide, f16>(tensor, axes, patch, rows, pitch, raw);
  }
}

// With `streams`, rows of dense floats whose length and addresses are whole vectors go past the caches.
inline void store_rows(const Tensor& tensor, const Axes& axes, const Patch& patch, const float* rows,
                       std::int64_t pitch, void* raw, bool streams) {
  if (streams) {
    float* to = static_cast<float*>(tensor.data) + patch.image * tensor.stride[0] + patch.first;
    for (std::int64_t k = 0; k < patch.classes; ++k)
      stream_row(to + k * tensor.stride[1], rows + k * pitch, patch.pixels);
    return;
  }
  switch (tensor.dtype) {
    case Real::bf16: return store_as<bf16>(tensor, axes, patch, rows, pitch, raw);
    case Real::f16: return store_as<f16>(tensor, axes, patch, rows, pitch, raw);
    default: return store_unchanged(tensor, axes, patch, rows, pitch);
  }
}
inline void store_rows(const Tensor& tensor, const Axes& axes, const Patch& patch, const double* rows,
                       std::int64_t pitch, void*, bool) {
  store_unchanged(tensor, axes, patch, rows, pitch);
}

}  // namespace rwk::RWK_ISA
