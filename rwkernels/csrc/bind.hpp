#pragma once

#include <nanobind/nanobind.h>

namespace rwk {

void bind_value_codes(nanobind::module_& m);
void bind_labels(nanobind::module_& m);
void bind_distance(nanobind::module_& m);
void bind_axis(nanobind::module_& m);
void bind_loss(nanobind::module_& m);
void bind_negatives(nanobind::module_& m);

}  // namespace rwk
