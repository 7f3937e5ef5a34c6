// The order of the passes, and how they are cut into pieces for threads.
//
// No pixel's result depends on how the work is cut: tiles lie at fixed places and every minimum is taken over
// the same numbers. So the cut may depend on the number of threads.
#pragma once

#include "columns.hpp"
#include "memory.hpp"
#include "short_columns.hpp"

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
constexpr std::int64_t pixels_of_volume = 1 << 20;  // that gains from being passed alone

inline std::int64_t pieces(std::int64_t total, std::int64_t size) { return (total + size - 1) / size; }

// How many of `width` columns of n rows make one piece: whole tiles.
inline std::int64_t columns_per_piece(std::int64_t n) {
  const std::int64_t tiles = pixels_per_piece / (n * tile_width);
  return tile_width * (tiles < 1 ? 1 : tiles);
}

// The same in blocks, in whole groups.
inline std::int64_t blocks_per_piece(std::int64_t n, bool far) {
  const std::int64_t group = blocks_at_once(n, far), groups = pixels_per_piece / (n * block_width * group);
  return group * (groups < 1 ? 1 : groups);
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

// Are squared distances whole numbers in pixels of this axis, if they are in those of the axis before, and is it short
// enough for rows of it to be counted in 16 bits?
inline bool passes_in_shorts(const Grid& grid, int axis) {
  const float unit = axis == 2 ? 1.0f : unit_of_pass(grid, axis);
  return grid.length[axis] <= Shorts::most_rows && unit >= 1 && unit < short_limit &&
         unit == static_cast<float>(static_cast<std::int32_t>(unit));
}

// Squared distance to another label while it is held in 16 bits: the passes of one call (short_columns.hpp).
template <class L>
class ShortPasses {
 public:
  // Blocks that are mostly empty cost more than they save.
  static bool worth(const Grid& grid) {
    return last_axis(grid) != 2 && passes_in_shorts(grid, 2) &&
           2 * grid.length[2] >= pieces(grid.length[2], block_width) * block_width;
  }

  ShortPasses(const L* labels, float* out, const Grid& grid)
      : labels_(labels), out_(out), grid_(grid), last_(last_axis(grid)), x_length_(grid.length[2]),
        slice_(x_length_ * grid.length[1]), row_blocks_(pieces(x_length_, block_width)) {
    if (last_ == 0 && grid.needs_pass(1)) marks_ = make_array<std::uint8_t>(grid.batch * grid.length[0] * row_blocks_, true);
  }

  std::int64_t row_blocks() const { return row_blocks_; }
  bool squares_follow() const { return !grid_.needs_pass(1) || passes_in_shorts(grid_, 1); }

  // Along x: rows [from, to) of slice s of all images.
  void rows(std::int64_t s, std::int64_t from, std::int64_t to) const {
    auto* row = static_cast<std::uint16_t*>(
        thread_scratch(static_cast<std::size_t>(x_length_ + short_lanes) * sizeof(std::uint16_t)));
    for (std::int64_t y = from; y < to; ++y) {
      const std::int64_t at = s * slice_ + y * x_length_;
      const bool other = row_steps(labels_ + at, x_length_, grid_.bounded[2], row);
      for (std::int64_t x = 0; x < x_length_; x += block_width)
        write_shorts(other ? row + x : &short_infinity, other ? block_columns(x) : 1, out_ + at + x);
    }
  }

  // Along y: blocks [from, to) of every row of slice s.
  template <class Finish>
  void along_y(std::int64_t s, std::int64_t from, std::int64_t to, const Finish& finish) const {
    Columns c = columns_of_slice(grid_, out_ + s * slice_, s % grid_.length[0], 0, x_length_);
    c.held = Held::short_steps;
    const bool marked = marks_ && passes_in_shorts(grid_, 1);
    pass<1>(c, from, to, labels_ + s * slice_, finish, [&](std::int64_t t) {
      return Block{t * block_width, block_columns(t * block_width), marked ? marks_.get() + s * row_blocks_ + t : nullptr,
                   nullptr};
    });
  }

  // Along z: blocks [from, to) of every slice of image b, counted row by row.
  template <class Finish>
  void along_z(std::int64_t b, std::int64_t from, std::int64_t to, const Finish& finish) const {
    Columns c = columns_of_image(grid_, out_ + b * grid_.pixels(), 0, slice_);
    c.held = grid_.needs_pass(1) ? Held::short_squares : Held::short_steps;
    c.mark_stride = row_blocks_;
    const std::uint8_t* marks = marks_ ? marks_.get() + b * grid_.length[0] * row_blocks_ : nullptr;
    pass<0>(c, from, to, labels_ + b * grid_.pixels(), finish, [&](std::int64_t q) {
      const std::int64_t t = q % row_blocks_, x = t * block_width;
      return Block{q / row_blocks_ * x_length_ + x, block_columns(x), nullptr, marks ? marks + t : nullptr};
    });
  }

 private:
  int block_columns(std::int64_t x) const {
    return static_cast<int>(x_length_ - x < block_width ? x_length_ - x : block_width);
  }

  template <int axis, class Finish, class BlockAt>
  void pass(const Columns& c, std::int64_t from, std::int64_t to, const L* labels, const Finish& finish,
            const BlockAt& block_at) const {
    const bool shorts = passes_in_shorts(grid_, axis);
    const int group = shorts ? blocks_at_once(c.n, axis == 0) : 1;
    // Where a group saturates its neighbours mostly do: they are passed in floats at once, every time twice as many.
    std::int64_t in_floats = 0, next_in_floats = 1;
    for (std::int64_t i = from; i < to; i += group) {
      Block blocks[most_blocks];
      const int count = static_cast<int>(to - i < group ? to - i : group);
      for (int k = 0; k < count; ++k) blocks[k] = block_at(i + k);
      if (!shorts || in_floats > 0) {
        for (int k = 0; k < count; ++k) float_column_pass(c, blocks[k], labels, finish);
        --in_floats;
        continue;
      }
      const bool fits = axis == last_ ? short_column_pass<true>(c, blocks, count, labels, finish)
                                      : short_column_pass<false>(c, blocks, count, labels, finish);
      next_in_floats = fits ? 1 : next_in_floats < most_in_floats ? 2 * next_in_floats : most_in_floats;
      in_floats = fits ? 0 : next_in_floats;
    }
  }

  static constexpr std::int64_t most_in_floats = 16;  // groups, before 16 bits are tried again

  const L* labels_;
  float* out_;
  const Grid& grid_;
  int last_;
  std::int64_t x_length_, slice_, row_blocks_;
  Array<std::uint8_t> marks_;  // [batch, z, row_blocks] blocks of slices that are held as floats after the pass along y
};

// label_transform, below, for images that are passed together.
template <class L, class FinishOf, class After>
void transform_together(const L* labels, float* out, const Grid& grid, int threads, const FinishOf& finish_of,
                        const After& after) {
  const std::int64_t x_length = grid.length[2], y_length = grid.length[1], z_length = grid.length[0];
  const std::int64_t slice = x_length * y_length, image = grid.pixels(), slices = grid.batch * z_length;
  const int last = last_axis(grid);

  const bool shorts = ShortPasses<L>::worth(grid);
  const ShortPasses<L> short_passes(labels, out, grid);

  const auto rows = [&](std::int64_t s, std::int64_t from, std::int64_t to) {
    if (shorts) return short_passes.rows(s, from, to);
    for (std::int64_t y = from; y < to; ++y) {
      const std::int64_t at = s * slice + y * x_length;
      row_distance(labels + at, x_length, grid.bounded[2], out + at);
      if (last == 2)
        finish_all(finish_of(s / z_length), out + at, labels + at, out + at, at % image, x_length);
    }
  };
  // Columns, or blocks of them.
  const auto along_y = [&](std::int64_t s, std::int64_t from, std::int64_t to) {
    if (shorts && last == 1) return short_passes.along_y(s, from, to, finish_of(s / z_length));
    if (shorts) return short_passes.along_y(s, from, to, Keep{});
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
      if (y_pass) along_y(s, 0, shorts ? short_passes.row_blocks() : x_length);
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
      const std::int64_t columns = shorts ? short_passes.row_blocks() : x_length;
      const std::int64_t width = shorts ? blocks_per_piece(y_length, false) : columns_per_piece(y_length);
      const std::int64_t strips = pieces(columns, width);
      parallel_for(slices * strips, threads, [&](std::int64_t i) {
        const std::int64_t from = i % strips * width;
        along_y(i / strips, from, from + width < columns ? from + width : columns);
      });
    }
  }
  if (last == 0 && shorts && short_passes.squares_follow()) {
    const std::int64_t blocks = y_length * short_passes.row_blocks(), width = blocks_per_piece(z_length, true);
    const std::int64_t strips = pieces(blocks, width);
    parallel_for(grid.batch * strips, threads, [&](std::int64_t i) {
      const std::int64_t b = i / strips, from = i % strips * width;
      short_passes.along_z(b, from, from + width < blocks ? from + width : blocks, finish_of(b));
    });
  } else if (last == 0) {
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

// Squared distance to another label into `out`, through finish_of(b), and then after(b, from, to) for all pixels
// of every image, once no pixel of that image waits for another.
template <class L, class FinishOf, class After>
void label_transform(const L* labels, float* out, const Grid& grid, int threads, const FinishOf& finish_of,
                     const After& after) {
  // Volumes one after the other: the last pass finds in the cache what the one before has left there.
  const bool alone = last_axis(grid) == 0 && grid.pixels() >= pixels_of_volume && whole_slices(grid.length[0], threads);
  const std::int64_t together = alone ? 1 : grid.batch;
  Grid some = grid;
  some.batch = together;
  for (std::int64_t first = 0; first < grid.batch; first += together) {
    const std::int64_t at = first * grid.pixels();
    transform_together(
        labels + at, out + at, some, threads, [&](std::int64_t b) { return finish_of(first + b); },
        [&](std::int64_t b, std::int64_t from, std::int64_t to) { after(first + b, from, to); });
  }
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
