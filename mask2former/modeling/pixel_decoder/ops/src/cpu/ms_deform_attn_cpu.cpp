// Multi-scale deformable attention on the CPU: forward and backward, float32 and float64; and a forward for inference
// that starts from what the projections give, on float32, float64 and bfloat16 values.
//
// A sample is one (head, level, point) of a query. It touches four value rows of D channels each, its corners.
// Both passes first turn locations into row numbers and fractions for many samples at once (a loop that the
// compiler vectorises over samples), then work row by row with explicit vectors over channels.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>
#include <c10/util/BFloat16.h>
#include <torch/library.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <utility>
#include <vector>

#include "../checks.h"

namespace dvis {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

constexpr int kCorners = 4;  // top left, top right, bottom left, bottom right
constexpr int64_t kQueriesPerBlock = 16;  // of the backward pass
constexpr int64_t kMultipliesPerTask = 1 << 16;  // less than this is not worth a second thread

// Vectors of the compiler (GCC and Clang), N elements wide.
template <typename T, int N>
struct Vector {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};

template <typename T, int N>
inline typename Vector<T, N>::type load(const T* from) {
  typename Vector<T, N>::type result;
  std::memcpy(&result, from, sizeof(result));
  return result;
}

template <typename T, int N>
inline void store(T* to, typename Vector<T, N>::type vector) {
  std::memcpy(to, &vector, sizeof(vector));
}

// N values of a row, in the type that is computed in.
template <typename T, int N>
inline typename Vector<T, N>::type load_row(const T* from) {
  return load<T, N>(from);
}

// The bits of a bfloat16 are the upper half of a float's.
template <typename T, int N>
inline typename Vector<float, N>::type load_row(const at::BFloat16* from) {
  const auto* bits = reinterpret_cast<const uint16_t*>(from);
  typename Vector<float, N>::type result;
#if defined(__AVX512F__)
  if constexpr (N == 16) {  // the compiler's own conversion is twice as many instructions
    const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bits));
    const __m512i wide = _mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16);
    std::memcpy(&result, &wide, sizeof(result));
    return result;
  }
#endif
  const auto wide = __builtin_convertvector(load<uint16_t, N>(bits), typename Vector<uint32_t, N>::type) << 16;
  std::memcpy(&result, &wide, sizeof(result));
  return result;
}

// Store sums as values.
template <typename T>
inline void store_row(int64_t count, const T* from, T* to) {
  std::copy_n(from, count, to);
}

// Rounds to the nearest, ties to even; written without branches, so that compilers vectorise it.
__attribute__((noinline)) void store_row(int64_t count, const float* __restrict from, at::BFloat16* __restrict to) {
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, from + i, sizeof(bits));
    const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    to[i].x = static_cast<uint16_t>((bits & 0x7FFFFFFF) > 0x7F800000 ? 0x7FC0 : rounded);
  }
}

// Sum of the elements, halving the width until one is left.
template <typename T, int N>
inline T sum(typename Vector<T, N>::type vector) {
  if constexpr (N == 1) {
    T result;
    std::memcpy(&result, &vector, sizeof(result));
    return result;
  } else {
    typename Vector<T, N / 2>::type low, high;
    std::memcpy(&low, &vector, sizeof(low));
    std::memcpy(&high, reinterpret_cast<const char*>(&vector) + sizeof(low), sizeof(high));
    return sum<T, N / 2>(low + high);
  }
}

// Size and start of the level that each of a run of samples lies in.
template <typename T>
struct SampleLevels {
  std::vector<T> width, height;
  std::vector<int32_t> start;

  // `repeats` heads or queries, one after the other, with `points` samples in each level.
  SampleLevels(const int64_t* shapes, const int64_t* starts, int64_t count, int64_t points, int64_t repeats) {
    for (int64_t repeat = 0; repeat < repeats; ++repeat) {
      for (int64_t level = 0; level < count; ++level) {
        height.insert(height.end(), points, static_cast<T>(shapes[2 * level]));
        width.insert(width.end(), points, static_cast<T>(shapes[2 * level + 1]));
        start.insert(start.end(), points, static_cast<int32_t>(starts[level]));
      }
    }
  }
};

// Where a run of samples falls: the rows of its corners, and how far it lies from the top left one.
template <typename T>
struct Corners {
  std::vector<int32_t> row[kCorners];  // negative for a corner that lies outside its level and counts as zero
  std::vector<T> right, down;  // fractions of a pixel

  explicit Corners(int64_t samples) : right(samples), down(samples) {
    for (auto& rows : row) rows.resize(samples);
  }
};

// Far away is as good as just outside, and so is NaN, for which every comparison is false.
template <typename T>
inline T at_most_just_outside(T coordinate, T size) {
  const T above = coordinate > T(-2) ? coordinate : T(-2);
  return above < size ? above : size;
}

template <typename T>
inline int32_t floor_of(T coordinate) {
  const int32_t truncated = static_cast<int32_t>(coordinate);
  return truncated - (static_cast<T>(truncated) > coordinate ? 1 : 0);
}

// -1 (all bits set) if index is not in [0, size), else 0.
inline int32_t outside(int32_t index, int32_t size) {
  return (index | (size - 1 - index)) >> 31;
}

// Fill `corners`. One loop without branches over arrays that do not overlap, so that compilers vectorise it.
template <typename T>
__attribute__((noinline)) void locate(
    int64_t samples,
    const T* __restrict locations,
    const T* __restrict widths,
    const T* __restrict heights,
    const int32_t* __restrict starts,
    T* __restrict rights,
    T* __restrict downs,
    int32_t* __restrict top_left,
    int32_t* __restrict top_right,
    int32_t* __restrict bottom_left,
    int32_t* __restrict bottom_right) {
  for (int64_t i = 0; i < samples; ++i) {
    const T x = at_most_just_outside(locations[2 * i] * widths[i] - T(0.5), widths[i]);
    const T y = at_most_just_outside(locations[2 * i + 1] * heights[i] - T(0.5), heights[i]);
    const int32_t x0 = floor_of(x), y0 = floor_of(y);
    const int32_t width = static_cast<int32_t>(widths[i]), height = static_cast<int32_t>(heights[i]);
    const int32_t left = outside(x0, width), right = outside(x0 + 1, width);
    const int32_t top = outside(y0, height), bottom = outside(y0 + 1, height);
    const int32_t first = starts[i] + y0 * width + x0;
    rights[i] = x - static_cast<T>(x0);
    downs[i] = y - static_cast<T>(y0);
    top_left[i] = first | top | left;
    top_right[i] = (first + 1) | top | right;
    bottom_left[i] = (first + width) | bottom | left;
    bottom_right[i] = (first + width + 1) | bottom | right;
  }
}

template <typename T>
void locate(int64_t samples, const T* locations, const SampleLevels<T>& levels, Corners<T>& corners) {
  locate<T>(
      samples,
      locations,
      levels.width.data(),
      levels.height.data(),
      levels.start.data(),
      corners.right.data(),
      corners.down.data(),
      corners.row[0].data(),
      corners.row[1].data(),
      corners.row[2].data(),
      corners.row[3].data());
}

// The attention of each sample times the bilinear weight of each of its corners.
template <typename T>
__attribute__((noinline)) void weigh(
    int64_t samples,
    const T* __restrict attention,
    const T* __restrict rights,
    const T* __restrict downs,
    T* __restrict top_left,
    T* __restrict top_right,
    T* __restrict bottom_left,
    T* __restrict bottom_right) {
  for (int64_t i = 0; i < samples; ++i) {
    const T right = rights[i], down = downs[i];
    top_left[i] = attention[i] * (1 - right) * (1 - down);
    top_right[i] = attention[i] * right * (1 - down);
    bottom_left[i] = attention[i] * (1 - right) * down;
    bottom_right[i] = attention[i] * right * down;
  }
}

// output[0:N] = sum over samples and corners of weight * row[0:N]. Four independent sums hide the latency.
template <typename T, int N, typename V>
void add_rows(
    T* output,
    const V* value,
    int64_t row_stride,
    const V* zeros,
    const int32_t* const rows[kCorners],
    const T* const weights[kCorners],
    int64_t samples) {
  constexpr int kWidth = N * sizeof(T) < kVectorBytes ? N : kVectorBytes / sizeof(T);
  constexpr int kVectors = N / kWidth;
  typename Vector<T, kWidth>::type sums[kCorners][kVectors] = {};
  for (int64_t i = 0; i < samples; ++i) {
    for (int corner = 0; corner < kCorners; ++corner) {
      const int32_t row = rows[corner][i];
      const V* from = row < 0 ? zeros : value + row * row_stride;
      const T weight = weights[corner][i];
      for (int k = 0; k < kVectors; ++k) {
        sums[corner][k] += weight * load_row<T, kWidth>(from + k * kWidth);
      }
    }
  }
  for (int k = 0; k < kVectors; ++k) {
    store<T, kWidth>(output + k * kWidth, (sums[0][k] + sums[1][k]) + (sums[2][k] + sums[3][k]));
  }
}

// Values are stored as V and summed in T. `make_place(levels)` gives, for one thread, a function from a query's number
// to its locations (2 per sample) and attention (1 per sample).
template <typename T, typename V, typename MakePlace>
void forward(
    const Problem& problem,
    const V* value,
    const int64_t* shapes,
    const int64_t* starts,
    V* output,
    const MakePlace& make_place) {
  const int64_t row_stride = problem.heads * problem.channels;
  const int64_t per_head = problem.levels * problem.points;
  const int64_t samples = problem.heads * per_head;
  const SampleLevels<T> levels(shapes, starts, problem.levels, problem.points, problem.heads);
  const std::vector<V> zeros(problem.channels, V(0));
  constexpr int kWide = 2 * kVectorBytes / sizeof(T);
  const int64_t grain = kMultipliesPerTask / std::max<int64_t>(1, samples * problem.channels * kCorners) + 1;

  at::parallel_for(0, problem.batch * problem.queries, grain, [&](int64_t begin, int64_t end) {
    Corners<T> corners(samples);
    std::vector<T> weights[kCorners];
    for (auto& weight : weights) weight.resize(samples);
    std::vector<T> sums(row_stride);  // of all heads
    auto place = make_place(levels);
    for (int64_t query = begin; query < end; ++query) {
      const auto [locations, attention] = place(query);
      locate(samples, locations, levels, corners);
      weigh<T>(
          samples,
          attention,
          corners.right.data(),
          corners.down.data(),
          weights[0].data(),
          weights[1].data(),
          weights[2].data(),
          weights[3].data());
      const V* image = value + query / problem.queries * problem.pixels * row_stride;
      for (int64_t head = 0; head < problem.heads; ++head) {
        const int64_t first = head * per_head;
        const int32_t* rows[kCorners];
        const T* head_weights[kCorners];
        for (int corner = 0; corner < kCorners; ++corner) {
          rows[corner] = corners.row[corner].data() + first;
          head_weights[corner] = weights[corner].data() + first;
        }
        const V* from = image + head * problem.channels;
        T* to = sums.data() + head * problem.channels;
        int64_t channel = 0;
        const auto add_while_left = [&](auto count) {
          constexpr int kCount = decltype(count)::value;
          for (; channel + kCount <= problem.channels; channel += kCount) {
            add_rows<T, kCount>(
                to + channel, from + channel, row_stride, zeros.data(), rows, head_weights, per_head);
          }
        };
        add_while_left(std::integral_constant<int, kWide>());
        add_while_left(std::integral_constant<int, 4>());
        add_while_left(std::integral_constant<int, 1>());
      }
      store_row(row_stride, sums.data(), output + query * row_stride);
    }
  });
}

// exp(x) for x <= 0, within two units in the last place and in a form that compilers vectorise over a loop.
// x = n log 2 + r with |r| <= log(2) / 2; exp(r) by its power series, 2^n by the exponent's bits.
inline float exp_of(float x) {
  constexpr float kRounder = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer, in the lowest bits
  const float bounded = x < -87.f ? -87.f : x;  // NaN stays
  const float shifted = bounded * 1.44269504f + kRounder;
  const float n = shifted - kRounder;
  // log 2 in two parts, the first so short that its product with n is exact.
  const float r = (bounded - n * 0.693145752f) - n * 1.42860677e-6f;
  float series = 1.f / 5040;
  series = series * r + 1.f / 720;
  series = series * r + 1.f / 120;
  series = series * r + 1.f / 24;
  series = series * r + 1.f / 6;
  series = series * r + 1.f / 2;
  series = series * r + 1.f;
  series = series * r + 1.f;
  int32_t bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits - 0x4B400000 + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof(power));
  return series * power;
}

inline double exp_of(double x) {
  return std::exp(x);
}

template <typename T>
__attribute__((noinline)) void exponentials(int64_t count, T* __restrict values) {
  for (int64_t i = 0; i < count; ++i) values[i] = exp_of(values[i]);
}

// locations = references + offsets / sizes, all (x, y) per sample of a head.
template <typename T>
__attribute__((noinline)) void displace(
    int64_t count,
    const T* __restrict references,
    const T* __restrict sizes,
    const T* __restrict offsets,
    T* __restrict locations) {
  for (int64_t i = 0; i < count; ++i) locations[i] = references[i] + offsets[i] / sizes[i];
}

// Turns what is projected from a query into locations and attention, one query at a time.
template <typename T>
class PlaceFromOffsets {
 public:
  PlaceFromOffsets(
      const Problem& problem,
      const SampleLevels<T>& levels,
      const T* references,
      const T* offsets,
      int64_t offsets_stride,
      const T* logits,
      int64_t logits_stride)
      : problem_(problem),
        per_head_(problem.levels * problem.points),
        references_(references),
        offsets_(offsets),
        offsets_stride_(offsets_stride),
        logits_(logits),
        logits_stride_(logits_stride),
        sizes_(2 * per_head_),
        centres_(2 * per_head_),
        locations_(2 * per_head_ * problem.heads),
        attention_(per_head_ * problem.heads) {
    for (int64_t i = 0; i < per_head_; ++i) {
      sizes_[2 * i] = levels.width[i];
      sizes_[2 * i + 1] = levels.height[i];
    }
  }

  std::pair<const T*, const T*> operator()(int64_t query) {
    const T* reference = references_ + query * problem_.levels * 2;
    for (int64_t i = 0; i < per_head_; ++i) {
      const int64_t level = i / problem_.points;
      centres_[2 * i] = reference[2 * level];
      centres_[2 * i + 1] = reference[2 * level + 1];
    }
    const T* offsets = offsets_ + query * offsets_stride_;
    const T* logits = logits_ + query * logits_stride_;
    for (int64_t head = 0; head < problem_.heads; ++head) {
      const int64_t first = head * per_head_;
      displace(2 * per_head_, centres_.data(), sizes_.data(), offsets + 2 * first, locations_.data() + 2 * first);
      T largest = logits[first];
      for (int64_t i = 1; i < per_head_; ++i) largest = std::max(largest, logits[first + i]);
      for (int64_t i = 0; i < per_head_; ++i) attention_[first + i] = logits[first + i] - largest;
    }
    exponentials<T>(attention_.size(), attention_.data());
    for (int64_t head = 0; head < problem_.heads; ++head) {
      T* attention = attention_.data() + head * per_head_;
      T sum = 0;
      for (int64_t i = 0; i < per_head_; ++i) sum += attention[i];
      for (int64_t i = 0; i < per_head_; ++i) attention[i] /= sum;
    }
    return {locations_.data(), attention_.data()};
  }

 private:
  const Problem problem_;
  const int64_t per_head_;
  const T* references_;
  const T* offsets_;
  const int64_t offsets_stride_;
  const T* logits_;
  const int64_t logits_stride_;
  std::vector<T> sizes_, centres_, locations_, attention_;
};

// The four corners of one sample, seen from the backward pass.
template <typename T>
struct SampleGradient {
  T* row[kCorners];  // values, followed by their gradients
  T weight[kCorners];  // bilinear
  T attention, right, down;
  // Inner products of output gradient and value: of the sample, and of its slopes along x and y.
  T along_attention = 0, along_x = 0, along_y = 0;

  SampleGradient(T attention, T right, T down)
      : weight{(1 - right) * (1 - down), right * (1 - down), (1 - right) * down, right * down},
        attention(attention),
        right(right),
        down(down) {}

  // Take channels [first, last), N at a time.
  template <int N>
  void take(const T* grad_output, int64_t first, int64_t last, int64_t channels) {
    typename Vector<T, N>::type products[kCorners] = {};
    for (int64_t channel = first; channel < last; channel += N) {
      const auto grad = load<T, N>(grad_output + channel);
      for (int corner = 0; corner < kCorners; ++corner) {
        products[corner] += grad * load<T, N>(row[corner] + channel);
        T* to = row[corner] + channels + channel;
        store<T, N>(to, load<T, N>(to) + (weight[corner] * attention) * grad);
      }
    }
    const auto across_top = products[1] - products[0], across_bottom = products[3] - products[2];
    const auto down_left = products[2] - products[0], down_right = products[3] - products[1];
    along_x += sum<T, N>((1 - down) * across_top + down * across_bottom);
    along_y += sum<T, N>((1 - right) * down_left + right * down_right);
    along_attention += sum<T, N>(
        (weight[0] * products[0] + weight[1] * products[1]) + (weight[2] * products[2] + weight[3] * products[3]));
  }
};

// Inputs and outputs of the backward pass, as in the public function.
template <typename T>
struct Backward {
  const T* value;
  const int64_t* shapes;
  const int64_t* starts;
  const T* locations;
  const T* attention;
  const T* grad_output;
  T* grad_value;
  T* grad_locations;
  T* grad_attention;
};

// What belongs to one head of a few successive queries, gathered from where it lies far apart in memory.
template <typename T>
struct HeadBlock {
  std::vector<T> grad_output, locations, attention;
  Corners<T> corners;

  explicit HeadBlock(const Problem& problem)
      : grad_output(kQueriesPerBlock * problem.channels),
        locations(2 * kQueriesPerBlock * problem.levels * problem.points),
        attention(kQueriesPerBlock * problem.levels * problem.points),
        corners(kQueriesPerBlock * problem.levels * problem.points) {}
};

// One image and head. Its value rows are copied into a table, each followed by its gradient: apart, as in the tensors,
// the two often lie a multiple of 4096 bytes from each other, and then loads wait for unrelated stores.
template <typename T>
void backward_of_head(
    const Problem& problem,
    const Backward<T>& io,
    const SampleLevels<T>& levels,
    int64_t image,
    int64_t head,
    T* rows,
    HeadBlock<T>& block) {
  constexpr int kWidth = kVectorBytes / sizeof(T);
  const int64_t channels = problem.channels, per_head = problem.levels * problem.points;
  const int64_t whole = channels / kWidth * kWidth;
  const int64_t row_stride = problem.heads * channels;
  const int64_t first_row = image * problem.pixels * row_stride + head * channels;
  for (int64_t row = 0; row < problem.pixels; ++row) {
    std::copy_n(io.value + first_row + row * row_stride, channels, rows + 2 * row * channels);
    std::fill_n(rows + (2 * row + 1) * channels, channels, T(0));
  }
  T* outside_row = rows + 2 * problem.pixels * channels;
  std::fill_n(outside_row, 2 * channels, T(0));  // its gradient is ignored

  for (int64_t first = 0; first < problem.queries; first += kQueriesPerBlock) {
    const int64_t queries = std::min(kQueriesPerBlock, problem.queries - first);
    const int64_t samples = queries * per_head;
    const auto output_row = [&](int64_t query) {
      return (image * problem.queries + first + query) * problem.heads + head;
    };
    for (int64_t query = 0; query < queries; ++query) {
      const int64_t row = output_row(query);
      std::copy_n(io.grad_output + row * channels, channels, block.grad_output.data() + query * channels);
      std::copy_n(io.locations + 2 * row * per_head, 2 * per_head, block.locations.data() + 2 * query * per_head);
      std::copy_n(io.attention + row * per_head, per_head, block.attention.data() + query * per_head);
    }
    locate(samples, block.locations.data(), levels, block.corners);
    for (int64_t i = 0; i < samples; ++i) {
      SampleGradient<T> gradient(block.attention[i], block.corners.right[i], block.corners.down[i]);
      for (int corner = 0; corner < kCorners; ++corner) {
        const int32_t row = block.corners.row[corner][i];
        gradient.row[corner] = row < 0 ? outside_row : rows + 2 * row * channels;
      }
      const T* grad_output = block.grad_output.data() + i / per_head * channels;
      gradient.template take<kWidth>(grad_output, 0, whole, channels);
      if (whole < channels) gradient.template take<1>(grad_output, whole, channels, channels);
      // The inputs' places in the block take their gradients.
      block.attention[i] = gradient.along_attention;
      block.locations[2 * i] = gradient.attention * levels.width[i] * gradient.along_x;
      block.locations[2 * i + 1] = gradient.attention * levels.height[i] * gradient.along_y;
    }
    for (int64_t query = 0; query < queries; ++query) {
      const int64_t row = output_row(query);
      std::copy_n(block.locations.data() + 2 * query * per_head, 2 * per_head, io.grad_locations + 2 * row * per_head);
      std::copy_n(block.attention.data() + query * per_head, per_head, io.grad_attention + row * per_head);
    }
  }
  for (int64_t row = 0; row < problem.pixels; ++row) {
    std::copy_n(rows + (2 * row + 1) * channels, channels, io.grad_value + first_row + row * row_stride);
  }
}

// One task per image and head: no two share rows of the value gradient, so nothing is locked and the sums do not
// depend on the number of threads.
template <typename T>
void backward(const Problem& problem, const Backward<T>& io) {
  const int64_t per_task = problem.queries * problem.levels * problem.points * problem.channels * kCorners;
  const int64_t grain = kMultipliesPerTask / std::max<int64_t>(1, per_task) + 1;
  const SampleLevels<T> levels(io.shapes, io.starts, problem.levels, problem.points, kQueriesPerBlock);
  at::parallel_for(0, problem.batch * problem.heads, grain, [&](int64_t begin, int64_t end) {
    const at::Tensor table =
        at::empty({problem.pixels + 1, 2, problem.channels}, c10::CppTypeToScalarType<T>::value);
    HeadBlock<T> block(problem);
    for (int64_t task = begin; task < end; ++task) {
      backward_of_head(
          problem, io, levels, task / problem.heads, task % problem.heads, table.mutable_data_ptr<T>(), block);
    }
  });
}

// The levels must lie inside value: their rows are read without another look.
void check_levels(const Problem& problem, const int64_t* shapes, const int64_t* starts) {
  for (int64_t level = 0; level < problem.levels; ++level) {
    const int64_t height = shapes[2 * level], width = shapes[2 * level + 1], start = starts[level];
    const bool fits = height >= 0 && width >= 0 && start >= 0 && height <= problem.pixels &&
        width <= problem.pixels && start <= problem.pixels && height * width <= problem.pixels - start;
    TORCH_CHECK_VALUE(
        fits,
        "level ", level, " of ", height, " x ", width, " pixels starting at ", start,
        " lies outside value with ", problem.pixels, " pixels");
  }
}

at::Tensor forward_cpu(
    const at::Tensor& value,
    const at::Tensor& spatial_shapes,
    const at::Tensor& level_start_index,
    const at::Tensor& sampling_locations,
    const at::Tensor& attention_weights) {
  const Problem problem = check_problem(
      value, spatial_shapes, level_start_index, sampling_locations, attention_weights, value.scalar_type());
  const int64_t* shapes = spatial_shapes.const_data_ptr<int64_t>();
  const int64_t* starts = level_start_index.const_data_ptr<int64_t>();
  check_levels(problem, shapes, starts);
  at::Tensor output =
      at::empty({problem.batch, problem.queries, problem.heads * problem.channels}, value.options());
  const auto run = [&](auto example) {
    using T = decltype(example);
    const T* locations = sampling_locations.const_data_ptr<T>();
    const T* attention = attention_weights.const_data_ptr<T>();
    const int64_t samples = problem.heads * problem.levels * problem.points;
    const auto given = [&](const SampleLevels<T>&) {
      return [=](int64_t query) {
        return std::make_pair(locations + 2 * query * samples, attention + query * samples);
      };
    };
    forward<T>(problem, value.const_data_ptr<T>(), shapes, starts, output.mutable_data_ptr<T>(), given);
  };
  if (value.scalar_type() == at::kDouble) {
    run(double());
  } else {
    run(float());
  }
  return output;
}

// offsets B Lq M*L*P*2 in pixels of a level and logits B Lq M*L*P may be columns of a wider matrix.
at::Tensor forward_from_offsets_cpu(
    const at::Tensor& value,
    const at::Tensor& spatial_shapes,
    const at::Tensor& level_start_index,
    const at::Tensor& reference_points,
    const at::Tensor& offsets,
    const at::Tensor& logits,
    int64_t points) {
  const at::ScalarType computes_in = value.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  TORCH_CHECK_VALUE(value.dim() == 4, "value must be B S M D, got ", value.sizes());
  TORCH_CHECK_VALUE(
      reference_points.dim() == 4 && reference_points.size(0) == value.size(0) && reference_points.size(3) == 2,
      "reference_points must be B Lq L 2 to fit value, got ",
      reference_points.sizes());
  const Problem problem{
      value.size(0),
      value.size(1),
      value.size(2),
      value.size(3),
      reference_points.size(1),
      reference_points.size(2),
      points};
  const int64_t samples = problem.heads * problem.levels * problem.points;
  const auto check_rows = [&](const at::Tensor& rows, int64_t columns, const char* name) {
    const bool fits = rows.dim() == 3 && rows.size(0) == problem.batch && rows.size(1) == problem.queries &&
        rows.size(2) == columns && rows.stride(2) == 1 && rows.stride(0) == problem.queries * rows.stride(1);
    TORCH_CHECK_VALUE(fits, name, " must be rows of ", columns, ", got ", rows.sizes(), " by ", rows.strides());
    TORCH_CHECK_VALUE(rows.scalar_type() == computes_in, name, " must be ", computes_in);
  };
  check_rows(offsets, 2 * samples, "offsets");
  check_rows(logits, samples, "logits");
  TORCH_CHECK_VALUE(points > 0, "points must be positive, got ", points);
  TORCH_CHECK_VALUE(reference_points.scalar_type() == computes_in, "reference_points must be ", computes_in);
  check_contiguous(reference_points, value.device(), "reference_points");
  check_value_and_tables(problem, value, spatial_shapes, level_start_index);
  const int64_t* shapes = spatial_shapes.const_data_ptr<int64_t>();
  const int64_t* starts = level_start_index.const_data_ptr<int64_t>();
  check_levels(problem, shapes, starts);
  at::Tensor output =
      at::empty({problem.batch, problem.queries, problem.heads * problem.channels}, value.options());
  const auto run = [&](auto computed, auto stored) {
    using T = decltype(computed);
    using V = decltype(stored);
    const auto projected = [&](const SampleLevels<T>& levels) {
      return PlaceFromOffsets<T>(
          problem,
          levels,
          reference_points.const_data_ptr<T>(),
          offsets.const_data_ptr<T>(),
          offsets.stride(1),
          logits.const_data_ptr<T>(),
          logits.stride(1));
    };
    forward<T>(problem, value.const_data_ptr<V>(), shapes, starts, output.mutable_data_ptr<V>(), projected);
  };
  if (value.scalar_type() == at::kDouble) {
    run(double(), double());
  } else if (value.scalar_type() == at::kBFloat16) {
    run(float(), at::BFloat16());
  } else {
    run(float(), float());
  }
  return output;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> backward_cpu(
    const at::Tensor& value,
    const at::Tensor& spatial_shapes,
    const at::Tensor& level_start_index,
    const at::Tensor& sampling_locations,
    const at::Tensor& attention_weights,
    const at::Tensor& grad_output) {
  const Problem problem = check_problem(
      value, spatial_shapes, level_start_index, sampling_locations, attention_weights, value.scalar_type());
  const int64_t* shapes = spatial_shapes.const_data_ptr<int64_t>();
  const int64_t* starts = level_start_index.const_data_ptr<int64_t>();
  check_levels(problem, shapes, starts);
  check_grad_output(problem, value, grad_output);
  at::Tensor grad_value = at::zeros_like(value);
  at::Tensor grad_locations = at::empty_like(sampling_locations);
  at::Tensor grad_attention = at::empty_like(attention_weights);
  const auto run = [&](auto example) {
    using T = decltype(example);
    backward<T>(
        problem,
        {value.const_data_ptr<T>(),
         shapes,
         starts,
         sampling_locations.const_data_ptr<T>(),
         attention_weights.const_data_ptr<T>(),
         grad_output.const_data_ptr<T>(),
         grad_value.mutable_data_ptr<T>(),
         grad_locations.mutable_data_ptr<T>(),
         grad_attention.mutable_data_ptr<T>()});
  };
  if (value.scalar_type() == at::kDouble) {
    run(double());
  } else {
    run(float());
  }
  return {grad_value, grad_locations, grad_attention};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(dvis, library) {
  library.def(
      "ms_deform_attn_cpp_forward(Tensor value, Tensor spatial_shapes, Tensor level_start_index, "
      "Tensor sampling_locations, Tensor attention_weights) -> Tensor");
  library.def(
      "ms_deform_attn_cpp_from_offsets(Tensor value, Tensor spatial_shapes, Tensor level_start_index, "
      "Tensor reference_points, Tensor offsets, Tensor logits, int points) -> Tensor");
  library.def(
      "ms_deform_attn_cpp_backward(Tensor value, Tensor spatial_shapes, Tensor level_start_index, "
      "Tensor sampling_locations, Tensor attention_weights, Tensor grad_output) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(dvis, CPU, library) {
  library.impl("ms_deform_attn_cpp_forward", &forward_cpu);
  library.impl("ms_deform_attn_cpp_from_offsets", &forward_from_offsets_cpu);
  library.impl("ms_deform_attn_cpp_backward", &backward_cpu);
}

}  // namespace dvis
