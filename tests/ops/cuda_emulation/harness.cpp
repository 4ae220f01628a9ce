// Runs the CUDA kernels of ops/csrc/cuda under the emulation: harness INPUT OUTPUT.
//
// INPUT is int64 words [mode, value's DType, B, S, M, D, Q, P, L, order, multiprocessors, missing rows of value], then
// [H, W, K] of each level, then the arrays: value, locations, weights and, for a backward, grad_out. Modes: 0 forward,
// 1 backward, 2 backward in fixed point; OUTPUT is the result, or the gradients of value (of A in mode 1, of T in mode
// 2), locations and weights. Modes from 10 on run a kernel with a mistake that the emulation has to find.
// Every array is an allocation of its own and of its exact size, so that a sanitizer sees whatever is beyond it.
#include "emulation.h"
// The kernels' own sources, included from -I ops/csrc/cuda.
#include "ms_deform_attn.cu"

namespace {

using deformable::DType;
using deformable::Problem;

struct Array {
  explicit Array(size_t bytes) : bytes(bytes), data(std::malloc(bytes ? bytes : 1)) { std::memset(data, 0, bytes); }
  ~Array() { std::free(data); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }

  size_t bytes;
  void* data;
};

struct File {
  File(const char* path, const char* mode) : file(std::fopen(path, mode)) {
    if (file == nullptr) fail("cannot open the file");
  }
  ~File() { std::fclose(file); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  static void fail(const char* message) {
    std::fprintf(stderr, "harness: %s\n", message);
    std::exit(2);
  }
  void read(void* target, size_t bytes) {
    if (std::fread(target, 1, bytes, file) != bytes) fail("the input is too short");
  }
  int64_t word() {
    int64_t value;
    read(&value, sizeof(value));
    return value;
  }
  void write(const Array& array) { std::fwrite(array.data, 1, array.bytes, file); }

  std::FILE* file;
};

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "harness: the launch returned error %d\n", static_cast<int>(error));
  std::exit(4);
}

void lane_leaves_early() {
  if (threadIdx.x == 5) return;
  __syncwarp();
}

void lanes_wait_apart() {
  if (threadIdx.x % 2 == 0) {
    __syncwarp();
  } else {
    __shfl_sync(0xffffffffu, 1, 0);
  }
}

void warps_wait_apart() {
  if (threadIdx.x < 32) __syncthreads();
}

void lane_overruns_shared_memory() {
  uint4* memory = dynamic_shared_memory;
  memory[threadIdx.x + 1].x = threadIdx.x;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) File::fail("usage: harness INPUT OUTPUT");
  File input(arguments[1], "rb");
  const int64_t mode = input.word();
  const DType dtype = static_cast<DType>(input.word());
  Problem problem{};
  problem.batch = input.word();
  problem.tokens = input.word();
  problem.heads = input.word();
  problem.channels = input.word();
  problem.queries = input.word();
  problem.points = input.word();
  problem.num_levels = static_cast<int32_t>(input.word());
  emulation::state().order = static_cast<uint64_t>(input.word());
  emulation::state().multiprocessors = static_cast<int>(input.word());
  const int64_t missing = input.word();
  if (mode == 10) LAUNCH(lane_leaves_early, 1, 64, 0, nullptr);
  if (mode == 11) LAUNCH(lanes_wait_apart, 1, 64, 0, nullptr);
  if (mode == 12) LAUNCH(warps_wait_apart, 1, 64, 0, nullptr);
  if (mode == 13) LAUNCH(lane_overruns_shared_memory, 1, 64, 64 * 16, nullptr);
  if (mode >= 10) return 0;

  int64_t token = 0, point = 0;
  for (int i = 0; i < problem.num_levels; ++i) {
    const int64_t height = input.word(), width = input.word(), points = input.word();
    problem.levels[i] = {height, width, token, point, points};
    token += height * width;
    point += points;
  }
  const size_t element = dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
  const size_t real = dtype == DType::kFloat64 ? 8 : 4;
  const size_t row = problem.heads * problem.channels, samples = problem.batch * problem.queries * problem.heads;
  const size_t values = problem.batch * problem.tokens * row;
  Array value((values - missing * row) * element), locations(samples * problem.points * 2 * real),
      weights(samples * problem.points * real), out(samples * problem.channels * element);
  input.read(value.data, value.bytes);
  if (missing > 0) std::fseek(input.file, static_cast<long>(missing * row * element), SEEK_CUR);
  input.read(locations.data, locations.bytes);
  input.read(weights.data, weights.bytes);

  File output(arguments[2], "wb");
  if (mode == 0) {
    std::memset(out.data, 0xff, out.bytes);  // what is not written stays NaN
    check(deformable::cuda::forward(problem, dtype, value.data, locations.data, weights.data, out.data, nullptr));
    output.write(out);
    return 0;
  }
  input.read(out.data, out.bytes);
  Array grad_locations(locations.bytes), grad_weights(weights.bytes), maxima(16);
  Array sums(values * (mode == 2 ? 8 : real)), grad_value(values * element);
  std::memset(grad_locations.data, 0xff, grad_locations.bytes);
  std::memset(grad_weights.data, 0xff, grad_weights.bytes);
  std::memset(grad_value.data, 0xff, grad_value.bytes);
  if (mode == 2) {
    check(deformable::cuda::find_maxima(problem, dtype, out.data, weights.data, maxima.as<uint64_t>(), nullptr));
  }
  check(deformable::cuda::backward(problem, dtype, out.data, value.data, locations.data, weights.data, sums.data,
                                   grad_locations.data, grad_weights.data,
                                   mode == 2 ? maxima.as<uint64_t>() : nullptr, nullptr));
  if (mode == 2) {
    check(deformable::cuda::from_fixed_point(problem, dtype, sums.as<int64_t>(), maxima.as<uint64_t>(),
                                             grad_value.data, nullptr));
  }
  output.write(mode == 2 ? grad_value : sums);
  output.write(grad_locations);
  output.write(grad_weights);
  return 0;
}
