#pragma once

#include <cstdint>

namespace rwk {

// Bytes [x][y][z] in `out` from the same array with its first axis fastest.
void reverse_axes(const std::uint8_t* in, std::uint8_t* out, std::int64_t x_length, std::int64_t y_length,
                  std::int64_t z_length, int threads);

}  // namespace rwk
