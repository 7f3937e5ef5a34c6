// The minimum over rows of f(y') + (y - y')^2, for a tile of columns at once.
#pragma once

#include <cstddef>
#include <cstdint>

#include "short_simd.hpp"
#include "simd.hpp"

namespace rwk::RWK_ISA {

// What a tile holds: floats, or whole numbers of 16 bits, twice as many in a vector.
struct Floats {
  using Value = float;
  using Square = float;  // as a table of squares holds them, ready to be spread over a vector
  using Vector = F;
  using Rows = I;  // a number of a row for every lane
  static constexpr int width = 2 * lanes;
  static constexpr std::int64_t most_rows = (std::int64_t{1} << 22) - 1;  // to_int ends there
};
struct Shorts {
  using Value = std::uint16_t;
  using Square = std::uint32_t;  // twice the same: a pair is spread faster than one
  using Vector = S;
  using Rows = S;
  static constexpr int width = block_width;
  static constexpr std::int64_t most_rows = 65534;
};

constexpr int tile_width = Floats::width;

// Squares of 16 bits end here: what adds up to it, or to more, is not known. 255^2: counters of 8 bits end there too.
constexpr std::uint16_t short_limit = 255 * 255;

// A tile is `n` rows of `width` columns that lie side by side in memory, in working memory of its own.
// Only rows with a finite f are candidates, packed in order: m of them.
template <class Kind>
struct Tile {
  using Value = typename Kind::Value;
  std::int64_t n = 0, m = 0;
  Value* f = nullptr;             // [m][width]
  Value* best = nullptr;          // [n][width] in: an upper bound, f of the own row included; out: the result
  std::int32_t* row = nullptr;    // [m] where a candidate lies
  std::int32_t* first = nullptr;  // [n + 1] the first candidate at row y or below
  std::int32_t* low = nullptr;    // [n] bounds that a coarse row sets for the rows after it (min_plus.cpp)
  std::int32_t* high = nullptr;   // [n]                                          ... before it
  typename Kind::Square* square = nullptr;  // square[d] = d * d for |d| <= n, centred
  double* hull = nullptr;         // [m + 1] for the lower envelope
  std::int32_t* hull_row = nullptr;  // [m]

  // What one tile alone needs, and what tiles of as many rows may share, one after the other.
  static std::size_t own_bytes(std::int64_t rows);
  static std::size_t shared_bytes(std::int64_t rows);
  Tile(std::int64_t rows, void* own, void* shared);
  void fill_squares();  // of the shared part, once
};

// `reach` bounds every entry of best from above.
void min_plus(Tile<Floats>& tile, float reach);
void min_plus(Tile<Shorts>& tile, float reach);

}  // namespace rwk::RWK_ISA
