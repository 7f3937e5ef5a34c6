// Labels of the caller's as the kernels take them: what the bindings of distances and maps share.
#pragma once

#include <cstdint>

#include "distance.hpp"
#include "maps.hpp"
#include "memory.hpp"

namespace rwk {

struct Encoded {
  Codes codes;
  Array<char> memory;
};

// Codes of classes (labels.hpp), and count[b], the pixels of image b that are not ignored, where it is not null. Throws
// BadValue for a bad label, once everything is counted, if the problem says so.
Encoded encode(const MapProblem& problem, std::int64_t* count);

// Codes where only equality counts: as few bytes as keep different labels different.
Encoded encode_for_equality(const MapProblem& problem);

// Flat index of the first bad label; -1 if there is none.
std::int64_t find_bad_label(const MapProblem& problem);

}  // namespace rwk
