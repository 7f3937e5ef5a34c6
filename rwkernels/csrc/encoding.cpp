#include "encoding.hpp"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <unordered_map>

#include "bad_value.hpp"
#include "labels.hpp"

namespace rwk {
namespace {

std::int64_t count_of_blocks(const Labels& labels) {
  return labels.batch * ((labels.pixels + tally_block - 1) / tally_block);
}

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

}  // namespace

Encoded encode(const MapProblem& problem, std::int64_t* count) {
  const Labels& labels = problem.labels;
  const Classes& classes = problem.classes;
  Encoded result;
  const auto tallies = make_array<Tally>(count_of_blocks(labels));
  const bool class_ignored = classes.has_ignore && classes.ignore >= 0 && classes.ignore < classes.num_classes;
  const bool as_it_is = labels.type == Label::u8 && !class_ignored;
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
  active_label_kernels().encode(labels, classes, result.memory.get(), codes.bytes, tallies.get(),
                                problem.threads);
  const Tallied sum = sum_tallies(labels, tallies.get(), count);
  if (problem.validate) require_no_bad_label(sum.first_bad);
  codes.special = sum.ignored > 0 || sum.first_bad >= 0;
  return result;
}

Encoded encode_for_equality(const MapProblem& problem) {
  const Labels& labels = problem.labels;
  Encoded result;
  Codes& codes = result.codes;
  codes.data = labels.data;
  codes.bytes = size_of(labels.type);
  if (codes.bytes <= 2) return result;
  const std::int64_t blocks = count_of_blocks(labels);
  const auto extents = make_array<Extent>(blocks);
  active_label_kernels().extents(labels, extents.get(), problem.threads);
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
    active_label_kernels().truncate(labels, result.memory.get(), needed, problem.threads);
  }
  return result;
}

std::int64_t find_bad_label(const MapProblem& problem) {
  const Labels& labels = problem.labels;
  const auto tallies = make_array<Tally>(count_of_blocks(labels));
  active_label_kernels().encode(labels, problem.classes, nullptr, 1, tallies.get(), problem.threads);
  return sum_tallies(labels, tallies.get(), nullptr).first_bad;
}

}  // namespace rwk
