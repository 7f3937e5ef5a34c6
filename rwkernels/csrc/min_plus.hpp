// The minimum over rows of f(y') + (y - y')^2, for a tile of columns at once.
#pragma once

#include <cstddef>
#include <cstdint>

#include "simd.hpp"

namespace rwk::RWK_ISA {

constexpr int tile_width = 2 * lanes;

// A tile is `n` rows of `tile_width` columns that lie side by side in memory, in working memory of its own.
// Only rows with a finite f are candidates, packed in order: m of them.
struct Tile {
  std::int64_t n = 0, m = 0;
  float* f = nullptr;             // [m][tile_width]
  float* best = nullptr;          // [n][tile_width] in: an upper bound, f of the own row included; out: the result
  std::int32_t* row = nullptr;    // [m] where a candidate lies
  std::int32_t* first = nullptr;  // [n + 1] the first candidate at row y or below
  std::int32_t* low = nullptr;    // [n] bounds that a coarse row sets for the rows after it (min_plus.cpp)
  std::int32_t* high = nullptr;   // [n]                                          ... before it
  float* square = nullptr;        // square[d] = d * d for |d| <= n, centred
  double* hull = nullptr;         // [m + 1] for the lower envelope
  std::int32_t* hull_row = nullptr;  // [m]

  static std::size_t bytes(std::int64_t rows);
  Tile(std::int64_t rows, void* memory);  // fills `square`
};

// `reach` bounds every entry of best from above.
void min_plus(Tile& tile, float reach);

}  // namespace rwk::RWK_ISA
