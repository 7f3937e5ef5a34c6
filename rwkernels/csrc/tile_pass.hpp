// What the loss and the count of its gradient's signs do alike: tile by tile over the pixels of a problem.
#pragma once

#include <atomic>
#include <cstdint>
#include <limits>
#include <vector>

#include "codes.hpp"
#include "convert.hpp"
#include "loss.hpp"
#include "loss_rows.hpp"

namespace rwk::RWK_ISA {

constexpr int pad = 16;  // tiles are padded to a multiple of this, the widest vector; rows lie this much apart

// One number per pixel, in the type that is computed in: `dtype` is float or double.
template <class T>
void copy_pixels(const void* data, Real dtype, std::int64_t first, int n, T* to) {
  if (dtype == Real::f64)
    convert_row(to, static_cast<const double*>(data) + first, n);
  else
    convert_row(to, static_cast<const float*>(data) + first, n);
}

// T is the type that is computed in.
template <class T>
class TilePass {
 protected:
  TilePass(const LossProblem& problem, int tile_pixels)
      : problem_(problem),
        images_(problem.sizes[0]),
        classes_(problem.sizes[1]),
        pixels_(problem.pixels()),
        tile_(tile_pixels),
        tiles_(pixels_ / tile_ + (pixels_ % tile_ != 0)),
        logits_axes_(problem.sizes + 2, problem.logits.stride + 2),
        map_axes_(problem.sizes + 2, problem.map.stride + 2) {
    if (problem.class_scale)
      class_scale_.assign(problem.class_scale, problem.class_scale + problem.scale_groups * classes_);
  }

  // The pixels of a tile: tiles are counted over all images.
  Patch patch(std::int64_t tile) const {
    const std::int64_t first = tile % tiles_ * tile_;
    return {tile / tiles_, first, static_cast<int>(pixels_ - first < tile_ ? pixels_ - first : tile_), classes_};
  }
  std::int64_t flat(const Patch& patch) const { return patch.image * pixels_ + patch.first; }

  // Codes of the pixels, and whether all are classes. There must be labels.
  bool read_labels(const Patch& patch, std::int32_t* codes) {
    if (read_codes(problem_.labels, problem_.classes, flat(patch), patch.pixels, codes)) return true;
    for (int i = 0; i < patch.pixels; ++i)
      if (codes[i] == bad_label) {
        lower(lowest_bad_, flat(patch) + i);
        break;
      }
    return false;
  }

  const T* class_scale(std::int64_t image) const {
    if (class_scale_.empty()) return nullptr;
    return class_scale_.data() + image / (images_ / problem_.scale_groups) * classes_;
  }

  // The lowest flat index of a bad label that was read, or -1.
  std::int64_t first_bad_label() const {
    const std::int64_t bad = lowest_bad_.load();
    return bad == none ? -1 : bad;
  }

  const LossProblem& problem_;
  const std::int64_t images_, classes_, pixels_;
  const int tile_;
  const std::int64_t tiles_;
  const Axes logits_axes_, map_axes_;

 private:
  static constexpr std::int64_t none = std::numeric_limits<std::int64_t>::max();
  std::vector<T> class_scale_;
  std::atomic<std::int64_t> lowest_bad_{none};
};

}  // namespace rwk::RWK_ISA
