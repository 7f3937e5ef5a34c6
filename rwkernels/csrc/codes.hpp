// What the labels of a tile say: a class each, or that a pixel is ignored, or that its label is bad.
#pragma once

#include <atomic>
#include <type_traits>

#include "loss.hpp"
#include "loss_tile.hpp"

namespace rwk::RWK_ISA {

template <class Code, class Task>
bool encode_as(const void* labels, std::int64_t first, int n, const Task& task, std::int32_t* codes) {
  // Labels of fewer than 64 bits are compared as 32-bit numbers, twice as many at a time.
  using Wide = std::conditional_t<sizeof(Code) == 8, std::int64_t, std::int32_t>;
  const Code* from = static_cast<const Code*>(labels) + first;
  const auto skipped = static_cast<Code>(task.ignore);
  const bool can_skip = task.has_ignore && static_cast<std::int64_t>(skipped) == task.ignore;
  const Wide classes = static_cast<Wide>(task.sizes[1]);
  std::int32_t lowest = 0;
  for (int i = 0; i < n; ++i) {
    const Wide label = from[i];
    std::int32_t code = label >= 0 && label < classes ? static_cast<std::int32_t>(label) : bad_label;
    code = can_skip && label == skipped ? ignored : code;
    codes[i] = code;
    lowest = code < lowest ? code : lowest;
  }
  return lowest == 0;
}

// Writes codes[0, n) and says whether all of them are classes. A task has labels, label_type, has_ignore, ignore and
// sizes[1], the number of classes.
template <class Task>
bool encode(std::int64_t first, int n, const Task& task, std::int32_t* codes) {
  switch (task.label_type) {
    case Label::u8: return encode_as<std::uint8_t>(task.labels, first, n, task, codes);
    case Label::i8: return encode_as<std::int8_t>(task.labels, first, n, task, codes);
    case Label::i16: return encode_as<std::int16_t>(task.labels, first, n, task, codes);
    case Label::i32: return encode_as<std::int32_t>(task.labels, first, n, task, codes);
    default: return encode_as<std::int64_t>(task.labels, first, n, task, codes);
  }
}

inline void lower(std::atomic<std::int64_t>& lowest, std::int64_t value) {
  std::int64_t seen = lowest.load(std::memory_order_relaxed);
  while (value < seen && !lowest.compare_exchange_weak(seen, value, std::memory_order_relaxed)) {
  }
}

}  // namespace rwk::RWK_ISA
