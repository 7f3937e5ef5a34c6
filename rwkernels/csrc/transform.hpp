// The order of the passes, and how they are cut into pieces for threads.
//
// No pixel's result depends on how the work is cut: tiles lie at fixed places and every minimum is taken over
// the same numbers. So the cut may depend on the number of threads.
#pragma once

#include "columns.hpp"

namespace rwk::RWK_ISA {

// Calls body with the labels as what they are.
template <class Body>
void with_labels(const Codes& codes, const Body& body) {
  switch (codes.bytes) {
    case 1: return body(static_cast<const std::uint8_t*>(codes.data));
    case 2: return body(static_cast<const std::uint16_t*>(codes.data));
    default: return body(static_cast<const std::uint32_t*>(codes.data));
  }
}

constexpr std::int64_t pixels_per_piece = 1 << 15;

inline std::int64_t pieces(std::int64_t total, std::int64_t size) { return (total + size - 1) / size; }

// How many of `width` columns of n rows make one piece: whole tiles.
inline std::int64_t columns_per_piece(std::int64_t n) {
  const std::int64_t tiles = pixels_per_piece / (n * tile_width);
  return tile_width * (tiles < 1 ? 1 : tiles);
}

// Squared pixels of the axis that was passed last, in squared pixels of this one.
inline float unit_of_pass(const Grid& grid, int axis) {
  const int before = axis == 0 && grid.needs_pass(1) ? 1 : 2;
  const double ratio = grid.spacing[before] / grid.spacing[axis];
  return static_cast<float>(ratio * ratio);
}

// Is there enough of it that one thread takes a whole slice, which then stays in its cache?
inline bool whole_slices(std::int64_t slices, int threads) { return threads <= 1 || slices >= 4 * threads; }

inline Columns columns_of_slice(const Grid& grid, float* slice, std::int64_t z, std::int64_t from, std::int64_t to) {
  const std::int64_t x_length = grid.length[2];
  return {slice + from,
          grid.length[1],
          x_length,
          to - from,
          z * grid.length[1] * x_length + from,
          unit_of_pass(grid, 1),
          grid.bounded[1],
          0,
          grid.length[1],
          nullptr};
}

inline Columns columns_of_image(const Grid& grid, float* image, std::int64_t from, std::int64_t to) {
  return {image + from,     grid.length[0], grid.length[1] * grid.length[2], to - from, from, unit_of_pass(grid, 0),
          grid.bounded[0], 0,              grid.length[0],                  nullptr};
}

// Squared distance to another label into `out`, through finish_of(b), and then after(b, from, to) for all pixels
// of every image, once no pixel of that image waits for another.
template <class L, class FinishOf, class After>
void label_transform(const L* labels, float* out, const Grid& grid, int threads, const FinishOf& finish_of,
                     const After& after) {
  const std::int64_t x_length = grid.length[2], y_length = grid.length[1], z_length = grid.length[0];
  const std::int64_t slice = x_length * y_length, image = grid.pixels(), slices = grid.batch * z_length;
  const int last = last_axis(grid);

  const auto rows = [&](std::int64_t s, std::int64_t from, std::int64_t to) {
    for (std::int64_t y = from; y < to; ++y) {
      const std::int64_t at = s * slice + y * x_length;
      row_distance(labels + at, x_length, grid.bounded[2], out + at);
      if (last == 2)
        finish_all(finish_of(s / z_length), out + at, labels + at, out + at, at % image, x_length);
    }
  };
  const auto along_y = [&](std::int64_t s, std::int64_t from, std::int64_t to) {
    const Columns columns = columns_of_slice(grid, out + s * slice, s % z_length, from, to);
    if (last == 1) {
      column_pass<true>(columns, labels + s * slice + from, finish_of(s / z_length));
    } else {
      column_pass<true>(columns, labels + s * slice + from, Keep{});
    }
  };

  const bool y_pass = grid.needs_pass(1), whole = whole_slices(slices, threads);
  const bool one_go = whole && z_length == 1 && last != 0;
  if (whole) {
    parallel_for(slices, threads, [&](std::int64_t s) {
      rows(s, 0, y_length);
      if (y_pass) along_y(s, 0, x_length);
      if (one_go) after(s, 0, image);
    });
    if (one_go) return;
  } else {
    const std::int64_t block = 1 + pixels_per_piece / x_length, blocks = pieces(y_length, block);
    parallel_for(slices * blocks, threads, [&](std::int64_t i) {
      const std::int64_t from = i % blocks * block;
      rows(i / blocks, from, from + block < y_length ? from + block : y_length);
    });
    if (y_pass) {
      const std::int64_t width = columns_per_piece(y_length), strips = pieces(x_length, width);
      parallel_for(slices * strips, threads, [&](std::int64_t i) {
        const std::int64_t from = i % strips * width;
        along_y(i / strips, from, from + width < x_length ? from + width : x_length);
      });
    }
  }
  if (last == 0) {
    const std::int64_t width = columns_per_piece(z_length), strips = pieces(slice, width);
    parallel_for(grid.batch * strips, threads, [&](std::int64_t i) {
      const std::int64_t b = i / strips, from = i % strips * width;
      column_pass<true>(columns_of_image(grid, out + b * image, from, from + width < slice ? from + width : slice),
                        labels + b * image + from, finish_of(b));
    });
  }
  const std::int64_t blocks = pieces(image, pixels_per_piece);
  parallel_for(grid.batch * blocks, threads, [&](std::int64_t i) {
    const std::int64_t from = i % blocks * pixels_per_piece;
    after(i / blocks, from, from + pixels_per_piece < image ? from + pixels_per_piece : image);
  });
}

// Squared distance to every class into out[b, k], through finish_of(b, k). Infinite where the class is absent.
// `grid` must not be bounded.
template <class L, class FinishOf>
void class_transform(const L* labels, std::int64_t num_classes, const RowRange* ranges, float* out, const Grid& grid,
                     int threads, const FinishOf& finish_of) {
  const std::int64_t x_length = grid.length[2], y_length = grid.length[1], z_length = grid.length[0];
  const std::int64_t slice = x_length * y_length, image = grid.pixels();
  const int last = last_axis(grid);

  const auto absent = [&](std::int64_t b, std::int64_t k, std::int64_t from, std::int64_t to) {
    float* d = out + (b * num_classes + k) * image;
    for (std::int64_t i = from; i < to; ++i) d[i] = infinity;
    finish_all(finish_of(b, k), d + from, labels + b * image + from, d + from, from, to - from);
  };
  parallel_for(grid.batch * num_classes * z_length, threads, [&](std::int64_t i) {
    const std::int64_t z = i % z_length, k = i / z_length % num_classes, b = i / z_length / num_classes;
    const RowRange range = ranges[i];
    if (range.low >= range.high) {
      if (last != 0) absent(b, k, z * slice, (z + 1) * slice);
      return;
    }
    const L* here = labels + (b * z_length + z) * slice;
    float* d = out + i * slice;
    for (std::int64_t y = range.low; y < range.high; ++y)
      row_class_distance(here + y * x_length, x_length, static_cast<L>(k), d + y * x_length);
    if (last == 2) {
      finish_all(finish_of(b, k), d, here, d, z * slice, slice);
      return;
    }
    Columns columns = columns_of_slice(grid, d, z, 0, x_length);
    columns.first_row = range.low;
    columns.last_row = range.high;
    if (!grid.needs_pass(1)) return;
    if (last == 1) {
      column_pass<false>(columns, here, finish_of(b, k));
    } else {
      column_pass<false>(columns, here, Keep{});
    }
  });
  if (last != 0) return;
  const std::int64_t width = columns_per_piece(z_length), strips = pieces(slice, width);
  parallel_for(grid.batch * num_classes * strips, threads, [&](std::int64_t i) {
    const std::int64_t from = i % strips * width, to = from + width < slice ? from + width : slice;
    const std::int64_t channel = i / strips, k = channel % num_classes, b = channel / num_classes;
    Columns columns = columns_of_image(grid, out + channel * image, from, to);
    columns.slices = ranges + channel * z_length;
    bool present = false;
    for (std::int64_t z = 0; z < z_length; ++z) present |= columns.slices[z].low < columns.slices[z].high;
    if (present) {
      column_pass<false>(columns, labels + b * image + from, finish_of(b, k));
      return;
    }
    for (std::int64_t z = 0; z < z_length; ++z) absent(b, k, z * slice + from, z * slice + to);
  });
}

}  // namespace rwk::RWK_ISA
