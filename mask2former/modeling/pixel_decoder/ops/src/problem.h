// The sizes of one multi-scale deformable attention; no PyTorch in here, so that nvcc alone can compile its users.

#pragma once

#include <cstdint>

namespace dvis {

// B batch, S pixels of all levels, M heads, D channels per head, Lq queries, L levels, P points.
struct Problem {
  int64_t batch, pixels, heads, channels, queries, levels, points;
};

}  // namespace dvis
