#include "distance.hpp"

#include "transform.hpp"

namespace rwk::RWK_ISA {
namespace {

void distance(const Codes& codes, float* out, const Grid& grid, bool squared, int threads) {
  const Scale scale(grid.spacing[last_axis(grid)], squared);
  with_labels(codes, [&](const auto* labels) {
    label_transform(
        labels, out, grid, threads, [&](std::int64_t) { return scale; },
        [](std::int64_t, std::int64_t, std::int64_t) {});
  });
}

// One slice: ranges[k * stride] for every class.
template <class L>
void class_rows_of_slice(const L* labels, std::int64_t num_classes, const Grid& grid, RowRange* ranges) {
  const std::int64_t stride = grid.length[0], n = grid.length[2];
  for (std::int64_t k = 0; k < num_classes; ++k) ranges[k * stride] = {0, 0};
  const auto see = [&](L label, std::int64_t y) {
    if (label >= num_classes) return;
    RowRange& range = ranges[label * stride];
    if (range.high == 0) range.low = static_cast<std::int32_t>(y);
    range.high = static_cast<std::int32_t>(y + 1);
  };
  for (std::int64_t y = 0; y < grid.length[1]; ++y, labels += n) {
    see(labels[0], y);
    for (std::int64_t x = 0; x < n - 1; x += 64) {
      const std::int64_t count = n - 1 - x;
      std::uint64_t bits = differ_bits(labels + x, labels + x + 1, count < 64 ? count : 64);
      for (; bits != 0; bits &= bits - 1) see(labels[x + __builtin_ctzll(bits) + 1], y);
    }
  }
}

void class_rows(const Codes& codes, std::int64_t num_classes, const Grid& grid, RowRange* ranges, int threads) {
  const std::int64_t z_length = grid.length[0], slice = grid.length[1] * grid.length[2];
  with_labels(codes, [&](const auto* labels) {
    parallel_for(grid.batch * z_length, threads, [&](std::int64_t s) {
      class_rows_of_slice(labels + s * slice, num_classes, grid,
                          ranges + s / z_length * num_classes * z_length + s % z_length);
    });
  });
}

void class_distance(const Codes& codes, std::int64_t num_classes, const RowRange* ranges, float* out, const Grid& grid,
                    bool squared, int threads) {
  const Scale scale(grid.spacing[last_axis(grid)], squared);
  with_labels(codes, [&](const auto* labels) {
    class_transform(labels, num_classes, ranges, out, grid, threads, [&](std::int64_t, std::int64_t) { return scale; });
  });
}

void axis(const Codes& codes, const AxisPass& pass, int threads) {
  with_labels(codes, [&](const auto* labels) {
    if (pass.first) {
      const std::int64_t block = 1 + pixels_per_piece / pass.n;
      parallel_for(pieces(pass.outer, block), threads, [&](std::int64_t i) {
        const std::int64_t last = (i + 1) * block < pass.outer ? (i + 1) * block : pass.outer;
        for (std::int64_t row = i * block; row < last; ++row)
          row_distance(labels + row * pass.n, pass.n, pass.bounded, pass.field + row * pass.n);
      });
      return;
    }
    const std::int64_t width = columns_per_piece(pass.n), strips = pieces(pass.inner, width);
    parallel_for(pass.outer * strips, threads, [&](std::int64_t i) {
      const std::int64_t from = i % strips * width, at = i / strips * pass.n * pass.inner + from;
      const std::int64_t columns = from + width < pass.inner ? width : pass.inner - from;
      column_pass<true>(Columns{pass.field + at, pass.n, pass.inner, columns, at, pass.unit, pass.bounded, 0, pass.n,
                                nullptr},
                        labels + at, Keep{});
    });
  });
}

}  // namespace

extern const DistanceKernels distance_kernels;
const DistanceKernels distance_kernels = {distance, class_rows, class_distance, axis};

}  // namespace rwk::RWK_ISA
