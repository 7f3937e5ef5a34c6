// What the labels of a tile say: a class each, or that a pixel is ignored, or that its label is bad.
#pragma once

#include <atomic>
#include <cstdint>
#include <type_traits>

#include "types.hpp"

namespace rwk::RWK_ISA {

// Calls body(address of pixel `at`) with the type of the labels.
template <class Body>
auto with_type(Label type, const void* data, std::int64_t at, const Body& body) {
  switch (type) {
    case Label::u8: return body(static_cast<const std::uint8_t*>(data) + at);
    case Label::i8: return body(static_cast<const std::int8_t*>(data) + at);
    case Label::i16: return body(static_cast<const std::int16_t*>(data) + at);
    case Label::i32: return body(static_cast<const std::int32_t*>(data) + at);
    default: return body(static_cast<const std::int64_t*>(data) + at);
  }
}

// The code of a pixel of no class.
constexpr std::int32_t ignored = -1, bad_label = -2;

template <class S>
bool read_codes(const S* from, int n, const Classes& classes, std::int32_t* codes) {
  // Labels of fewer than 64 bits are compared as 32-bit numbers, twice as many at a time.
  using Wide = std::conditional_t<sizeof(S) == 8, std::int64_t, std::int32_t>;
  const auto skipped = static_cast<S>(classes.ignore);
  const bool can_skip = classes.has_ignore && static_cast<std::int64_t>(skipped) == classes.ignore;
  const Wide num_classes = static_cast<Wide>(classes.num_classes);
  std::int32_t lowest = 0;
  for (int i = 0; i < n; ++i) {
    const Wide label = from[i];
    std::int32_t code = label >= 0 && label < num_classes ? static_cast<std::int32_t>(label) : bad_label;
    code = can_skip && label == skipped ? ignored : code;
    codes[i] = code;
    lowest = code < lowest ? code : lowest;
  }
  return lowest == 0;
}

// Writes codes[0, n) of the pixels from `first` on, and says whether all of them are classes.
inline bool read_codes(const Labels& labels, const Classes& classes, std::int64_t first, int n, std::int32_t* codes) {
  return with_type(labels.type, labels.data, first,
                   [&](const auto* from) { return read_codes(from, n, classes, codes); });
}

inline void lower(std::atomic<std::int64_t>& lowest, std::int64_t value) {
  std::int64_t seen = lowest.load(std::memory_order_relaxed);
  while (value < seen && !lowest.compare_exchange_weak(seen, value, std::memory_order_relaxed)) {
  }
}

}  // namespace rwk::RWK_ISA
