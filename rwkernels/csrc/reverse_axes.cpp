// Arrays of bytes from the order of axes that NIfTI has on disk (first axis fastest) to that of the kernels.
//
// out[x][y][z] = in[z][y][x]: for every y the transpose of a matrix, in blocks of 16 x 16 that fit into registers. The
// rows of a block come again for the next y beside each other, so that a line is whole before it leaves the cache.
#include <cstdint>
#include <cstring>

#include "pool.hpp"
#include "reverse_axes.hpp"

namespace rwk {
namespace {

constexpr std::int64_t side = 16;
using Bytes [[gnu::vector_size(16)]] = std::uint8_t;

// The elements of `a` and `b` in turn: from `first` on, eight of each.
template <int first>
Bytes alternate(Bytes a, Bytes b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, first, first + 16, first + 1, first + 17, first + 2, first + 18, first + 3,
                                 first + 19, first + 4, first + 20, first + 5, first + 21, first + 6, first + 22,
                                 first + 7, first + 23);
#else  // GCC has that one from 12 on
  constexpr Bytes order = {first,      first + 16, first + 1,  first + 17, first + 2,  first + 18, first + 3,  first + 19,
                           first + 4,  first + 20, first + 5,  first + 21, first + 6,  first + 22, first + 7,  first + 23};
  return __builtin_shuffle(a, b, order);
#endif
}

// Four times: row i and row i + 8 alternate into rows 2i and 2i + 1. That moves bit 3 of a place in the block from the
// row to the end of the column four times, which swaps rows and columns.
void transpose_block(const std::uint8_t* in, std::int64_t in_stride, std::uint8_t* out, std::int64_t out_stride) {
  Bytes rows[16], next[16];
  for (int i = 0; i < 16; ++i) std::memcpy(&rows[i], in + i * in_stride, 16);
  for (int pass = 0; pass < 4; ++pass) {
    for (int i = 0; i < 8; ++i) {
      next[2 * i] = alternate<0>(rows[i], rows[i + 8]);
      next[2 * i + 1] = alternate<8>(rows[i], rows[i + 8]);
    }
    std::memcpy(rows, next, sizeof rows);
  }
  for (int i = 0; i < 16; ++i) std::memcpy(out + i * out_stride, &rows[i], 16);
}

}  // namespace

void reverse_axes(const std::uint8_t* in, std::uint8_t* out, std::int64_t x_length, std::int64_t y_length,
                  std::int64_t z_length, int threads) {
  const std::int64_t in_stride = x_length * y_length, out_stride = y_length * z_length;
  parallel_for((x_length + side - 1) / side, threads, [&](std::int64_t block) {
    const std::int64_t x0 = block * side, x1 = x0 + side < x_length ? x0 + side : x_length;
    for (std::int64_t z0 = 0; z0 < z_length; z0 += side) {
      const std::int64_t z1 = z0 + side < z_length ? z0 + side : z_length;
      const bool whole = x1 - x0 == side && z1 - z0 == side;
      for (std::int64_t y = 0; y < y_length; ++y) {
        const std::uint8_t* from = in + y * x_length;
        std::uint8_t* to = out + y * z_length;
        if (whole) {
          transpose_block(from + z0 * in_stride + x0, in_stride, to + x0 * out_stride + z0, out_stride);
          continue;
        }
        for (std::int64_t x = x0; x < x1; ++x)
          for (std::int64_t z = z0; z < z1; ++z) to[x * out_stride + z] = from[z * in_stride + x];
      }
    }
  });
}

}  // namespace rwk
