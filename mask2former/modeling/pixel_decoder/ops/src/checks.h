// Checks of tensors, shared by the compiled back ends: shapes, types, and what keeps reads inside memory.

#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cstdint>

#include "problem.h"

namespace dvis {

inline void check_contiguous(const at::Tensor& tensor, at::Device device, const char* name) {
  TORCH_CHECK_VALUE(tensor.device() == device, name, " must be on ", device, ", got ", tensor.device());
  TORCH_CHECK_VALUE(tensor.is_contiguous(), name, " must be contiguous, got strides ", tensor.strides());
}

// value B S M D; spatial_shapes L 2 int64; level_start_index L int64.
inline void check_value_and_tables(
    const Problem& problem,
    const at::Tensor& value,
    const at::Tensor& spatial_shapes,
    const at::Tensor& level_start_index) {
  TORCH_CHECK_VALUE(
      spatial_shapes.dim() == 2 && spatial_shapes.size(0) == problem.levels && spatial_shapes.size(1) == 2 &&
          spatial_shapes.scalar_type() == at::kLong,
      "spatial_shapes must be L 2 int64, got ",
      spatial_shapes.sizes());
  TORCH_CHECK_VALUE(
      level_start_index.dim() == 1 && level_start_index.size(0) == problem.levels &&
          level_start_index.scalar_type() == at::kLong,
      "level_start_index must be L int64, got ",
      level_start_index.sizes());
  // Row numbers are 32 bits wide; everything else is 64.
  TORCH_CHECK_VALUE(problem.pixels < (int64_t{1} << 29), "value has too many pixels: ", problem.pixels);
  check_contiguous(value, value.device(), "value");
  check_contiguous(spatial_shapes, value.device(), "spatial_shapes");
  check_contiguous(level_start_index, value.device(), "level_start_index");
}

// value B S M D; spatial_shapes L 2 int64; level_start_index L int64; sampling_locations B Lq M L P 2;
// attention_weights B Lq M L P. Locations and attention have the accumulation type `computes_in`.
inline Problem check_problem(
    const at::Tensor& value,
    const at::Tensor& spatial_shapes,
    const at::Tensor& level_start_index,
    const at::Tensor& sampling_locations,
    const at::Tensor& attention_weights,
    at::ScalarType computes_in) {
  TORCH_CHECK_VALUE(value.dim() == 4, "value must be B S M D, got ", value.sizes());
  TORCH_CHECK_VALUE(
      sampling_locations.dim() == 6 && sampling_locations.size(5) == 2,
      "sampling_locations must be B Lq M L P 2, got ",
      sampling_locations.sizes());
  const Problem problem{
      value.size(0),
      value.size(1),
      value.size(2),
      value.size(3),
      sampling_locations.size(1),
      sampling_locations.size(3),
      sampling_locations.size(4)};
  TORCH_CHECK_VALUE(
      sampling_locations.size(0) == problem.batch && sampling_locations.size(2) == problem.heads,
      "sampling_locations do not fit value: ",
      sampling_locations.sizes(),
      " and ",
      value.sizes());
  TORCH_CHECK_VALUE(
      attention_weights.sizes() == sampling_locations.sizes().slice(0, 5),
      "attention_weights must be B Lq M L P, got ",
      attention_weights.sizes());
  check_value_and_tables(problem, value, spatial_shapes, level_start_index);
  TORCH_CHECK_VALUE(
      sampling_locations.scalar_type() == computes_in && attention_weights.scalar_type() == computes_in,
      "sampling_locations and attention_weights must be ",
      computes_in);
  check_contiguous(sampling_locations, value.device(), "sampling_locations");
  check_contiguous(attention_weights, value.device(), "attention_weights");
  return problem;
}

// grad_output is B Lq M*D, of the type of value.
inline void check_grad_output(const Problem& problem, const at::Tensor& value, const at::Tensor& grad_output) {
  const bool fits = grad_output.dim() == 3 && grad_output.size(0) == problem.batch &&
      grad_output.size(1) == problem.queries && grad_output.size(2) == problem.heads * problem.channels;
  TORCH_CHECK_VALUE(fits, "grad_output must be B Lq M*D, got ", grad_output.sizes());
  TORCH_CHECK_VALUE(
      grad_output.scalar_type() == value.scalar_type(),
      "grad_output must be ",
      value.scalar_type(),
      " like value, got ",
      grad_output.scalar_type());
  check_contiguous(grad_output, value.device(), "grad_output");
}

}  // namespace dvis
