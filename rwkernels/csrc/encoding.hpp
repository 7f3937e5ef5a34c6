// Labels of the caller's as the kernels take them: what the bindings of distances and maps share.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <tuple>

#include "distance.hpp"
#include "labels.hpp"

namespace rwk {

using Address = std::uintptr_t;
using Dims = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t>;
using Spacing = std::tuple<double, double, double>;
using Ignore = std::optional<std::int64_t>;

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
// Not touched before use, unlike std::vector: large arrays come as fresh pages.
template <class T>
using Array = std::unique_ptr<T[], Free>;

template <class T>
Array<T> make_array(std::int64_t size, bool zeros = false) {
  const auto n = static_cast<std::size_t>(std::max<std::int64_t>(size, 1));
  void* memory = zeros ? std::calloc(n, sizeof(T)) : std::malloc(n * sizeof(T));
  if (memory == nullptr) throw std::bad_alloc();
  return Array<T>(static_cast<T*>(memory));
}

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

Labels make_labels(Address data, const std::string& code, const Dims& dims);
inline bool empty(const Labels& labels) { return labels.batch == 0 || labels.pixels == 0; }
Classes make_classes(std::int64_t num_classes, const Ignore& ignore);

// Waking threads costs more than so many pixels.
int useful_threads(const Labels& labels, int threads);

struct Encoded {
  Codes codes;
  Array<char> memory;
  std::int64_t first_bad = -1;
};

// Codes of classes (labels.hpp), and count[b], the pixels of image b that are not ignored, where it is not null.
Encoded encode(const Labels& labels, const Classes& classes, std::int64_t* count, int threads);

// Codes where only equality counts: as few bytes as keep different labels different.
Encoded encode_for_equality(const Labels& labels, int threads);

// Flat index of the first label of no class that is not ignored; -1 if there is none.
std::int64_t find_bad_label(const Labels& labels, const Classes& classes, int threads);

}  // namespace rwk
