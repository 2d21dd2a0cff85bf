// Binding of the CUDA kernels to PyTorch: checks, memory, stream.

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <tuple>

#include "../checks.h"
#include "ms_deform_attn_kernels.h"

namespace dvis {
namespace {

ValueType value_type(const at::Tensor& value) {
  switch (value.scalar_type()) {
    case at::kFloat:
      return ValueType::kFloat;
    case at::kDouble:
      return ValueType::kDouble;
    case at::kHalf:
      return ValueType::kHalf;
    case at::kBFloat16:
      return ValueType::kBFloat16;
    default:
      TORCH_CHECK_VALUE(false, "value must be float32, float64, float16 or bfloat16, got ", value.scalar_type());
  }
}

at::ScalarType accumulation_type(const at::Tensor& value) {
  return value.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

at::Tensor forward_cuda(
    const at::Tensor& value,
    const at::Tensor& spatial_shapes,
    const at::Tensor& level_start_index,
    const at::Tensor& sampling_locations,
    const at::Tensor& attention_weights) {
  const Problem problem = check_problem(
      value, spatial_shapes, level_start_index, sampling_locations, attention_weights, accumulation_type(value));
  const c10::cuda::CUDAGuard guard(value.device());
  at::Tensor output =
      at::empty({problem.batch, problem.queries, problem.heads * problem.channels}, value.options());
  const Inputs inputs{
      value.const_data_ptr(),
      spatial_shapes.const_data_ptr<int64_t>(),
      level_start_index.const_data_ptr<int64_t>(),
      sampling_locations.const_data_ptr(),
      attention_weights.const_data_ptr()};
  C10_CUDA_CHECK(launch_forward(
      value_type(value), problem, inputs, output.mutable_data_ptr(), c10::cuda::getCurrentCUDAStream().stream()));
  return output;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> backward_cuda(
    const at::Tensor& value,
    const at::Tensor& spatial_shapes,
    const at::Tensor& level_start_index,
    const at::Tensor& sampling_locations,
    const at::Tensor& attention_weights,
    const at::Tensor& grad_output) {
  // Atomic additions come in any order.
  at::globalContext().alertNotDeterministic("ms_deform_attn_cuda_backward");
  const Problem problem = check_problem(
      value, spatial_shapes, level_start_index, sampling_locations, attention_weights, accumulation_type(value));
  check_grad_output(problem, value, grad_output);
  const c10::cuda::CUDAGuard guard(value.device());
  at::Tensor grad_value = at::zeros(value.sizes(), value.options().dtype(accumulation_type(value)));
  at::Tensor grad_locations = at::empty_like(sampling_locations);
  at::Tensor grad_attention = at::empty_like(attention_weights);
  const Inputs inputs{
      value.const_data_ptr(),
      spatial_shapes.const_data_ptr<int64_t>(),
      level_start_index.const_data_ptr<int64_t>(),
      sampling_locations.const_data_ptr(),
      attention_weights.const_data_ptr()};
  C10_CUDA_CHECK(launch_backward(
      value_type(value),
      problem,
      inputs,
      grad_output.const_data_ptr(),
      grad_value.mutable_data_ptr(),
      grad_locations.mutable_data_ptr(),
      grad_attention.mutable_data_ptr(),
      c10::cuda::getCurrentCUDAStream().stream()));
  return {grad_value.to(value.scalar_type()), grad_locations, grad_attention};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(dvis, library) {
  library.def(
      "ms_deform_attn_cuda_forward(Tensor value, Tensor spatial_shapes, Tensor level_start_index, "
      "Tensor sampling_locations, Tensor attention_weights) -> Tensor");
  library.def(
      "ms_deform_attn_cuda_backward(Tensor value, Tensor spatial_shapes, Tensor level_start_index, "
      "Tensor sampling_locations, Tensor attention_weights, Tensor grad_output) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(dvis, CUDA, library) {
  library.impl("ms_deform_attn_cuda_forward", &forward_cuda);
  library.impl("ms_deform_attn_cuda_backward", &backward_cuda);
}

}  // namespace dvis
