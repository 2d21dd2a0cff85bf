// Multi-scale deformable attention on CUDA: forward and backward kernels.
//
// A team of lanes (a power of two within one warp) computes one output row: one query, one head. Each lane owns a
// few neighbouring channels, 16 bytes where alignment allows, so that a team reads a value row with full-width,
// coalesced loads. Samples are taken a team's worth at a time: every lane works out where one of them falls
// and shares that through shared memory, then all lanes go through them together. This way the index arithmetic
// is done once per sample instead of once per channel.
//
// A block takes neighbouring queries of one head, because these look at overlapping pixels: most reads hit the
// first-level cache. Sums are made in float (double for double values).

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <type_traits>

#include "ms_deform_attn_kernels.h"

namespace dvis {
namespace {

constexpr int kThreads = 128;
constexpr int kWarp = 32;
constexpr unsigned kWholeWarp = 0xffffffffu;
constexpr int kLoadBytes = 16;

template <typename T>
struct Accumulation {
  using type = float;
};
template <>
struct Accumulation<double> {
  using type = double;
};

__device__ inline float widen(float x) { return x; }
__device__ inline double widen(double x) { return x; }
__device__ inline float widen(__half x) { return __half2float(x); }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

__device__ inline void narrow(float x, float& to) { to = x; }
__device__ inline void narrow(double x, double& to) { to = x; }
__device__ inline void narrow(float x, __half& to) { to = __float2half_rn(x); }
__device__ inline void narrow(float x, __nv_bfloat16& to) { to = __float2bfloat16_rn(x); }

// N values that move as one load or store.
template <typename T, int N>
struct alignas(N * sizeof(T)) Pack {
  T element[N];
};

// Four numbers, one per corner: top left, top right, bottom left, bottom right.
template <typename A>
struct alignas(16) Four {
  A corner[4];
};

// How far a sample lies from its top left corner, in pixels, and its attention.
template <typename A>
struct alignas(16) Position {
  A right, down, attention;
};

template <typename A>
__device__ inline Four<A> bilinear_weights(A right, A down) {
  return {{(1 - right) * (1 - down), right * (1 - down), (1 - right) * down, right * down}};
}

// Which part of the work a lane has.
struct Share {
  int lane;  // in its team
  int first_thread;  // of its team, in the block
  int64_t image, head, query;
  bool active;  // false past the last query; such lanes only keep the warp together

  __device__ Share(const Problem& problem, int lanes) {
    const unsigned teams = kThreads / lanes;
    const unsigned queries = problem.queries, heads = problem.heads;  // 64-bit division is slow
    const unsigned blocks_per_head = (queries + teams - 1) / teams;
    lane = threadIdx.x % lanes;
    first_thread = threadIdx.x - lane;
    query = blockIdx.x % blocks_per_head * teams + threadIdx.x / lanes;
    head = blockIdx.x / blocks_per_head % heads;
    image = blockIdx.x / blocks_per_head / heads;
    active = query < problem.queries;
  }

  // The number of this share's row among all output rows.
  __device__ int64_t row(const Problem& problem) const {
    return (image * problem.queries + query) * problem.heads + head;
  }
};

// Width and height of a level; zero if it does not lie inside value, so that no sample falls on it.
struct Level {
  int width, height, start;

  __device__ Level(const Problem& problem, const Inputs& inputs, int64_t level) {
    const int64_t rows = inputs.spatial_shapes[2 * level], columns = inputs.spatial_shapes[2 * level + 1];
    const int64_t first = inputs.level_start_index[level];
    const bool small = rows >= 0 && columns >= 0 && first >= 0 && rows <= problem.pixels &&
        columns <= problem.pixels && first <= problem.pixels;
    const bool fits = small && rows * columns <= problem.pixels - first;
    width = fits ? static_cast<int>(columns) : 0;
    height = fits ? static_cast<int>(rows) : 0;
    start = fits ? static_cast<int>(first) : 0;
  }
};

template <typename A>
__device__ inline A between(A low, A x, A high) {
  return x > low ? (x < high ? x : high) : low;  // low for NaN
}

// Where a lane's own sample falls: the rows of its corners (-1: outside) and its position between them.
template <typename A>
struct Sample {
  Four<int> rows;
  Position<A> position;
  A width, height;

  __device__ Sample(const Problem& problem, const Inputs& inputs, const Share& share, int sample) {
    rows = {{-1, -1, -1, -1}};
    position = {0, 0, 0};
    width = height = 0;
    const int samples = static_cast<int>(problem.levels * problem.points);
    if (!share.active || sample >= samples) return;
    const Level level(problem, inputs, sample / static_cast<int>(problem.points));
    const int64_t index = share.row(problem) * samples + sample;
    const A* location = static_cast<const A*>(inputs.sampling_locations) + 2 * index;
    width = static_cast<A>(level.width);
    height = static_cast<A>(level.height);
    // Far away is as good as just outside.
    const A x = between(A(-2), location[0] * width - A(0.5), width);
    const A y = between(A(-2), location[1] * height - A(0.5), height);
    const A left = floor(x), top = floor(y);
    const int column = static_cast<int>(left), line = static_cast<int>(top);
    position = {x - left, y - top, static_cast<const A*>(inputs.attention_weights)[index]};
    for (int corner = 0; corner < 4; ++corner) {
      const int at_column = column + corner % 2, at_line = line + corner / 2;
      const bool inside = at_column >= 0 && at_column < level.width && at_line >= 0 && at_line < level.height;
      if (inside) rows.corner[corner] = level.start + at_line * level.width + at_column;
    }
  }
};

// Channels of one value row, or zeros for a corner outside.
template <typename T, int N, typename A>
__device__ inline void load_row(const T* value, int row, int64_t stride, A (&to)[N]) {
  Pack<T, N> pack;
  if (row >= 0) pack = *reinterpret_cast<const Pack<T, N>*>(value + row * stride);
#pragma unroll
  for (int k = 0; k < N; ++k) to[k] = row >= 0 ? widen(pack.element[k]) : A(0);
}

template <typename A, int N>
__device__ inline void add_atomically(A* to, const A (&what)[N]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  constexpr bool kFourAtOnce = sizeof(A) == 4 && N % 4 == 0;  // Hopper takes four floats in one request
#else
  constexpr bool kFourAtOnce = false;
#endif
  if constexpr (kFourAtOnce) {
#pragma unroll
    for (int k = 0; k < N; k += 4) {
      atomicAdd(reinterpret_cast<float4*>(to + k), make_float4(what[k], what[k + 1], what[k + 2], what[k + 3]));
    }
  } else {
#pragma unroll
    for (int k = 0; k < N; ++k) atomicAdd(to + k, what[k]);
  }
}

// Sum over the lanes of a team; every lane gets it.
template <typename A>
__device__ inline A team_sum(A x, int lanes) {
  for (int distance = lanes / 2; distance > 0; distance /= 2) {
    x += __shfl_xor_sync(kWholeWarp, x, distance);
  }
  return x;
}

template <typename T, int N>
__global__ void __launch_bounds__(kThreads) forward_kernel(Problem problem, int lanes, Inputs inputs, T* output) {
  using A = typename Accumulation<T>::type;
  __shared__ Four<int> shared_rows[kThreads];
  __shared__ Four<A> shared_weights[kThreads];

  const Share share(problem, lanes);
  const int samples = static_cast<int>(problem.levels * problem.points);
  const int64_t stride = problem.heads * problem.channels;
  const T* image = static_cast<const T*>(inputs.value) + share.image * problem.pixels * stride +
      share.head * problem.channels;

  for (int64_t first_channel = 0; first_channel < problem.channels; first_channel += lanes * N) {
    const int64_t channel = first_channel + share.lane * N;
    const bool has_channels = share.active && channel < problem.channels;
    A sums[N] = {};
    for (int first = 0; first < samples; first += lanes) {
      const Sample<A> own(problem, inputs, share, first + share.lane);
      Four<A> weights = bilinear_weights(own.position.right, own.position.down);
      for (A& weight : weights.corner) weight *= own.position.attention;
      shared_rows[threadIdx.x] = own.rows;
      shared_weights[threadIdx.x] = weights;
      __syncwarp();
      const int count = has_channels ? min(lanes, samples - first) : 0;
#pragma unroll 2
      for (int i = 0; i < count; ++i) {
        const Four<int> rows = shared_rows[share.first_thread + i];
        const Four<A> by = shared_weights[share.first_thread + i];
        A values[4][N];
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
          load_row<T, N>(image + channel, rows.corner[corner], stride, values[corner]);
        }
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
#pragma unroll
          for (int k = 0; k < N; ++k) sums[k] += by.corner[corner] * values[corner][k];
        }
      }
      __syncwarp();
    }
    if (has_channels) {
      Pack<T, N> pack;
#pragma unroll
      for (int k = 0; k < N; ++k) narrow(sums[k], pack.element[k]);
      *reinterpret_cast<Pack<T, N>*>(output + share.row(problem) * problem.channels + channel) = pack;
    }
  }
}

template <typename T, int N>
__global__ void __launch_bounds__(kThreads) backward_kernel(
    Problem problem,
    int lanes,
    Inputs inputs,
    const T* grad_output,
    typename Accumulation<T>::type* grad_value,
    typename Accumulation<T>::type* grad_locations,
    typename Accumulation<T>::type* grad_attention) {
  using A = typename Accumulation<T>::type;
  __shared__ Four<int> shared_rows[kThreads];
  __shared__ Position<A> shared_positions[kThreads];

  const Share share(problem, lanes);
  const int samples = static_cast<int>(problem.levels * problem.points);
  const int64_t stride = problem.heads * problem.channels;
  const int64_t image = share.image * problem.pixels * stride + share.head * problem.channels;
  const T* value = static_cast<const T*>(inputs.value) + image;
  const int64_t channels = share.active ? problem.channels : 0;

  for (int first = 0; first < samples; first += lanes) {
    const Sample<A> own(problem, inputs, share, first + share.lane);
    shared_rows[threadIdx.x] = own.rows;
    shared_positions[threadIdx.x] = own.position;
    __syncwarp();
    A own_along_x = 0, own_along_y = 0, own_along_attention = 0;
    const int count = min(lanes, samples - first);  // the same in the whole warp, as the sums need all lanes
    for (int i = 0; i < count; ++i) {
      const Four<int> rows = shared_rows[share.first_thread + i];
      const Position<A> position = shared_positions[share.first_thread + i];
      const Four<A> weights = bilinear_weights(position.right, position.down);
      A products[4] = {};  // of output gradient and each corner's values
      for (int64_t channel = share.lane * N; channel < channels; channel += lanes * N) {
        A grads[N];
        load_row<T, N>(grad_output + share.row(problem) * problem.channels + channel, 0, 0, grads);
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
          const int row = rows.corner[corner];
          A values[N], addends[N];
          load_row<T, N>(value + channel, row, stride, values);
#pragma unroll
          for (int k = 0; k < N; ++k) {
            products[corner] += grads[k] * values[k];
            addends[k] = weights.corner[corner] * position.attention * grads[k];
          }
          if (row >= 0) add_atomically<A, N>(grad_value + image + row * stride + channel, addends);
        }
      }
      const A across_top = products[1] - products[0], across_bottom = products[3] - products[2];
      const A down_left = products[2] - products[0], down_right = products[3] - products[1];
      A sampled = 0;
#pragma unroll
      for (int corner = 0; corner < 4; ++corner) sampled += weights.corner[corner] * products[corner];
      const A along_x = team_sum((1 - position.down) * across_top + position.down * across_bottom, lanes);
      const A along_y = team_sum((1 - position.right) * down_left + position.right * down_right, lanes);
      const A along_attention = team_sum(sampled, lanes);
      if (share.lane == i) {
        own_along_x = along_x;
        own_along_y = along_y;
        own_along_attention = along_attention;
      }
    }
    if (share.active && first + share.lane < samples) {
      const int64_t index = share.row(problem) * samples + first + share.lane;
      grad_locations[2 * index] = own.position.attention * own.width * own_along_x;
      grad_locations[2 * index + 1] = own.position.attention * own.height * own_along_y;
      grad_attention[index] = own_along_attention;
    }
    __syncwarp();
  }
}

// How a kernel is spread over the device.
struct Launch {
  int lanes = 1;  // per output row
  int64_t blocks = 0;
  bool countable = true;  // in 32 bits

  Launch(const Problem& problem, int channels_per_lane) {
    while (lanes < kWarp && lanes * channels_per_lane < problem.channels) lanes *= 2;
    const int teams = kThreads / lanes;
    blocks = (problem.queries + teams - 1) / teams * problem.heads * problem.batch;
    for (const int64_t count : {blocks, problem.queries, problem.heads, problem.levels * problem.points}) {
      countable = countable && count <= std::numeric_limits<int>::max() - kThreads;
    }
  }

  template <typename... Parameters, typename... Arguments>
  cudaError_t run(void (*kernel)(Parameters...), cudaStream_t stream, Arguments... arguments) const {
    if (blocks == 0) return cudaSuccess;
    if (!countable) return cudaErrorInvalidConfiguration;
    kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(arguments...);
    return cudaGetLastError();
  }
};

template <typename T>
bool loads_fit(const Problem& problem, std::initializer_list<const void*> pointers) {
  bool fit = problem.channels * sizeof(T) % kLoadBytes == 0;
  for (const void* pointer : pointers) fit = fit && reinterpret_cast<uintptr_t>(pointer) % kLoadBytes == 0;
  return fit;
}

// Call run with a null pointer of the value type.
template <typename Run>
cudaError_t with_type(ValueType type, Run run) {
  switch (type) {
    case ValueType::kFloat:
      return run(static_cast<float*>(nullptr));
    case ValueType::kDouble:
      return run(static_cast<double*>(nullptr));
    case ValueType::kHalf:
      return run(static_cast<__half*>(nullptr));
    case ValueType::kBFloat16:
      return run(static_cast<__nv_bfloat16*>(nullptr));
  }
  return cudaErrorInvalidValue;
}

template <typename T, int N>
cudaError_t forward(const Problem& problem, const Inputs& inputs, void* output, cudaStream_t stream) {
  const Launch launch(problem, N);
  return launch.run(forward_kernel<T, N>, stream, problem, launch.lanes, inputs, static_cast<T*>(output));
}

template <typename T, int N>
cudaError_t backward(
    const Problem& problem,
    const Inputs& inputs,
    const void* grad_output,
    void* grad_value,
    void* grad_locations,
    void* grad_attention,
    cudaStream_t stream) {
  using A = typename Accumulation<T>::type;
  const Launch launch(problem, N);
  return launch.run(
      backward_kernel<T, N>,
      stream,
      problem,
      launch.lanes,
      inputs,
      static_cast<const T*>(grad_output),
      static_cast<A*>(grad_value),
      static_cast<A*>(grad_locations),
      static_cast<A*>(grad_attention));
}

}  // namespace

cudaError_t launch_forward(
    ValueType type, const Problem& problem, const Inputs& inputs, void* output, cudaStream_t stream) {
  return with_type(type, [&](auto* example) {
    using T = std::remove_pointer_t<decltype(example)>;
    return loads_fit<T>(problem, {inputs.value, output})
        ? forward<T, kLoadBytes / sizeof(T)>(problem, inputs, output, stream)
        : forward<T, 1>(problem, inputs, output, stream);
  });
}

cudaError_t launch_backward(
    ValueType type,
    const Problem& problem,
    const Inputs& inputs,
    const void* grad_output,
    void* grad_value,
    void* grad_locations,
    void* grad_attention,
    cudaStream_t stream) {
  return with_type(type, [&](auto* example) {
    using T = std::remove_pointer_t<decltype(example)>;
    return loads_fit<T>(problem, {inputs.value, grad_output, grad_value})
        ? backward<T, kLoadBytes / sizeof(T)>(
              problem, inputs, grad_output, grad_value, grad_locations, grad_attention, stream)
        : backward<T, 1>(problem, inputs, grad_output, grad_value, grad_locations, grad_attention, stream);
  });
}

}  // namespace dvis
