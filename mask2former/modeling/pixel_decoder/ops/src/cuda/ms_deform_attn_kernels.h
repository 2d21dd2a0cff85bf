// What the CUDA kernels offer to the binding. Free of PyTorch: nvcc compiles the kernels alone and quickly.
//
// All pointers are to device memory, contiguous, with the layouts of the public function. "Accumulation type" is
// double for double values and float otherwise.

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../problem.h"

namespace dvis {

enum class ValueType { kFloat, kDouble, kHalf, kBFloat16 };

struct Inputs {
  const void* value;  // B S M D, of the value type
  const int64_t* spatial_shapes;  // L 2
  const int64_t* level_start_index;  // L
  const void* sampling_locations;  // B Lq M L P 2, of the accumulation type
  const void* attention_weights;  // B Lq M L P, of the accumulation type
};

// Write output, B Lq M*D of the value type.
cudaError_t launch_forward(
    ValueType type, const Problem& problem, const Inputs& inputs, void* output, cudaStream_t stream);

// Add to grad_value (B S M D, of the accumulation type, zeroed by the caller) and write the gradients of locations
// and attention, given the gradient of the output (B Lq M*D, of the value type).
cudaError_t launch_backward(
    ValueType type,
    const Problem& problem,
    const Inputs& inputs,
    const void* grad_output,
    void* grad_value,
    void* grad_locations,
    void* grad_attention,
    cudaStream_t stream);

}  // namespace dvis
