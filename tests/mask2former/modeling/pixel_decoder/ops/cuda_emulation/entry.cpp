// C entry points to the emulated kernels, for ctypes. KERNELS is the .cu file with its launch line replaced.

#include KERNELS

namespace {

dvis::Problem problem_of(const int64_t* sizes) {
  return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6]};
}

}  // namespace

// Pointers: value, spatial shapes, level starts, locations, attention, then the outputs in the header's order.
extern "C" int emulate_forward(int type, const int64_t* sizes, void** pointers) {
  const dvis::Inputs inputs{
      pointers[0],
      static_cast<int64_t*>(pointers[1]),
      static_cast<int64_t*>(pointers[2]),
      pointers[3],
      pointers[4]};
  return dvis::launch_forward(
      static_cast<dvis::ValueType>(type), problem_of(sizes), inputs, pointers[5], nullptr);
}

extern "C" int emulate_backward(int type, const int64_t* sizes, void** pointers) {
  const dvis::Inputs inputs{
      pointers[0],
      static_cast<int64_t*>(pointers[1]),
      static_cast<int64_t*>(pointers[2]),
      pointers[3],
      pointers[4]};
  return dvis::launch_backward(
      static_cast<dvis::ValueType>(type),
      problem_of(sizes),
      inputs,
      pointers[5],
      pointers[6],
      pointers[7],
      pointers[8],
      nullptr);
}
