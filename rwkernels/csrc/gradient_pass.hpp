// What the passes that may write a gradient do alike with a tile: read and write in place where that can be.
#pragma once

#include <cstdint>
#include <type_traits>

#include "loss_rows.hpp"
#include "openmp.hpp"
#include "tile_pass.hpp"

namespace rwk::RWK_ISA {

constexpr int max_in_registers = 8;  // classes whose logits a tile of floats keeps in registers
constexpr std::int64_t worth_a_thread = 1 << 18;  // logits; fewer take less time than a thread to wake
// A gradient of this many bytes has left the caches before the network reads it: it is written past them, which
// saves fetching every line only to overwrite it.
constexpr std::int64_t worth_streaming = std::int64_t{32} << 20;

// The tile decides which losses are added together first, so it depends on the number of classes alone, and neither
// on the layout nor on the threads. A tile of logits and one of the map fit in half a megabyte of cache together.
inline int tile_pixels(std::int64_t classes) {
  int pixels = classes <= max_in_registers ? 512 : 256;
  while (pixels > 64 && pixels * classes > 65536) pixels /= 2;
  return pixels;
}

// Where a tile goes that cannot be used in place: rows of logits (the gradient then takes their place) and of the map.
template <class T>
struct Room {
  T *logits, *map, *background;
  void* raw;
};

template <class T>
class GradientPass : protected TilePass<T> {
  using Base = TilePass<T>;

 protected:
  using Base::problem_, Base::images_, Base::classes_, Base::pixels_, Base::tile_, Base::tiles_;
  using Base::logits_axes_, Base::map_axes_;
  static constexpr Real wide = std::is_same_v<T, float> ? Real::f32 : Real::f64;

  GradientPass(const LossProblem& problem, const Tensor& grad)
      : Base(problem, tile_pixels(problem.sizes[1])),
        pitch_(tile_ + pad),
        grad_(grad),
        in_registers_(std::is_same_v<T, float> && classes_ <= max_in_registers),
        grad_axes_(problem.sizes + 2, grad.stride + 2),
        streams_(may_stream()) {}

  int useful_threads() const {
    if (images_ * classes_ * pixels_ < worth_a_thread || problem_.threads <= 1) return 1;
    say_it_runs_torch();  // as it did for the logits
    return problem_.threads;
  }

  // One number per pixel: in place if it can be read there, else padded or converted.
  const T* per_pixel(const void* data, Real dtype, std::int64_t first, int n, T* buffer) const {
    if (data == nullptr) return nullptr;
    if (dtype == wide && n % pad == 0) return static_cast<const T*>(data) + first;
    copy_pixels(data, dtype, first, n, buffer);
    return buffer;
  }

  // The logits of a tile, and where its gradient is computed.
  template <class Tile>
  void place(const Patch& patch, const Room<T>& room, Tile& tile) const {
    const Tensor& logits = problem_.logits;
    if (in_place(logits, logits_axes_, patch.pixels)) {
      tile.logits = address(logits, patch);
      tile.logits_pitch = logits.stride[1];
    } else {
      load_rows(logits, logits_axes_, patch, room.logits, pitch_, room.raw);
      tile.logits = room.logits;
      tile.logits_pitch = pitch_;
    }
    if (grad_.data == nullptr) return;
    const bool there = in_place(grad_, grad_axes_, patch.pixels);
    tile.grad = there ? address(grad_, patch) : room.logits;
    tile.grad_pitch = there ? grad_.stride[1] : pitch_;
    tile.streams = streams_ && there;
  }

  // Writes a gradient that was not computed in place.
  void store(const Patch& patch, const Room<T>& room) const {
    if (grad_.data == nullptr || in_place(grad_, grad_axes_, patch.pixels)) return;
    store_rows(grad_, grad_axes_, patch, room.logits, pitch_, room.raw, streams_ && patch.pixels % pad == 0);
  }

  template <class Tile>
  void read_map(const Patch& patch, const Room<T>& room, Tile& tile) const {
    const Tensor& map = problem_.map;
    if (map.data == nullptr) return;
    if (problem_.compact) {
      const std::int64_t first = this->flat(patch);
      tile.map = per_pixel(map.data, map.dtype, first, patch.pixels, room.map);
      tile.background = per_pixel(problem_.background, map.dtype, first, patch.pixels, room.background);
      tile.background_value = static_cast<T>(problem_.background_value);
    } else if (in_place(map, map_axes_, patch.pixels)) {
      tile.map = address(map, patch);
      tile.map_pitch = map.stride[1];
    } else {
      load_rows(map, map_axes_, patch, room.map, pitch_, room.raw);
      tile.map = room.map;
      tile.map_pitch = pitch_;
    }
  }

  const std::int64_t pitch_;

 private:
  bool may_stream() const {
    constexpr std::int64_t vector = lanes * sizeof(float);
    if (!std::is_same_v<T, float> || grad_.data == nullptr || grad_.dtype != Real::f32) return false;
    const bool aligned = reinterpret_cast<std::uintptr_t>(grad_.data) % vector == 0 && grad_.stride[0] % lanes == 0 &&
                         grad_.stride[1] % lanes == 0;
    return aligned && grad_axes_.rows_are_dense() &&
           images_ * classes_ * pixels_ >= worth_streaming / std::int64_t{sizeof(float)};
  }
  bool in_place(const Tensor& tensor, const Axes& axes, int n) const {
    return in_registers_ && tensor.dtype == wide && axes.rows_are_dense() && n % pad == 0;
  }
  T* address(const Tensor& tensor, const Patch& patch) const {
    return static_cast<T*>(tensor.data) + patch.image * tensor.stride[0] + patch.first;
  }

  const Tensor& grad_;
  const bool in_registers_;
  const Axes grad_axes_;
  const bool streams_;
};

}  // namespace rwk::RWK_ISA
