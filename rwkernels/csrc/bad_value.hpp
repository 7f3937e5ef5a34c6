// What the arrays of the caller may not hold, found while they are read.
#pragma once

#include <cstdint>
#include <exception>
#include <string>

namespace rwk {

// The value of an argument ("labels" or "class_max") at a flat index is bad. Kernels do not throw it: they say where
// the first one lies, the same place for any number of threads, and the caller of the kernel throws.
class BadValue : public std::exception {
 public:
  BadValue(const char* argument_, std::int64_t index_)
      : argument(argument_),
        index(index_),
        what_(std::string(argument_) + ": bad value at flat index " + std::to_string(index_)) {}
  const char* what() const noexcept override { return what_.c_str(); }

  const char* const argument;
  const std::int64_t index;

 private:
  std::string what_;
};

// Refuses labels of which the one at `first` is bad; -1 says that none is.
inline void require_no_bad_label(std::int64_t first) {
  if (first >= 0) throw BadValue("labels", first);
}

}  // namespace rwk
