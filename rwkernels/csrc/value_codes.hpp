// Foreground values in [-1, 0] as codes of one or two bytes, and back.
#pragma once

#include <cstdint>

#include "isa.hpp"

namespace rwk {

struct CodeKernels {
  // codes = round(-values * (2^(8 bytes) - 1)), exactly, ties to even. False if a value lies outside [-1, 0].
  bool (*encode)(const float* values, std::int64_t count, int bytes, void* codes, int threads);
  // values = -codes / (2^(8 bytes) - 1), rounded once; +0 for 0.
  void (*decode)(const void* codes, std::int64_t count, int bytes, float* values, int threads);
};
RWK_DECLARE_TABLES(CodeKernels, code_kernels)

}  // namespace rwk
