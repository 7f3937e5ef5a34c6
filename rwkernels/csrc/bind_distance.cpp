// Python's way to the distance transforms and maps: checks sizes, owns working memory, lets go of the GIL.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "bind.hpp"
#include "distance.hpp"
#include "labels.hpp"
#include "maps.hpp"
#include "pool.hpp"

namespace nb = nanobind;

namespace rwk {
namespace {

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

LabelType label_type(const std::string& code) {
  if (code == "u1") return LabelType::u1;
  if (code == "i1") return LabelType::i1;
  if (code == "i2") return LabelType::i2;
  if (code == "i4") return LabelType::i4;
  if (code == "i8") return LabelType::i8;
  throw std::invalid_argument("code: expected one of u1, i1, i2, i4, i8, got '" + code + "'");
}

Float float_type(const std::string& code) {
  if (code == "f4") return Float::f4;
  if (code == "f8") return Float::f8;
  if (code == "bf") return Float::bf;
  if (code == "f2") return Float::f2;
  throw std::invalid_argument("out_code: expected one of f4, f8, bf, f2, got '" + code + "'");
}

Labels make_labels(Address data, const std::string& code, const Dims& dims) {
  const auto [b, z, y, x] = dims;
  std::int64_t pixels = 0, total = 0;
  if (b < 0 || z < 0 || y < 0 || x < 0) throw std::invalid_argument("dims: expected no negative length");
  if (__builtin_mul_overflow(z, y, &pixels) || __builtin_mul_overflow(pixels, x, &pixels) ||
      __builtin_mul_overflow(pixels, b, &total) || total > std::numeric_limits<std::int64_t>::max() / 8)
    throw std::invalid_argument("dims: more elements than memory can hold");
  return {pointer<const void>(data), label_type(code), b, pixels};
}

// Axes of length 1 at the end only cost time: columns are fast where pixels lie side by side.
void drop_trailing_axes(Grid& grid) {
  for (int i = 0; i < 2 && grid.length[2] == 1 && !grid.bounded[2]; ++i) {
    for (int axis = 2; axis > 0; --axis) {
      grid.length[axis] = grid.length[axis - 1];
      grid.spacing[axis] = grid.spacing[axis - 1];
      grid.bounded[axis] = grid.bounded[axis - 1];
    }
    grid.length[0] = 1;
    grid.bounded[0] = false;
  }
}

Grid make_grid(const Dims& dims, int axes, const Spacing& spacing, bool black_border) {
  if (axes < 1 || axes > 3) throw std::invalid_argument("axes: expected 1, 2 or 3, got " + std::to_string(axes));
  Grid grid;
  grid.batch = std::get<0>(dims);
  const std::int64_t length[3] = {std::get<1>(dims), std::get<2>(dims), std::get<3>(dims)};
  const double size[3] = {std::get<0>(spacing), std::get<1>(spacing), std::get<2>(spacing)};
  double least = std::numeric_limits<double>::infinity(), most = 0;
  for (int axis = 0; axis < 3; ++axis) {
    const bool real = axis >= 3 - axes;
    if (!real && length[axis] != 1) throw std::invalid_argument("dims: expected length 1 on axes that are not there");
    if (axis < 2 && length[axis] > std::numeric_limits<std::int32_t>::max() - 1)
      throw std::invalid_argument("dims: expected fewer than 2^31 rows along an axis");
    if (!(size[axis] > 0) || !std::isfinite(size[axis]))
      throw std::invalid_argument("spacing: expected positive finite numbers, got " + std::to_string(size[axis]));
    grid.length[axis] = length[axis];
    grid.spacing[axis] = real ? size[axis] : size[2];
    grid.bounded[axis] = real && black_border;
    least = std::min(least, grid.spacing[axis]);
    most = std::max(most, grid.spacing[axis]);
  }
  // Squares of both, and of a whole axis, must fit a float.
  if (most / least > 1e12) throw std::invalid_argument("spacing: expected a ratio of at most 1e12 between axes");
  drop_trailing_axes(grid);
  return grid;
}

void check_classes(std::int64_t num_classes) {
  if (num_classes < 0)
    throw std::invalid_argument("num_classes: expected at least 0, got " + std::to_string(num_classes));
  constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max() - 2;
  if (num_classes > most)
    throw std::invalid_argument("num_classes: expected at most " + std::to_string(most) + ", got " +
                                std::to_string(num_classes));
}

// Waking threads costs more than this many pixels.
int useful_threads(const Labels& labels, int threads) {
  return labels.batch * labels.pixels < (1 << 17) ? 1 : std::max(threads, 1);
}

std::int64_t count_of_blocks(const Labels& labels) {
  return labels.batch * ((labels.pixels + tally_block - 1) / tally_block);
}

struct Encoded {
  Codes codes;
  Array<char> memory;
  std::int64_t first_bad = -1;
};

struct Tallied {
  std::int64_t first_bad = -1, ignored = 0;
};

Tallied sum_tallies(const Labels& labels, const Tally* tallies, std::int64_t* count) {
  Tallied sum;
  const std::int64_t per_image = labels.batch > 0 ? count_of_blocks(labels) / labels.batch : 0;
  for (std::int64_t b = 0; b < labels.batch; ++b) {
    std::int64_t ignored = 0;
    for (std::int64_t i = b * per_image; i < (b + 1) * per_image; ++i) {
      ignored += tallies[i].ignored;
      if (sum.first_bad < 0) sum.first_bad = tallies[i].first_bad;
    }
    if (count) count[b] = labels.pixels - ignored;
    sum.ignored += ignored;
  }
  return sum;
}

Encoded encode(const Labels& labels, const Classes& classes, std::int64_t* count, int threads) {
  Encoded result;
  const auto tallies = make_array<Tally>(count_of_blocks(labels));
  const bool class_ignored = classes.has_ignore && classes.ignore >= 0 && classes.ignore < classes.num_classes;
  const bool as_it_is = labels.type == LabelType::u1 && !class_ignored;
  Codes& codes = result.codes;
  codes.bytes = as_it_is || classes.num_classes <= 254 ? 1 : classes.num_classes <= 65534 ? 2 : 4;
  if (as_it_is) {
    codes.data = labels.data;
    codes.size = 256;
    codes.ignored = classes.has_ignore && classes.ignore >= 0 && classes.ignore < 256 ? classes.ignore : -1;
  } else {
    result.memory = make_array<char>(labels.batch * labels.pixels * codes.bytes);
    codes.data = result.memory.get();
    codes.size = classes.num_classes + 2;
    codes.ignored = classes.num_classes;
  }
  active_label_kernels().encode(labels, classes, result.memory.get(), codes.bytes, tallies.get(), threads);
  const Tallied sum = sum_tallies(labels, tallies.get(), count);
  result.first_bad = sum.first_bad;
  codes.special = sum.ignored > 0 || sum.first_bad >= 0;
  return result;
}

// Labels of any value, spread over more than 2^32: equal stays equal, different stays different.
void rank(const Labels& labels, std::uint32_t* codes) {
  const auto* data = static_cast<const std::int64_t*>(labels.data);
  std::unordered_map<std::int64_t, std::uint32_t> ranks;
  for (std::int64_t b = 0; b < labels.batch; ++b, data += labels.pixels, codes += labels.pixels) {
    ranks.clear();
    for (std::int64_t i = 0; i < labels.pixels; ++i) {
      if (ranks.size() > std::numeric_limits<std::uint32_t>::max())
        throw std::invalid_argument("labels: expected at most 2^32 different labels in an image");
      codes[i] = ranks.try_emplace(data[i], static_cast<std::uint32_t>(ranks.size())).first->second;
    }
  }
}

// Codes where only equality counts: as few bytes as keep different labels different.
Encoded encode_for_equality(const Labels& labels, int threads) {
  Encoded result;
  Codes& codes = result.codes;
  codes.data = labels.data;
  codes.bytes = size_of(labels.type);
  if (codes.bytes <= 2) return result;
  const std::int64_t blocks = count_of_blocks(labels);
  const auto extents = make_array<Extent>(blocks);
  active_label_kernels().extents(labels, extents.get(), threads);
  Extent all = extents[0];
  for (std::int64_t i = 1; i < blocks; ++i)
    all = {std::min(all.low, extents[i].low), std::max(all.high, extents[i].high)};
  const auto range = static_cast<std::uint64_t>(all.high) - static_cast<std::uint64_t>(all.low);
  const int needed = range < 256 ? 1 : range < 65536 ? 2 : 4;
  if (needed == codes.bytes) return result;
  codes.bytes = needed;
  result.memory = make_array<char>(labels.batch * labels.pixels * needed);
  codes.data = result.memory.get();
  if (range > std::numeric_limits<std::uint32_t>::max()) {
    rank(labels, reinterpret_cast<std::uint32_t*>(result.memory.get()));
  } else {
    active_label_kernels().truncate(labels, result.memory.get(), needed, threads);
  }
  return result;
}

Array<RowRange> class_rows(const Codes& codes, std::int64_t num_classes, const Grid& grid, int threads) {
  auto ranges = make_array<RowRange>(grid.batch * num_classes * grid.length[0]);
  active_distance_kernels().class_rows(codes, num_classes, grid, ranges.get(), threads);
  return ranges;
}

bool empty(const Labels& labels) { return labels.batch == 0 || labels.pixels == 0; }

Classes make_classes(std::int64_t num_classes, const Ignore& ignore) {
  check_classes(num_classes);
  return {num_classes, ignore.has_value(), ignore.value_or(0)};
}

void distance(Address data, const std::string& code, Address out, const Dims& dims, int axes, const Spacing& spacing,
              bool squared, bool black_border, int threads) {
  const Labels labels = make_labels(data, code, dims);
  const Grid grid = make_grid(dims, axes, spacing, black_border);
  if (empty(labels)) return;
  nb::gil_scoped_release release;
  threads = useful_threads(labels, threads);
  const Encoded encoded = encode_for_equality(labels, threads);
  active_distance_kernels().distance(encoded.codes, pointer<float>(out), grid, squared, threads);
}

std::int64_t class_distance(Address data, const std::string& code, Address out, const Dims& dims, int axes,
                            const Spacing& spacing, std::int64_t num_classes, bool squared, const Ignore& ignore,
                            bool validate, int threads) {
  const Labels labels = make_labels(data, code, dims);
  const Grid grid = make_grid(dims, axes, spacing, false);
  const Classes classes = make_classes(num_classes, ignore);
  if (empty(labels)) return -1;
  nb::gil_scoped_release release;
  threads = useful_threads(labels, threads);
  const Encoded encoded = encode(labels, classes, nullptr, threads);
  if (validate && encoded.first_bad >= 0) return encoded.first_bad;
  const auto ranges = class_rows(encoded.codes, num_classes, grid, threads);
  active_distance_kernels().class_distance(encoded.codes, num_classes, ranges.get(), pointer<float>(out), grid, squared,
                                           threads);
  return -1;
}

// -2 - (b * num_classes + k) of the first class that is present and whose class_max is no positive finite number.
std::int64_t bad_class_max(const RectifiedMap& map, std::int64_t batch, std::int64_t codes) {
  for (std::int64_t b = 0; b < batch; ++b)
    for (std::int64_t k = 0; k < std::min(map.num_classes, codes); ++k) {
      const float given = map.class_max[b * map.num_classes + k];
      const bool present = map.maxima[b * codes + k] > 0;
      if (present && !(given > 0 && std::isfinite(given))) return -2 - (b * map.num_classes + k);
    }
  return -1;
}

std::int64_t rectified(Address data, const std::string& code, Address foreground, Address count, const Dims& dims,
                       int axes, const Spacing& spacing, std::int64_t num_classes, Address class_max,
                       const Ignore& ignore, bool black_border, bool validate, int threads) {
  const Labels labels = make_labels(data, code, dims);
  const Grid grid = make_grid(dims, axes, spacing, black_border);
  const Classes classes = make_classes(num_classes, ignore);
  if (empty(labels)) {
    if (count != 0) std::fill_n(pointer<std::int64_t>(count), labels.batch, 0);
    return -1;
  }
  nb::gil_scoped_release release;
  threads = useful_threads(labels, threads);
  const Encoded encoded = encode(labels, classes, pointer<std::int64_t>(count), threads);
  if (validate && encoded.first_bad >= 0) return encoded.first_bad;
  const auto maxima = make_array<float>(grid.batch * encoded.codes.size, true);
  const RectifiedMap map{num_classes, pointer<const float>(class_max), maxima.get(), pointer<float>(foreground)};
  active_map_kernels().rectified(encoded.codes, map, grid, threads);
  return class_max != 0 ? bad_class_max(map, grid.batch, encoded.codes.size) : -1;
}

void class_max(Address data, const std::string& code, Address distance, Address out, const Dims& dims,
               std::int64_t num_classes, int threads) {
  const Labels labels = make_labels(data, code, dims);
  const Classes classes = make_classes(num_classes, std::nullopt);
  std::fill_n(pointer<float>(out), labels.batch * num_classes, 0.0f);
  if (empty(labels)) return;
  nb::gil_scoped_release release;
  threads = useful_threads(labels, threads);
  const Encoded encoded = encode(labels, classes, nullptr, threads);
  const std::int64_t size = encoded.codes.size;
  const auto maxima = make_array<float>(labels.batch * size, true);
  active_map_kernels().class_max(encoded.codes, pointer<const float>(distance), maxima.get(), labels.batch,
                                 labels.pixels, threads);
  for (std::int64_t b = 0; b < labels.batch; ++b)
    std::copy_n(maxima.get() + b * size, std::min(size, num_classes), pointer<float>(out) + b * num_classes);
}

std::int64_t boundary(Address data, const std::string& code, Address out, const Dims& dims, int axes,
                      const Spacing& spacing, std::int64_t num_classes, const Ignore& ignore, double absent,
                      double inside_offset, bool black_border, bool validate, int threads) {
  const Labels labels = make_labels(data, code, dims);
  const Grid grid = make_grid(dims, axes, spacing, black_border);
  const Classes classes = make_classes(num_classes, ignore);
  if (empty(labels)) return -1;
  nb::gil_scoped_release release;
  threads = useful_threads(labels, threads);
  const Encoded encoded = encode(labels, classes, nullptr, threads);
  if (validate && encoded.first_bad >= 0) return encoded.first_bad;
  const auto ranges = class_rows(encoded.codes, num_classes, grid, threads);
  const auto inside = make_array<float>(labels.batch * labels.pixels);
  const BoundaryMap map{num_classes,        ranges.get(),
                        inside.get(),       pointer<float>(out),
                        static_cast<float>(absent), static_cast<float>(inside_offset)};
  active_map_kernels().boundary(encoded.codes, map, grid, threads);
  return -1;
}

void dense(Address data, const std::string& code, Address foreground, Address background, double background_value,
           Address class_scale, Address out, const std::string& out_code, const Dims& dims, std::int64_t num_classes,
           const Ignore& ignore, int threads) {
  const Labels labels = make_labels(data, code, dims);
  const DenseMap map{&labels,
                     make_classes(num_classes, ignore),
                     pointer<const float>(foreground),
                     pointer<const float>(background),
                     static_cast<float>(background_value),
                     pointer<const float>(class_scale),
                     pointer<void>(out),
                     float_type(out_code)};
  if (empty(labels)) return;
  nb::gil_scoped_release release;
  active_map_kernels().dense(map, useful_threads(labels, threads));
}

std::int64_t first_bad_label(Address data, const std::string& code, std::int64_t n, std::int64_t num_classes,
                             const Ignore& ignore, int threads) {
  const Labels labels = make_labels(data, code, {1, 1, 1, n});
  const Classes classes = make_classes(num_classes, ignore);
  if (empty(labels)) return -1;
  nb::gil_scoped_release release;
  const auto tallies = make_array<Tally>(count_of_blocks(labels));
  active_label_kernels().encode(labels, classes, nullptr, 1, tallies.get(), useful_threads(labels, threads));
  return sum_tallies(labels, tallies.get(), nullptr).first_bad;
}

}  // namespace

void bind_distance(nb::module_& m) {
  m.def("distance", &distance, nb::arg("labels"), nb::arg("code"), nb::arg("out"), nb::arg("dims"), nb::arg("axes"),
        nb::arg("spacing"), nb::arg("squared"), nb::arg("black_border"), nb::arg("threads"));
  m.def("class_distance", &class_distance, nb::arg("labels"), nb::arg("code"), nb::arg("out"), nb::arg("dims"),
        nb::arg("axes"), nb::arg("spacing"), nb::arg("num_classes"), nb::arg("squared"), nb::arg("ignore").none(),
        nb::arg("validate"), nb::arg("threads"));
  m.def("rectified", &rectified, nb::arg("labels"), nb::arg("code"), nb::arg("foreground_out"), nb::arg("count_out"),
        nb::arg("dims"), nb::arg("axes"), nb::arg("spacing"), nb::arg("num_classes"), nb::arg("class_max"),
        nb::arg("ignore").none(), nb::arg("black_border"), nb::arg("validate"), nb::arg("threads"));
  m.def("class_max", &class_max, nb::arg("labels"), nb::arg("code"), nb::arg("distance"), nb::arg("out"),
        nb::arg("dims"), nb::arg("num_classes"), nb::arg("threads"));
  m.def("boundary", &boundary, nb::arg("labels"), nb::arg("code"), nb::arg("out"), nb::arg("dims"), nb::arg("axes"),
        nb::arg("spacing"), nb::arg("num_classes"), nb::arg("ignore").none(), nb::arg("absent"),
        nb::arg("inside_offset"), nb::arg("black_border"), nb::arg("validate"), nb::arg("threads"));
  m.def("dense", &dense, nb::arg("labels"), nb::arg("code"), nb::arg("foreground"), nb::arg("background"),
        nb::arg("background_value"), nb::arg("class_scale"), nb::arg("out"), nb::arg("out_code"), nb::arg("dims"),
        nb::arg("num_classes"), nb::arg("ignore").none(), nb::arg("threads"));
  m.def("first_bad_label", &first_bad_label, nb::arg("labels"), nb::arg("code"), nb::arg("n"), nb::arg("num_classes"),
        nb::arg("ignore").none(), nb::arg("threads"));
}

}  // namespace rwk
