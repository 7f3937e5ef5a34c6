// The pass over columns in whole numbers of 16 bits, several blocks of columns at once.
//
// Where all that is added are whole numbers, squares below 255^2 fit 16 bits: twice the lanes, half the bytes from pass
// to pass, and additions that saturate instead of wrapping around. A block with a result of 255^2 or more is passed once
// more in floats (columns.hpp), from what is held in memory still; so no result depends on which way it took.
//
// The bound by label changes is counted in bytes (a count of 255 is 255 or more). Blocks lie apart in memory by a whole
// row or slice from one row of the pass to the next, often by a power of two, which all falls into one set of the cache.
// So a group of blocks that are neighbours is read at once, row by row, into working memory where every block is compact.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>

#include "columns.hpp"

namespace rwk::RWK_ISA {

struct Block {
  std::int64_t offset;  // of its first column, from the first column of all
  int width;            // columns; block_width but at the end of a row
  std::uint8_t* mark;   // null, or: becomes 1 where the result is held as floats
  const std::uint8_t* marks;  // null, or: of what comes in (Columns::marks)
};

constexpr int most_blocks = 8;  // of a group
constexpr std::size_t group_bytes = 320 << 10;  // a part of the second cache

// What is read of a block, and what becomes of it.
struct ShortBlock : Tile<Shorts> {
  enum class State { solved, infinite, too_far };

  std::uint8_t* same;  // [n][block_width] 255 where the label is that of the row before
  B above;             // labels of the row before, where they are bytes
  State state = State::solved;

  static std::size_t own_bytes(std::int64_t rows) {
    return Tile<Shorts>::own_bytes(rows) + (static_cast<std::size_t>(rows) * block_width + 63) / 64 * 64;
  }
  ShortBlock(std::int64_t rows, std::byte* own, std::byte* shared)
      : Tile<Shorts>(rows, own, shared),
        same(reinterpret_cast<std::uint8_t*>(own + Tile<Shorts>::own_bytes(rows))) {}
};

// `width` numbers, the last one again for the rest of the block.
template <class T>
RWK_INLINE void read_block(const void* from, int width, T* to) {
  if (width == block_width) {
    std::memcpy(to, from, block_width * sizeof(T));
    return;
  }
  std::memcpy(to, from, static_cast<std::size_t>(width) * sizeof(T));
  for (int i = width; i < block_width; ++i) to[i] = to[width - 1];
}

struct WholeUnit {  // what squares that come in are multiplied with
  std::uint16_t unit, most;

  explicit WholeUnit(float unit_)
      : unit(static_cast<std::uint16_t>(unit_)), most(static_cast<std::uint16_t>((short_limit - 1) / unit)) {}
  RWK_INLINE S operator()(S squares) const {
    return unit == 1 ? squares : up_to(squares, most, squares * unit, splat(short_limit));
  }
};

RWK_INLINE void read_row(ShortBlock& tile, const Columns& c, const WholeUnit& unit, const Block& block, std::int64_t y) {
  const float* at = c.data + y * c.stride + block.offset;
  tile.first[y] = static_cast<std::int32_t>(tile.m);
  std::uint16_t* to = tile.f + tile.m * block_width;
  if (block.marks && block.marks[y * c.mark_stride]) {
    for (int i = 0; i < block_width; ++i) {
      const float square = at[i < block.width ? i : block.width - 1];
      to[i] = square < short_limit ? static_cast<std::uint16_t>(square) : short_limit;
    }
    for (int h = 0; h < short_parts; ++h) store(to + h * short_lanes, unit(load(to + h * short_lanes)));
  } else {
    std::uint16_t first;
    std::memcpy(&first, at, sizeof first);
    if (first == short_infinity) return;  // a row is finite everywhere or nowhere
    read_block(at, block.width, to);
    for (int h = 0; h < short_parts; ++h) {
      S v = load(to + h * short_lanes);
      if (c.held == Held::short_steps) {
        v = min(v, splat(std::uint16_t{255}));
        v *= v;
      }
      store(to + h * short_lanes, unit(v));
    }
  }
  tile.row[tile.m++] = static_cast<std::int32_t>(y);
}

// same[y]: is the label of row y that of row y - 1? Rows come in order.
template <class L>
RWK_INLINE void compare_row(ShortBlock& tile, const Columns& c, const Block& block, const L* labels, std::int64_t y) {
  const L* here = labels + y * c.stride + block.offset;
  std::uint8_t* same = tile.same + y * block_width;
  if constexpr (sizeof(L) == 1) {
    std::uint8_t padded[block_width];
    read_block(here, block.width, padded);
    const B row = load(padded);
    store(same, equal(row, tile.above));  // of no meaning in the first row
    tile.above = row;
  } else if (y > 0) {
    for (int i = 0; i < block_width; ++i) {
      const int x = i < block.width ? i : block.width - 1;
      same[i] = here[x] == here[x - c.stride] ? 255 : 0;
    }
  }
}

// best <- min(b, f of the own row). Returns an upper bound of best.
inline std::uint16_t bound_by_changes(ShortBlock& tile, bool bounded, std::uint8_t* steps) {
  const B border = splat(static_cast<std::uint8_t>(bounded ? 1 : 255)), one = splat(std::uint8_t{1});
  const std::int64_t n = tile.n;
  B count = border;
  store(steps, count);
  for (std::int64_t y = 1; y < n; ++y) {
    count = add(count & load(tile.same + y * block_width), one);
    store(steps + y * block_width, count);
  }
  count = border;
  S reach{};
  std::int64_t m = tile.m;
  for (std::int64_t y = n - 1; y >= 0; --y) {
    if (y < n - 1) count = add(count & load(tile.same + (y + 1) * block_width), one);
    std::uint8_t* here = steps + y * block_width;
    store(here, min(count, load(here)));
    const bool own = m > 0 && tile.row[m - 1] == y;
    if (own) --m;
    for (int h = 0; h < short_parts; ++h) {
      S bound = widen_short(here + h * short_lanes);
      bound *= bound;
      if (own) bound = min(bound, load(tile.f + m * block_width + h * short_lanes));
      store(tile.best + y * block_width + h * short_lanes, bound);
      reach = max(reach, bound);
    }
  }
  return horizontal_max(reach);
}

// Is some row so far from any candidate that only a label change could bound it?
inline bool out_of_reach(const Tile<Shorts>& tile) {
  if (tile.m == 0 || tile.row[0] > 254 || tile.n - 1 - tile.row[tile.m - 1] > 254) return true;
  for (std::int64_t j = 1; j < tile.m; ++j)
    if (tile.row[j] - tile.row[j - 1] > 2 * 254) return true;
  return false;
}

inline bool has_change(const ShortBlock& tile) {
  B same = splat(std::uint8_t{255});
  for (std::int64_t y = 1; y < tile.n; ++y) same &= load(tile.same + y * block_width);
  std::uint8_t each[block_width];
  store(each, same);
  for (const std::uint8_t one : each)
    if (one == 0) return true;
  return false;
}

inline std::uint16_t largest_result(const Tile<Shorts>& tile) {
  S largest{};
  for (std::int64_t i = 0; i < tile.n * block_width; i += short_lanes) largest = max(largest, load(tile.best + i));
  return horizontal_max(largest);
}

inline void solve_block(ShortBlock& tile, bool bounded, std::uint8_t* steps) {
  using State = ShortBlock::State;
  if (tile.m == 0 && !bounded && !has_change(tile)) {
    tile.state = State::infinite;
    return;
  }
  const std::uint16_t reach = bound_by_changes(tile, bounded, steps);
  if (reach >= short_limit) {
    tile.state = State::too_far;
    if (out_of_reach(tile)) return;
  }
  min_plus(tile, reach);
  if (reach < short_limit || largest_result(tile) < short_limit) tile.state = State::solved;
}

// Writes a block's row as 16-bit squares.
RWK_INLINE void write_shorts(const std::uint16_t* from, int width, float* to) {
  std::memcpy(to, from, static_cast<std::size_t>(width) * sizeof(std::uint16_t));
}

template <bool last, class L, class Finish>
RWK_INLINE void write_row(const ShortBlock& tile, const Columns& c, const Block& block, const L* labels, std::int64_t y,
                          Finish& finish) {
  const std::int64_t offset = y * c.stride + block.offset;
  const bool infinite = tile.state == ShortBlock::State::infinite;
  if constexpr (last) {
    if (infinite) {
      float all[block_width];
      for (float& d : all) d = infinity;
      finish_run(finish, all, labels + offset, c.data + offset, c.at + offset, block.width);
      return;
    }
    finish_run(finish, tile.best + y * block_width, labels + offset, c.data + offset, c.at + offset, block.width);
  } else if (infinite) {
    write_shorts(&short_infinity, 1, c.data + offset);
  } else if (block.width == block_width) {
    write_shorts(tile.best + y * block_width, block_width, c.data + offset);
  } else {
    write_shorts(tile.best + y * block_width, block.width, c.data + offset);
  }
}

// How many blocks of columns of n rows are read at once. Where rows are slices, `far`, every row of the group is in
// another page of memory.
inline int blocks_at_once(std::int64_t n, bool far) {
  const std::size_t one = ShortBlock::own_bytes(n);
  int count = far ? most_blocks : 2;
  while (count > 1 && one * static_cast<std::size_t>(count) > group_bytes) count /= 2;
  return count;
}

// Into the second cache: rows lie apart by what may be one set of the first.
template <class L>
RWK_INLINE void prefetch_row(const Columns& c, const Block& block, const L* labels, std::int64_t y) {
  const std::int64_t at = y * c.stride + block.offset;
  __builtin_prefetch(c.data + at, 0, 2);
  __builtin_prefetch(labels + at, 0, 2);
}

// One block in floats.
template <class L, class Finish>
void float_column_pass(Columns c, const Block& block, const L* labels, Finish finish) {
  c.data += block.offset;
  c.at += block.offset;
  c.width = block.width;
  c.marks = block.marks;
  if (block.mark) *block.mark = 1;
  column_pass<true>(c, labels + block.offset, finish);
}

// One pass along the columns of up to most_blocks blocks, of one width each. `c` says everything but which columns.
// With `last`, results go through `finish` and are floats; else they stay 16-bit squares, or blocks are marked. False:
// some block had to be passed in floats.
template <bool last, class L, class Finish>
bool short_column_pass(const Columns& c, const Block* blocks, int count, const L* labels, Finish finish) {
  const std::size_t own = ShortBlock::own_bytes(c.n), shared = Tile<Shorts>::shared_bytes(c.n);
  const std::size_t steps_bytes = static_cast<std::size_t>(c.n) * block_width;
  auto* memory = static_cast<std::byte*>(
      thread_scratch(own * static_cast<std::size_t>(count) + shared + steps_bytes));
  alignas(64) std::byte space[most_blocks * sizeof(ShortBlock)];
  auto* tiles = reinterpret_cast<ShortBlock*>(space);
  std::byte* shared_memory = memory + own * static_cast<std::size_t>(count);
  for (int i = 0; i < count; ++i) new (tiles + i) ShortBlock(c.n, memory + own * static_cast<std::size_t>(i), shared_memory);
  tiles[0].fill_squares();
  auto* steps = reinterpret_cast<std::uint8_t*>(shared_memory + shared);

  const WholeUnit unit(c.unit);
  constexpr std::int64_t ahead = 6;
  for (std::int64_t y = 0; y < c.n; ++y) {
    if (y + ahead < c.n)
      for (int i = 0; i < count; ++i) prefetch_row(c, blocks[i], labels, y + ahead);
    for (int i = 0; i < count; ++i) {
      read_row(tiles[i], c, unit, blocks[i], y);
      compare_row(tiles[i], c, blocks[i], labels, y);
    }
  }
  for (int i = 0; i < count; ++i) {
    tiles[i].first[c.n] = static_cast<std::int32_t>(tiles[i].m);
    solve_block(tiles[i], c.bounded, steps);
  }
  bool redo = false;
  for (int i = 0; i < count; ++i) redo |= tiles[i].state == ShortBlock::State::too_far;
  for (std::int64_t y = 0; y < c.n; ++y)
    for (int i = 0; i < count; ++i)
      if (tiles[i].state != ShortBlock::State::too_far) write_row<last>(tiles[i], c, blocks[i], labels, y, finish);
  finish.done();
  if (!redo) return true;
  bool far[most_blocks];
  for (int i = 0; i < count; ++i) far[i] = tiles[i].state == ShortBlock::State::too_far;
  for (int i = 0; i < count; ++i)
    if (far[i]) float_column_pass(c, blocks[i], labels, finish);
  return false;
}

}  // namespace rwk::RWK_ISA
