// Runs the CPU kernels without torch, so that sanitizers see them alone: cpu_harness INPUT OUTPUT.
// INPUT: int64 dtype, threads, B, S, M, D, Q, P, L, then height, width, K of each level; then value, locations, weights
// and the output's gradient as they lie in memory. OUTPUT: out and the gradients of value, locations and weights.
// With a third argument the value is allocated one row short: the kernels then read behind its end.
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "../../../ops/csrc/cpu/ms_deform_attn.h"

using namespace deformable;

namespace {

int64_t threads = 1;

void parallel_for(int64_t begin, int64_t end, int64_t, cpu::Body body, void* context) {
  std::vector<std::thread> pool;
  const int64_t share = (end - begin + threads - 1) / threads;
  for (int64_t at = begin; at < end; at += share) {
    pool.emplace_back(body, at, at + share < end ? at + share : end, context);
  }
  for (auto& thread : pool) thread.join();
}

// Exactly as long as the array: a byte beyond it is somebody else's.
struct Array {
  size_t bytes;
  char* data;
  explicit Array(size_t bytes) : bytes(bytes), data(static_cast<char*>(std::malloc(bytes))) {}
  ~Array() { std::free(data); }
  Array(const Array&) = delete;
  void read(FILE* file, size_t count) {
    if (count && std::fread(data, 1, count, file) != count) std::abort();
  }
  void write(FILE* file) const {
    if (bytes && std::fwrite(data, 1, bytes, file) != bytes) std::abort();
  }
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  FILE* input = std::fopen(argv[1], "rb");
  if (!input) return 2;
  int64_t head[9];
  if (std::fread(head, sizeof(int64_t), 9, input) != 9) return 2;
  const auto dtype = static_cast<DType>(head[0]);
  threads = head[1];
  Problem problem{head[2], head[3], head[4], head[5], head[6], head[7], static_cast<int32_t>(head[8]), {}};
  int64_t token = 0, point = 0;
  for (int i = 0; i < problem.num_levels; ++i) {
    int64_t level[3];
    if (std::fread(level, sizeof(int64_t), 3, input) != 3) return 2;
    problem.levels[i] = {level[0], level[1], token, point, level[2]};
    token += level[0] * level[1];
    point += level[2];
  }
  const size_t size = dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2, real = size == 8 ? 8 : 4;
  const size_t samples = problem.batch * problem.queries * problem.heads * problem.points;
  const size_t outputs = problem.batch * problem.queries * problem.heads * problem.channels;
  const size_t values = problem.batch * problem.tokens * problem.heads * problem.channels;
  const size_t missing = argc > 3 ? problem.channels : 0;

  Array value((values - missing) * size), locations(samples * 2 * real), weights(samples * real), grad(outputs * size);
  value.read(input, value.bytes);
  if (missing) std::fseek(input, static_cast<long>(missing * size), SEEK_CUR);
  for (Array* array : {&locations, &weights, &grad}) array->read(input, array->bytes);
  std::fclose(input);

  Array out(outputs * size), grad_value(values * size), grad_locations(locations.bytes), grad_weights(weights.bytes);
  if (!cpu::forward(problem, dtype, value.data, locations.data, weights.data, out.data, parallel_for)) return 3;
  if (!cpu::backward(problem, dtype, grad.data, value.data, locations.data, weights.data, grad_value.data,
                     grad_locations.data, grad_weights.data, parallel_for, threads)) {
    return 3;
  }
  FILE* output = std::fopen(argv[2], "wb");
  if (!output) return 2;
  for (Array* array : {&out, &grad_value, &grad_locations, &grad_weights}) array->write(output);
  std::fclose(output);
  std::printf("%s\n", cpu::capability());
  return 0;
}
