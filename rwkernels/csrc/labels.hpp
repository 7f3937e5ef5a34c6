// From labels as users have them to codes as the kernels read them.
#pragma once

#include <cstdint>

#include "isa.hpp"
#include "types.hpp"

namespace rwk {

struct Tally {  // of one block of pixels
  std::int64_t ignored;
  std::int64_t first_bad;  // flat index, -1 where there is none
};

constexpr std::int64_t tally_block = 1 << 16;

struct Extent {
  std::int64_t low, high;
};

struct LabelKernels {
  // Writes codes of `bytes` bytes, or none where `codes` is null; one tally for every tally_block pixels of an image.
  // Classes keep their number; ignored pixels get the code num_classes, labels of no class num_classes + 1.
  void (*encode)(const Labels&, const Classes&, void* codes, int bytes, Tally* tallies, int threads);
  // Smallest and largest label of every tally_block pixels.
  void (*extents)(const Labels&, Extent* extents, int threads);
  // Keeps the low `bytes` bytes. Labels within an interval shorter than 2^(8 bytes) stay different.
  void (*truncate)(const Labels&, void* codes, int bytes, int threads);
  // Codes in 1, 2, 4 or 8 bits: byte j of m holds codes j, m + j, 2 m + j, ..., the first in its lowest bits. False if
  // a label is of no class; `packed` is then of no use.
  bool (*pack)(const Labels&, const Classes&, int bits, std::uint8_t* packed);
  void (*unpack)(const std::uint8_t* packed, std::int64_t count, int bits, std::uint8_t* codes);
};
RWK_DECLARE_TABLES(LabelKernels, label_kernels)

}  // namespace rwk
