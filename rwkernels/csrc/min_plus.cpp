// best(y) <- min(best(y), min over candidate rows y' of f(y') + (y - y')^2), column by column.
//
// Three ways, by how far the minimum can lie:
//
// 1. Window. Nothing beyond |y - y'| >= sqrt(best) can win, as f >= 0. For short reach that is all there is.
//
// 2. Divide and conquer. Let A(y) be a row where the minimum over all y' is taken. For p < q the difference
//    (f(q) + (y-q)^2) - (f(p) + (y-p)^2) falls as y grows, so A never decreases: once A(y0) and A(y1) are known,
//    rows between y0 and y1 need candidates in [A(y0), A(y1)] only. Rows 0, s, 4s... are solved first, then
//    three rows in every gap, and so on down to single rows. On the finest level, three rows of four, neither A
//    nor any bound is kept: there is only an addition and a minimum per candidate.
//
//    Where the scan did not find anything at or below best (the label change b along the column is nearer), A
//    is not known. But distance is 1-Lipschitz, d(y + t) <= d(y) + t, so y - d(y) and y + d(y) never decrease
//    either, and they bound the useful candidates of all rows after and before y. So every coarse row has, per
//    column, low(y) = A or y - d and high(y) = A or y + d; a gap (y0, y1) scans [min low(y0), max high(y1)],
//    extremes over the tile's columns.
//
// 3. Lower envelope (Felzenszwalb & Huttenlocher 2012), column by column, without vectors. Columns side by side
//    usually agree on A, but need not (sparse noise and a coarse spacing across the columns), and then way 2 is
//    quadratic. A tile that has scanned more than 24 n log2(n) candidates is finished by the envelope, so no
//    input costs more than O(n log n) per column.
#include "min_plus.hpp"

namespace rwk::RWK_ISA {
namespace {

constexpr float window_reach = 6;          // rows; below, windows alone are faster
constexpr std::int64_t scans_per_row = 24;  // times log2(n)

std::size_t aligned(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

// Rows y, y + step, ... (R of them) against candidates [from, to). With `track`, arg gets the row of the winner,
// or stays where nothing is at or below best.
template <int R, bool track>
RWK_INLINE void scan(Tile& tile, std::int64_t y, std::int64_t step, std::int64_t from, std::int64_t to, I* arg) {
  F best[R][2];
  for (int r = 0; r < R; ++r)
    for (int h = 0; h < 2; ++h) best[r][h] = load(tile.best + (y + r * step) * tile_width + h * lanes);
  for (std::int64_t j = from; j < to; ++j) {
    const float* square = tile.square + (y - tile.row[j]);
    const F f0 = load(tile.f + j * tile_width);
    const F f1 = load(tile.f + j * tile_width + lanes);
    for (int r = 0; r < R; ++r) {
      const F d = splat(square[r * step]);
      const F v0 = f0 + d, v1 = f1 + d;
      if (track) {
        const I here = splat(tile.row[j]);
        arg[2 * r] = select(not_less(best[r][0], v0), here, arg[2 * r]);
        arg[2 * r + 1] = select(not_less(best[r][1], v1), here, arg[2 * r + 1]);
      }
      best[r][0] = min(v0, best[r][0]);
      best[r][1] = min(v1, best[r][1]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int h = 0; h < 2; ++h) store(tile.best + (y + r * step) * tile_width + h * lanes, best[r][h]);
}

std::int64_t clamp(std::int64_t y, std::int64_t n) { return y < 0 ? 0 : y > n ? n : y; }

// Rows farther than this hold no candidate below `squared`.
std::int64_t radius(float squared, std::int64_t n) {
  const float r = __builtin_sqrtf(squared);
  return r >= static_cast<float>(n) ? n : static_cast<std::int64_t>(r);
}

float largest(const float* row) { return horizontal_max(max(load(row), load(row + lanes))); }

void windows(Tile& tile) {
  const std::int64_t n = tile.n;
  std::int64_t y = 0;
  for (; y + 4 <= n; y += 4) {
    const float* best = tile.best + y * tile_width;
    F bound = load(best);
    for (int i = 1; i < 8; ++i) bound = max(bound, load(best + i * lanes));
    const std::int64_t r = radius(horizontal_max(bound), n);
    scan<4, false>(tile, y, 1, tile.first[clamp(y - r, n)], tile.first[clamp(y + r + 4, n)], nullptr);
  }
  for (; y < n; ++y) {
    const std::int64_t r = radius(largest(tile.best + y * tile_width), n);
    scan<1, false>(tile, y, 1, tile.first[clamp(y - r, n)], tile.first[clamp(y + r + 1, n)], nullptr);
  }
}

// low(y) and high(y) of a solved coarse row.
RWK_INLINE void set_bounds(Tile& tile, std::int64_t y, const I* arg) {
  I low, high;
  for (int h = 0; h < 2; ++h) {
    const F d = sqrt(load(tile.best + y * tile_width + h * lanes)) + 0.5f;  // rounding outwards
    const Mask unknown = less(arg[h], I{});
    const F above = max(splat(static_cast<float>(y)) - d, splat(0.0f));
    const F below = min(splat(static_cast<float>(y)) + d, splat(static_cast<float>(tile.n - 1)));
    const I a = select(unknown, to_int(above), arg[h]);
    const I b = select(unknown, to_int(below), arg[h]);
    low = h == 0 ? a : min(low, a);
    high = h == 0 ? b : max(high, b);
  }
  tile.low[y] = horizontal_min(low);
  tile.high[y] = horizontal_max(high);
}

template <int R, bool track>
void solve(Tile& tile, std::int64_t y, std::int64_t step, std::int64_t from, std::int64_t to) {
  I arg[2 * R];
  for (I& a : arg) a = splat(-1);
  scan<R, track>(tile, y, step, from, to, arg);
  if (track)
    for (int r = 0; r < R; ++r) set_bounds(tile, y + r * step, arg + 2 * r);
}

template <bool track>
void solve_gap(Tile& tile, int rows, std::int64_t y, std::int64_t step, std::int64_t from, std::int64_t to) {
  if (rows == 3) solve<3, track>(tile, y, step, from, to);
  if (rows == 2) solve<2, track>(tile, y, step, from, to);
  if (rows == 1) solve<1, track>(tile, y, step, from, to);
}

// Coarse rows 0, step, 2 step... and n - 1. False: over the budget.
bool coarse_rows(Tile& tile, std::int64_t step, std::int64_t& budget) {
  const std::int64_t n = tile.n;
  std::int64_t low = 0;
  for (std::int64_t y = 0;; y = y + step < n - 1 ? y + step : n - 1) {
    const std::int64_t r = radius(largest(tile.best + y * tile_width), n);
    const std::int64_t top = clamp(y - r, n) > low ? clamp(y - r, n) : low;
    const std::int64_t from = tile.first[top], last = tile.first[clamp(y + r + 1, n)];
    const std::int64_t to = last > from ? last : from;
    solve<1, true>(tile, y, step, from, to);
    low = tile.low[y];
    budget -= to - from;
    if (budget < 0) return false;
    if (y == n - 1) return true;
  }
}

// All rows that lie between coarse rows `4 * step` apart. False: over the budget.
bool refine(Tile& tile, std::int64_t step, std::int64_t& budget) {
  const std::int64_t n = tile.n;
  for (std::int64_t y0 = 0; y0 + step < n - 1; y0 += 4 * step) {
    const std::int64_t y1 = y0 + 4 * step < n - 1 ? y0 + 4 * step : n - 1;
    const int rows = static_cast<int>((y1 - y0 - 1) / step);
    const std::int64_t from = tile.first[tile.low[y0]], last = tile.first[tile.high[y1] + 1];
    const std::int64_t to = last > from ? last : from;
    if (step > 1) {
      solve_gap<true>(tile, rows, y0 + step, step, from, to);
    } else {
      solve_gap<false>(tile, rows, y0 + step, step, from, to);
    }
    budget -= rows * (to - from);
    if (budget < 0) return false;
  }
  return true;
}

bool divide_and_conquer(Tile& tile, float reach) {
  std::int64_t log2n = 1;
  while (std::int64_t{1} << log2n < tile.n) ++log2n;
  std::int64_t budget = scans_per_row * tile.n * log2n;
  std::int64_t step = 4;
  while (4 * step < tile.n && static_cast<float>(step) * static_cast<float>(step) * 16 < reach) step *= 4;
  if (!coarse_rows(tile, step, budget)) return false;
  for (step /= 4; step >= 1; step /= 4)
    if (!refine(tile, step, budget)) return false;
  return true;
}

void lower_envelope(Tile& tile, int lane) {
  const float* f = tile.f + lane;
  const auto value = [&](std::int64_t j) {
    const double row = tile.row[j];
    return static_cast<double>(f[j * tile_width]) + row * row;
  };
  std::int64_t top = 0;  // of the stack of candidates on the envelope; hull_row holds their index
  tile.hull_row[0] = 0;
  tile.hull[0] = -__builtin_inf();
  for (std::int64_t q = 1; q < tile.m; ++q) {
    double meet;
    for (;; --top) {
      const std::int64_t p = tile.hull_row[top];
      meet = (value(q) - value(p)) / (2.0 * (tile.row[q] - tile.row[p]));
      if (meet > tile.hull[top]) break;  // always where top == 0
    }
    ++top;
    tile.hull_row[top] = static_cast<std::int32_t>(q);
    tile.hull[top] = meet;
  }
  std::int64_t at = 0;
  for (std::int64_t y = 0; y < tile.n; ++y) {
    while (at < top && tile.hull[at + 1] < static_cast<double>(y)) ++at;
    const std::int64_t j = tile.hull_row[at];
    const float v = f[j * tile_width] + tile.square[y - tile.row[j]];
    float* best = tile.best + y * tile_width + lane;
    if (v < *best) *best = v;
  }
}

}  // namespace

std::size_t Tile::bytes(std::int64_t rows) {
  const auto n = static_cast<std::size_t>(rows) + 1;
  return 2 * aligned(n * tile_width * sizeof(float)) + 5 * aligned(n * sizeof(std::int32_t)) +
         aligned((2 * n + 1) * sizeof(float)) + aligned(n * sizeof(double));
}

Tile::Tile(std::int64_t rows, void* memory) : n(rows) {
  auto* next = static_cast<std::byte*>(memory);
  const auto take = [&next](std::size_t size) {
    std::byte* taken = next;
    next += aligned(size);
    return static_cast<void*>(taken);
  };
  const auto size = static_cast<std::size_t>(rows) + 1;
  f = static_cast<float*>(take(size * tile_width * sizeof(float)));
  best = static_cast<float*>(take(size * tile_width * sizeof(float)));
  std::int32_t** const lists[] = {&row, &first, &low, &high, &hull_row};
  for (std::int32_t** list : lists) *list = static_cast<std::int32_t*>(take(size * sizeof(std::int32_t)));
  square = static_cast<float*>(take((2 * size + 1) * sizeof(float))) + rows;
  hull = static_cast<double*>(take(size * sizeof(double)));
  for (std::int64_t d = 0; d <= rows; ++d) square[d] = square[-d] = static_cast<float>(d) * static_cast<float>(d);
}

void min_plus(Tile& tile, float reach) {
  if (tile.m == 0) return;
  if (reach < window_reach * window_reach || tile.n < 8) {
    windows(tile);
  } else if (tile.n >= std::int64_t{1} << 22 || !divide_and_conquer(tile, reach)) {  // to_int ends at 2^22
    for (int lane = 0; lane < tile_width; ++lane) lower_envelope(tile, lane);
  }
}

}  // namespace rwk::RWK_ISA
