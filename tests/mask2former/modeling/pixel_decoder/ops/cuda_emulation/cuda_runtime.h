// Just enough of CUDA to run this project's kernels on a CPU, one block after the other.
//
// The threads of a block are fibres in one operating system thread. A fibre runs until it meets a warp-wide
// operation and goes on when all 32 lanes of its warp have met it, so every exchange between lanes is real. What a
// GPU would punish (part of a warp skips an exchange, a misaligned access) makes the launch fail.

#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#include "cuda_runtime_api.h"

#define __CUDA_ARCH__ 900
#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(threads)

using std::floor;

namespace emulation {

constexpr int kWarp = 32;
constexpr size_t kStackBytes = 64 * 1024;

struct Index {
  unsigned x;
};

// What the lanes of a warp leave for each other. Two buffers: a lane can be one exchange ahead of another.
struct Warp {
  int64_t arrived = 0;
  double left[2][kWarp] = {};
};

struct Fibre {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(kStackBytes);
  int64_t exchanges = 0;
  bool done = false;
};

struct Block {
  std::vector<Fibre> fibres;
  std::vector<Warp> warps;
  std::function<void()> kernel;
  ucontext_t scheduler;
  unsigned running = 0;
};

inline Block* block = nullptr;
inline bool failed = false;
inline int64_t progress = 0;  // exchanges and endings so far: when it stands still, the block hangs

inline void yield() {
  Fibre& fibre = block->fibres[block->running];
  swapcontext(&fibre.context, &block->scheduler);
}

// Leave a number and wait for the other lanes of the warp; returns what all of them left.
inline const double* exchange(double number) {
  Fibre& fibre = block->fibres[block->running];
  Warp& warp = block->warps[block->running / kWarp];
  const int64_t mine = fibre.exchanges++;
  double* left = warp.left[mine % 2];
  left[block->running % kWarp] = number;
  ++warp.arrived;
  ++progress;
  while (warp.arrived < kWarp * (mine + 1)) yield();
  return left;
}

}  // namespace emulation

inline emulation::Index threadIdx, blockIdx;

namespace emulation {

inline void start_fibre() {
  block->kernel();
  block->fibres[block->running].done = true;
  ++progress;
  yield();
}

inline void run_block(unsigned index, unsigned threads, const std::function<void()>& kernel) {
  Block this_block;
  this_block.fibres.resize(threads);
  this_block.warps.resize(threads / kWarp);
  this_block.kernel = kernel;
  block = &this_block;
  blockIdx.x = index;
  for (Fibre& fibre : this_block.fibres) {
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = fibre.stack.data();
    fibre.context.uc_stack.ss_size = fibre.stack.size();
    makecontext(&fibre.context, start_fibre, 0);
  }
  unsigned done = 0;
  while (done < threads) {
    const int64_t before = progress;
    done = 0;
    for (unsigned thread = 0; thread < threads; ++thread) {
      Fibre& fibre = this_block.fibres[thread];
      if (!fibre.done) {
        this_block.running = threadIdx.x = thread;
        swapcontext(&this_block.scheduler, &fibre.context);
      }
      done += fibre.done;
    }
    if (done < threads && progress == before) {
      failed = true;
      return;
    }
  }
}

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), unsigned blocks, unsigned threads, Arguments... arguments) {
  failed = false;
  for (unsigned index = 0; index < blocks && !failed; ++index) {
    run_block(index, threads, [=] { kernel(arguments...); });
  }
}

}  // namespace emulation

inline cudaError_t cudaGetLastError() { return emulation::failed ? cudaErrorLaunchFailure : cudaSuccess; }

struct float4 {
  float x, y, z, w;
};

inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

inline int min(int a, int b) { return a < b ? a : b; }

template <typename T>
void atomicAdd(T* to, T what) {
  *to += what;
}

template <>
inline void atomicAdd(float4* to, float4 what) {
  emulation::failed |= reinterpret_cast<uintptr_t>(to) % sizeof(float4) != 0;
  *to = {to->x + what.x, to->y + what.y, to->z + what.z, to->w + what.w};
}

inline void __syncwarp() { emulation::exchange(0); }

template <typename T>
T __shfl_xor_sync(unsigned, T x, int distance) {
  const int lane = threadIdx.x % emulation::kWarp;
  return static_cast<T>(emulation::exchange(x)[lane ^ distance]);
}
