// One axis of the separable distance transform: the pass over columns, tile by tile.
//
// f(y', x) is the squared distance within the hyperplane of row y' to the nearest other label there. The squared
// distance with this axis included is
//   D(y, x) = min over y' of (y - y')^2 + (label(y') == label(y) ? f(y') : 0).
// The label test can leave the minimum. Let b be the squared distance from y to the nearest label change along
// the column. Rows nearer than sqrt(b) have the label of y, so for them the test is true. The row at sqrt(b)
// itself gives b. Any other row y' has (y - y')^2 >= b, so neither term of the test can beat b, as f >= 0:
//   D(y, x) = min(b, min over all y' of (y - y')^2 + f(y')).
// A border that bounds counts as a label change just outside the column.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "distance.hpp"
#include "min_plus.hpp"
#include "pool.hpp"
#include "quantise.hpp"
#include "row_pass.hpp"
#include "simd.hpp"

namespace rwk::RWK_ISA {

// What happens to a squared distance when its last pass is done: finish(d, labels, at, count) gets one vector,
// `count` of whose lanes are pixels `at`, `at + 1`... of the image, and returns what is written. done() follows
// the last vector.
struct Keep {
  template <class L>
  RWK_INLINE F operator()(F d, const L*, std::int64_t, int) const { return d; }
  void done() const {}
};

struct Scale : Keep {  // from squared pixels of the last axis to the unit of `spacing`
  float spacing;
  bool squared;
  Scale(double of_axis, bool squared_)
      : spacing(static_cast<float>(squared_ ? of_axis * of_axis : of_axis)), squared(squared_) {}
  template <class L>
  RWK_INLINE F operator()(F d, const L*, std::int64_t, int) const { return (squared ? d : sqrt(d)) * spacing; }
};

template <class T>
RWK_INLINE void copy_padded(T* to, const T* from, int count) {  // the last one again: a vector of real neighbours
  for (int i = 0; i < lanes; ++i) to[i] = from[i < count ? i : count - 1];
}

RWK_INLINE F load_real(const float* from) { return load(from); }
RWK_INLINE F load_real(const std::uint16_t* from) { return to_float(widen(from)); }

// Finishes `count` pixels that lie side by side, as floats or as codes; `from` may be `to`.
template <class From, class L, class To, class Finish>
RWK_INLINE void finish_run(Finish& finish, const From* from, const L* labels, To* to, std::int64_t at,
                           std::int64_t count) {
  std::int64_t x = 0;
  for (; x + lanes <= count; x += lanes) store(to + x, finish(load_real(from + x), labels + x, at + x, lanes));
  if (x == count) return;
  const int left = static_cast<int>(count - x);
  From padded[lanes];
  L padded_labels[lanes];
  To finished[lanes];
  copy_padded(padded, from + x, left);
  copy_padded(padded_labels, labels + x, left);
  store(finished, finish(load_real(padded), padded_labels, at + x, left));
  for (int i = 0; i < left; ++i) to[x + i] = finished[i];
}

// The same for pixels that are all there is to finish.
template <class L, class To, class Finish>
RWK_INLINE void finish_all(Finish finish, const float* from, const L* labels, To* to, std::int64_t at,
                           std::int64_t count) {
  finish_run(finish, from, labels, to, at, count);
  finish.done();
}

// How a field lies in its array of floats. Whole numbers of 16 bits take the first half of a block: `block_width`
// columns of one row, fewer at the end of the row.
enum class Held {
  squares,        // as floats
  short_steps,    // distances along the first axis, short_infinity where there is no other label
  short_squares,  // squares below short_limit, or short_infinity; as floats in blocks that are marked
};

struct Columns {
  float* data;           // in and out: pixel (row 0, column 0)
  std::int64_t n;        // rows
  std::int64_t stride;   // from one row to the next
  std::int64_t width;    // columns
  std::int64_t at;       // number of that pixel in its image
  float unit;            // multiplies what comes in: squared pixels of the last axis to those of this one
  bool bounded;
  std::int64_t first_row, last_row;  // rows outside [first_row, last_row) hold nothing yet: no candidates
  const RowRange* slices;            // null, or: rows with an empty range are no candidates either
  Held held = Held::squares;         // where it is another, the columns are of one block
  const std::uint8_t* marks = nullptr;  // of the block at row y: marks[y * mark_stride]
  std::int64_t mark_stride = 0;
};

// Candidates of one row, in 16 bits. False: it holds none.
inline bool read_shorts(const Columns& c, const float* block, std::int64_t x, int width, float* to) {
  std::uint16_t shorts[tile_width];
  const auto* from = reinterpret_cast<const char*>(block) + x * static_cast<std::int64_t>(sizeof(std::uint16_t));
  std::memcpy(shorts, block, sizeof shorts[0]);
  if (shorts[0] == short_infinity) return false;  // a row is finite everywhere or nowhere, and its start says so
  if (width == tile_width) {
    std::memcpy(shorts, from, sizeof shorts);
  } else {
    std::memcpy(shorts, from, static_cast<std::size_t>(width) * sizeof(std::uint16_t));
    for (int i = width; i < tile_width; ++i) shorts[i] = shorts[width - 1];
  }
  for (int h = 0; h < 2; ++h) {
    const F v = load_real(shorts + h * lanes);
    store(to + h * lanes, (c.held == Held::short_steps ? v * v : v) * c.unit);
  }
  return true;
}

// Reads the candidates of `width` <= tile_width columns. Columns beyond repeat the last one, so they add nothing
// to what the tile has to scan.
inline void load_candidates(Tile<Floats>& tile, const Columns& c, std::int64_t x, int width) {
  std::int64_t m = 0;
  for (std::int64_t y = 0; y < c.n; ++y) {
    tile.first[y] = static_cast<std::int32_t>(m);
    if (y < c.first_row || y >= c.last_row || (c.slices && c.slices[y].low >= c.slices[y].high)) continue;
    const float* from = c.data + y * c.stride + x;
    float* to = tile.f + m * tile_width;
    if (c.held != Held::squares && !(c.marks && c.marks[y * c.mark_stride])) {
      if (read_shorts(c, from - x, x, width, to)) tile.row[m++] = static_cast<std::int32_t>(y);
      continue;
    }
    if (*from == infinity) continue;  // a row is finite everywhere or nowhere
    if (width == tile_width) {
      store(to, load(from) * c.unit);
      store(to + lanes, load(from + lanes) * c.unit);
    } else {
      for (int i = 0; i < tile_width; ++i) to[i] = from[i < width ? i : width - 1] * c.unit;
    }
    tile.row[m++] = static_cast<std::int32_t>(y);
  }
  tile.first[c.n] = static_cast<std::int32_t>(m);
  tile.m = m;
}

// best <- min(b, f of the own row). Returns an upper bound of best.
template <class L>
RWK_INLINE float bound_by_changes(Tile<Floats>& tile, const Columns& c, const L* labels, std::int64_t label_stride) {
  const F border = splat(c.bounded ? 1.0f : infinity);
  const F one = splat(1.0f);
  F above[2] = {border, border};
  store(tile.best, border);
  store(tile.best + lanes, border);
  for (std::int64_t y = 1; y < c.n; ++y) {
    const L* here = labels + y * label_stride;
    for (int h = 0; h < 2; ++h) {
      above[h] = select(same(here + h * lanes, here - label_stride + h * lanes), above[h] + one, one);
      store(tile.best + y * tile_width + h * lanes, above[h]);
    }
  }
  F below[2] = {border, border};
  F reach{};
  std::int64_t m = tile.m;
  for (std::int64_t y = c.n - 1; y >= 0; --y) {
    const L* here = labels + y * label_stride;
    const bool own = m > 0 && tile.row[m - 1] == y;
    if (own) --m;
    for (int h = 0; h < 2; ++h) {
      if (y < c.n - 1)
        below[h] = select(same(here + h * lanes, here + label_stride + h * lanes), below[h] + one, one);
      float* best = tile.best + y * tile_width + h * lanes;
      const F d = min(below[h], load(best));
      F bound = d * d;
      if (own) bound = min(bound, load(tile.f + m * tile_width + h * lanes));
      store(best, bound);
      reach = max(reach, bound);
    }
  }
  return horizontal_max(reach);
}

inline float bound_by_own_row(Tile<Floats>& tile) {
  F reach{};
  std::int64_t m = 0;
  for (std::int64_t y = 0; y < tile.n; ++y) {
    const bool own = m < tile.m && tile.row[m] == y;
    for (int h = 0; h < 2; ++h) {
      const F bound = own ? load(tile.f + m * tile_width + h * lanes) : splat(infinity);
      store(tile.best + y * tile_width + h * lanes, bound);
      reach = max(reach, bound);
    }
    m += own;
  }
  return horizontal_max(reach);
}

// One pass along columns. `by_label`: distance to another label, with the bound b; else distance to what f is the
// distance to.
//
// Tiles go from the last to the first: the floats of one would cover what the tiles after it hold in 16 bits.
template <bool by_label, class L, class Finish>
void column_pass(const Columns& c, const L* labels, Finish finish) {
  const std::size_t label_bytes = (static_cast<std::size_t>(c.n) * tile_width * sizeof(L) + 63) / 64 * 64;
  const std::size_t own_bytes = Tile<Floats>::own_bytes(c.n);
  auto* memory = static_cast<std::byte*>(thread_scratch(own_bytes + Tile<Floats>::shared_bytes(c.n) + label_bytes));
  Tile<Floats> tile(c.n, memory + label_bytes, memory + label_bytes + own_bytes);
  tile.fill_squares();
  for (std::int64_t x = (c.width - 1) / tile_width * tile_width; x >= 0; x -= tile_width) {
    const int width = static_cast<int>(c.width - x < tile_width ? c.width - x : tile_width);
    load_candidates(tile, c, x, width);
    float reach;
    if (!by_label) {
      reach = bound_by_own_row(tile);
    } else if (width == tile_width) {
      reach = bound_by_changes(tile, c, labels + x, c.stride);
    } else {
      L* padded = reinterpret_cast<L*>(memory);
      for (std::int64_t y = 0; y < c.n; ++y)
        for (int i = 0; i < tile_width; ++i)
          padded[y * tile_width + i] = labels[y * c.stride + x + (i < width ? i : width - 1)];
      reach = bound_by_changes(tile, c, padded, tile_width);
    }
    min_plus(tile, reach);
    for (std::int64_t y = 0; y < c.n; ++y) {
      const std::int64_t offset = y * c.stride + x;
      finish_run(finish, tile.best + y * tile_width, labels + offset, c.data + offset, c.at + offset, width);
    }
  }
  finish.done();
}

}  // namespace rwk::RWK_ISA
