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

constexpr std::int64_t scans_per_row = 24;  // times log2(n)

std::size_t aligned(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

// What floats and 16-bit numbers say differently.
template <class Kind>
struct Lanes;

template <>
struct Lanes<Floats> {
  static constexpr int parts = 2, count = lanes;
  static constexpr std::int64_t split = 4;  // gaps between coarse rows are cut into so many
  static constexpr float window_reach = 6;  // rows; below, windows alone are faster
  RWK_INLINE static F spread(float square) { return splat(square); }
  RWK_INLINE static F plus(F a, F b) { return a + b; }
  RWK_INLINE static I rows(std::int32_t row) { return splat(row); }
  RWK_INLINE static I unknown() { return splat(-1); }
  RWK_INLINE static I take(F v, F best, I here, I arg) { return select(not_less(best, v), here, arg); }
  RWK_INLINE static float square(std::int64_t d) { return static_cast<float>(d) * static_cast<float>(d); }
  RWK_INLINE static float distance_plus(float f, float square) { return f + square; }
};

template <>
struct Lanes<Shorts> {
  static constexpr int parts = short_parts, count = short_lanes;
  static constexpr std::int64_t split = short_parts == 1 ? 8 : 4;  // the registers hold as many rows
  static constexpr float window_reach = 20;
  RWK_INLINE static S spread(std::uint32_t pair) { return splat_pair(pair); }
  RWK_INLINE static S plus(S a, S b) { return add(a, b); }
  RWK_INLINE static S rows(std::int32_t row) { return splat(static_cast<std::uint16_t>(row)); }
  RWK_INLINE static S unknown() { return splat(std::uint16_t{0xffff}); }
  RWK_INLINE static S take(S v, S best, S here, S arg) { return select_not_above(v, best, here, arg); }
  RWK_INLINE static std::uint32_t square(std::int64_t d) {
    return d < 256 ? static_cast<std::uint32_t>(d * d) * 0x10001u : 0xffffffffu;
  }
  RWK_INLINE static std::uint16_t distance_plus(std::uint16_t f, std::uint32_t square) {
    const std::uint32_t sum = f + (square & 0xffff);
    return static_cast<std::uint16_t>(sum < 0xffff ? sum : 0xffff);
  }
};

// Rows y, y + step, ... (R of them) against candidates [from, to). With `track`, arg gets the row of the winner,
// or stays where nothing is at or below best.
template <int R, bool track, class Kind>
RWK_INLINE void scan(Tile<Kind>& tile, std::int64_t y, std::int64_t step, std::int64_t from, std::int64_t to,
                     typename Kind::Rows* arg) {
  using As = Lanes<Kind>;
  using V = typename Kind::Vector;
  constexpr int parts = As::parts;
  V best[R][parts];
  for (int r = 0; r < R; ++r)
    for (int h = 0; h < parts; ++h) best[r][h] = load(tile.best + (y + r * step) * Kind::width + h * As::count);
  for (std::int64_t j = from; j < to; ++j) {
    const auto* square = tile.square + (y - tile.row[j]);
    V f[parts];
    for (int h = 0; h < parts; ++h) f[h] = load(tile.f + j * Kind::width + h * As::count);
    for (int r = 0; r < R; ++r) {
      const V d = As::spread(square[r * step]);
      for (int h = 0; h < parts; ++h) {
        const V v = As::plus(f[h], d);
        if (track) arg[parts * r + h] = As::take(v, best[r][h], As::rows(tile.row[j]), arg[parts * r + h]);
        best[r][h] = min(v, best[r][h]);
      }
    }
  }
  for (int r = 0; r < R; ++r)
    for (int h = 0; h < parts; ++h) store(tile.best + (y + r * step) * Kind::width + h * As::count, best[r][h]);
}

std::int64_t clamp(std::int64_t y, std::int64_t n) { return y < 0 ? 0 : y > n ? n : y; }

// Rows farther than this hold no candidate below `squared`.
std::int64_t radius(float squared, std::int64_t n) {
  const float r = __builtin_sqrtf(squared);
  return r >= static_cast<float>(n) ? n : static_cast<std::int64_t>(r);
}

template <class Kind>
float largest(const Tile<Kind>& tile, std::int64_t y, int rows = 1) {
  using As = Lanes<Kind>;
  const auto* best = tile.best + y * Kind::width;
  auto bound = load(best);
  for (int i = 1; i < rows * As::parts; ++i) bound = max(bound, load(best + i * As::count));
  return static_cast<float>(horizontal_max(bound));
}

template <class Kind>
void windows(Tile<Kind>& tile) {
  const std::int64_t n = tile.n;
  std::int64_t y = 0;
  for (; y + 4 <= n; y += 4) {
    const std::int64_t r = radius(largest(tile, y, 4), n);
    scan<4, false>(tile, y, 1, tile.first[clamp(y - r, n)], tile.first[clamp(y + r + 4, n)], nullptr);
  }
  for (; y < n; ++y) {
    const std::int64_t r = radius(largest(tile, y), n);
    scan<1, false>(tile, y, 1, tile.first[clamp(y - r, n)], tile.first[clamp(y + r + 1, n)], nullptr);
  }
}

// low(y) and high(y) of a solved coarse row.
RWK_INLINE void set_bounds(Tile<Floats>& tile, std::int64_t y, const I* arg) {
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

// The same: the farthest of all lanes without a winner is what y - d and y + d of all of them come to.
RWK_INLINE void set_bounds(Tile<Shorts>& tile, std::int64_t y, const S* arg) {
  S low = splat(std::uint16_t{0xffff}), high{}, farthest{};
  for (int h = 0; h < short_parts; ++h) {
    const S is_unknown = select_not_above(Lanes<Shorts>::unknown(), arg[h], ~S{}, S{});
    low = min(low, arg[h]);
    high = max(high, arg[h] & ~is_unknown);
    const S best = max(load(tile.best + y * block_width + h * short_lanes), splat(std::uint16_t{1}));
    farthest = max(farthest, best & is_unknown);
  }
  std::int64_t from = horizontal_min(low), to = horizontal_max(high);
  const std::int64_t squared = horizontal_max(farthest);
  if (squared > 0) {
    const auto d = static_cast<std::int64_t>(__builtin_sqrtf(static_cast<float>(squared)) + 0.999f);
    from = y - d < from ? clamp(y - d, tile.n - 1) : from;
    to = y + d > to ? clamp(y + d, tile.n - 1) : to;
  }
  tile.low[y] = static_cast<std::int32_t>(from);
  tile.high[y] = static_cast<std::int32_t>(to);
}

template <int R, bool track, class Kind>
void solve(Tile<Kind>& tile, std::int64_t y, std::int64_t step, std::int64_t from, std::int64_t to) {
  constexpr int parts = Lanes<Kind>::parts;
  typename Kind::Rows arg[parts * R];
  for (auto& a : arg) a = Lanes<Kind>::unknown();
  scan<R, track>(tile, y, step, from, to, arg);
  if (track)
    for (int r = 0; r < R; ++r) set_bounds(tile, y + r * step, arg + parts * r);
}

// The rows of a gap, R of them at most.
template <int R, bool track, class Kind>
void solve_gap(Tile<Kind>& tile, std::int64_t rows, std::int64_t y, std::int64_t step, std::int64_t from,
               std::int64_t to) {
  if (rows == R) return solve<R, track>(tile, y, step, from, to);
  if constexpr (R > 1) solve_gap<R - 1, track>(tile, rows, y, step, from, to);
}

// Coarse rows 0, step, 2 step... and n - 1. False: over the budget.
template <class Kind>
bool coarse_rows(Tile<Kind>& tile, std::int64_t step, std::int64_t& budget) {
  const std::int64_t n = tile.n;
  std::int64_t low = 0;
  for (std::int64_t y = 0;; y = y + step < n - 1 ? y + step : n - 1) {
    const std::int64_t r = radius(largest(tile, y), n);
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

// All rows that lie between coarse rows `split * step` apart. False: over the budget.
template <class Kind>
bool refine(Tile<Kind>& tile, std::int64_t step, std::int64_t& budget) {
  constexpr std::int64_t split = Lanes<Kind>::split;
  const std::int64_t n = tile.n;
  for (std::int64_t y0 = 0; y0 + step < n - 1; y0 += split * step) {
    const std::int64_t y1 = y0 + split * step < n - 1 ? y0 + split * step : n - 1;
    const std::int64_t rows = (y1 - y0 - 1) / step;
    const std::int64_t from = tile.first[tile.low[y0]], last = tile.first[tile.high[y1] + 1];
    const std::int64_t to = last > from ? last : from;
    if (step > 1) {
      solve_gap<split - 1, true>(tile, rows, y0 + step, step, from, to);
    } else {
      solve_gap<split - 1, false>(tile, rows, y0 + step, step, from, to);
    }
    budget -= rows * (to - from);
    if (budget < 0) return false;
  }
  return true;
}

template <class Kind>
bool divide_and_conquer(Tile<Kind>& tile, float reach) {
  std::int64_t log2n = 1;
  while (std::int64_t{1} << log2n < tile.n) ++log2n;
  std::int64_t budget = scans_per_row * tile.n * log2n;
  constexpr std::int64_t split = Lanes<Kind>::split;
  std::int64_t step = split;
  while (split * step < tile.n && static_cast<float>(step) * static_cast<float>(step) * 16 < reach) step *= split;
  if (!coarse_rows(tile, step, budget)) return false;
  for (step /= split; step >= 1; step /= split)
    if (!refine(tile, step, budget)) return false;
  return true;
}

template <class Kind>
void lower_envelope(Tile<Kind>& tile, int lane) {
  using Value = typename Kind::Value;
  const Value* f = tile.f + lane;
  const auto value = [&](std::int64_t j) {
    const double row = tile.row[j];
    return static_cast<double>(f[j * Kind::width]) + row * row;
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
    const Value v = Lanes<Kind>::distance_plus(f[j * Kind::width], tile.square[y - tile.row[j]]);
    Value* best = tile.best + y * Kind::width + lane;
    if (v < *best) *best = v;
  }
}

template <class Kind>
void any_min_plus(Tile<Kind>& tile, float reach) {
  constexpr float window_reach = Lanes<Kind>::window_reach;
  if (tile.m == 0) return;
  if (reach < window_reach * window_reach || tile.n < 8) {
    windows(tile);
  } else if (tile.n > Kind::most_rows || !divide_and_conquer(tile, reach)) {
    for (int lane = 0; lane < Kind::width; ++lane) lower_envelope(tile, lane);
  }
}

}  // namespace

template <class Kind>
std::size_t Tile<Kind>::own_bytes(std::int64_t rows) {
  const auto n = static_cast<std::size_t>(rows) + 1;
  return 2 * aligned(n * Kind::width * sizeof(Value)) + 2 * aligned(n * sizeof(std::int32_t));
}

template <class Kind>
std::size_t Tile<Kind>::shared_bytes(std::int64_t rows) {
  const auto n = static_cast<std::size_t>(rows) + 1;
  return 3 * aligned(n * sizeof(std::int32_t)) + aligned((2 * n + 1) * sizeof(typename Kind::Square)) +
         aligned(n * sizeof(double));
}

template <class Kind>
Tile<Kind>::Tile(std::int64_t rows, void* own, void* shared) : n(rows) {
  const auto size = static_cast<std::size_t>(rows) + 1;
  auto* next = static_cast<std::byte*>(own);
  const auto take = [&next](std::size_t bytes) {
    std::byte* taken = next;
    next += aligned(bytes);
    return static_cast<void*>(taken);
  };
  const auto take_rows = [&] { return static_cast<std::int32_t*>(take(size * sizeof(std::int32_t))); };
  f = static_cast<Value*>(take(size * Kind::width * sizeof(Value)));
  best = static_cast<Value*>(take(size * Kind::width * sizeof(Value)));
  row = take_rows();
  first = take_rows();
  next = static_cast<std::byte*>(shared);
  low = take_rows();
  high = take_rows();
  hull_row = take_rows();
  square = static_cast<typename Kind::Square*>(take((2 * size + 1) * sizeof(typename Kind::Square))) + rows;
  hull = static_cast<double*>(take(size * sizeof(double)));
}

template <class Kind>
void Tile<Kind>::fill_squares() {
  for (std::int64_t d = 0; d <= n; ++d) square[d] = square[-d] = Lanes<Kind>::square(d);
}

template struct Tile<Floats>;
template struct Tile<Shorts>;

void min_plus(Tile<Floats>& tile, float reach) { any_min_plus(tile, reach); }
void min_plus(Tile<Shorts>& tile, float reach) { any_min_plus(tile, reach); }

}  // namespace rwk::RWK_ISA
