// Working memory that is not touched before use, unlike std::vector's: large arrays come as fresh pages.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace rwk {

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

template <class T>
using Array = std::unique_ptr<T[], Free>;

template <class T>
Array<T> make_array(std::int64_t size, bool zeros = false) {
  const auto n = static_cast<std::size_t>(std::max<std::int64_t>(size, 1));
  void* memory = zeros ? std::calloc(n, sizeof(T)) : std::malloc(n * sizeof(T));
  if (memory == nullptr) throw std::bad_alloc();
  return Array<T>(static_cast<T*>(memory));
}

}  // namespace rwk
