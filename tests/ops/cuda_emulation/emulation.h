// CUDA kernels on the CPU, compiled by an ordinary C++ compiler: one fiber for each thread of a block, blocks one after
// the other. Shuffles, votes and barriers switch fibers; atomics need nothing, for only one fiber runs at a time.
//
// It is stricter than the hardware: a warp whose lanes meet at different operations, or wait for one that has left, is
// an error here, so is a misaligned vector access (with -fsanitize=alignment), and a race for want of a barrier shows
// as a wrong result, in some order of threads at least. That order is chosen by `order`: 0 runs threads and blocks by
// their numbers, any other value is the seed of a shuffle.
#pragma once

#define CUDA_EMULATION 1

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define LAUNCH(kernel, blocks, threads, shared_bytes, stream, ...) \
  emulation::launch(blocks, threads, shared_bytes, [&] { kernel(__VA_ARGS__); })
#define dynamic_shared_memory (emulation::state().shared.get())
#define threadIdx (emulation::state().thread_index)
#define blockIdx (emulation::state().block_index)
#define blockDim (emulation::state().block_dim)
#define gridDim (emulation::state().grid_dim)

using std::floor;
using std::max;
using std::min;

// ---------------------------------------------------------------- types

struct uint3 {
  unsigned x, y, z;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }

struct __half {
  uint16_t bits;
};
struct __nv_bfloat16 {
  uint16_t bits;
};

inline float __half2float(__half h) {
  const int exponent = h.bits >> 10 & 31, mantissa = h.bits & 1023;
  const float sign = h.bits & 0x8000 ? -1.0f : 1.0f;
  if (exponent == 31) return mantissa ? std::numeric_limits<float>::quiet_NaN() : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(mantissa), -24);
  return sign * std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
}

inline __half __float2half_rn(float x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  if (std::isnan(x)) return {0x7fff};
  x = std::fabs(x);
  if (x >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00)};
  const int exponent = x == 0 ? -14 : std::max(std::ilogb(x), -14);
  // In units of the last place, rounded to even by nearbyint; a carry moves into the exponent by itself.
  const int units = static_cast<int>(std::nearbyint(std::ldexp(x, 10 - exponent)));
  return {static_cast<uint16_t>(sign | (units + ((exponent + 14) << 10)))};
}

inline float __bfloat162float(__nv_bfloat16 b) {
  const uint32_t bits = static_cast<uint32_t>(b.bits) << 16;
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  if (std::isnan(x)) return {0x7fff};
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

template <typename Real>
long long emulated_to_integer(Real x) {  // saturates, and turns NaN into the smallest, as the hardware does
  if (!(x >= Real(-9223372036854775808.0))) return std::numeric_limits<long long>::min();
  if (x >= Real(9223372036854775808.0)) return std::numeric_limits<long long>::max();
  return std::llrint(x);
}
inline long long __float2ll_rn(float x) { return emulated_to_integer(x); }
inline long long __double2ll_rn(double x) { return emulated_to_integer(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }

// ---------------------------------------------------------------- runtime

enum cudaError_t {
  cudaSuccess,
  cudaErrorInvalidValue,
  cudaErrorInvalidConfiguration,
  cudaErrorMisalignedAddress,
};
using cudaStream_t = struct CUstream_st*;
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };

namespace emulation {

inline constexpr int kWarp = 32;
inline constexpr size_t kStackBytes = 128 << 10;

enum class Status { kReady, kInWarp, kInBlock, kLeft };

struct Fiber {
  ucontext_t context;
  std::vector<char> stack;
  void* fake_stack = nullptr;
  Status status = Status::kLeft;
};

// Lanes of a warp meet here. Values are kept for two meetings: nobody can be at the next but one before all have read.
struct Meeting {
  int arrived = 0, left = 0;
  const char* operation = nullptr;
  int line = 0;
  unsigned number = 0;
  uint64_t values[2][kWarp] = {};
};

struct State {
  int multiprocessors = 1;
  uint64_t order = 0;
  std::mt19937_64 random;

  uint3 thread_index{}, block_index{}, block_dim{1, 1, 1}, grid_dim{1, 1, 1};
  std::unique_ptr<uint4[]> shared;
  std::vector<Fiber> fibers;
  std::vector<Meeting> warps;
  std::vector<int> ready;
  int current = 0, running = 0, in_block = 0;
  const std::function<void()>* body = nullptr;
  ucontext_t scheduler;
  void* scheduler_fake_stack = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
};

inline State& state() {
  static State only;
  return only;
}

[[noreturn]] inline void fail(const char* message, const char* operation = "", int line = 0) {
  const State& s = state();
  std::fprintf(stderr, "emulation: %s (%s, line %d; block %u, thread %d)\n", message, operation, line, s.block_index.x,
               s.current);
  std::fflush(stderr);
  std::_Exit(3);
}

// Gives the processor back to the scheduler; the sanitizer has to be told that the stack changes.
inline void leave_fiber(bool for_ever) {
  State& s = state();
  Fiber& self = s.fibers[s.current];
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(for_ever ? nullptr : &self.fake_stack, s.scheduler_stack, s.scheduler_stack_bytes);
#endif
  swapcontext(&self.context, &s.scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(self.fake_stack, nullptr, nullptr);
#endif
  (void)for_ever;
}

inline void fiber_main() {
  State& s = state();
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &s.scheduler_stack, &s.scheduler_stack_bytes);
#endif
  (*s.body)();
  Meeting& warp = s.warps[s.current / kWarp];
  if (warp.arrived > 0) fail("a thread leaves while others of its warp wait for it", warp.operation, warp.line);
  if (s.in_block > 0) fail("a thread leaves while others of its block wait for it", "__syncthreads");
  ++warp.left;
  --s.running;
  s.fibers[s.current].status = Status::kLeft;
  leave_fiber(true);
}

inline void run_fiber(int thread) {
  State& s = state();
  Fiber& fiber = s.fibers[thread];
  s.current = thread;
  s.thread_index = {static_cast<unsigned>(thread), 0, 0};
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&s.scheduler_fake_stack, fiber.stack.data(), fiber.stack.size());
#endif
  swapcontext(&s.scheduler, &fiber.context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(s.scheduler_fake_stack, nullptr, nullptr);
#endif
}

inline void run_block(unsigned block, unsigned threads, unsigned shared_bytes) {
  State& s = state();
  s.block_index = {block, 0, 0};
  // Exactly as much as was asked for, and never the same content: 0xff is NaN and a negative number.
  s.shared.reset(new uint4[(shared_bytes + sizeof(uint4) - 1) / sizeof(uint4)]);
  std::memset(static_cast<void*>(s.shared.get()), 0xff, shared_bytes);
  s.warps.assign(threads / kWarp, Meeting());
  s.ready.clear();
  for (unsigned thread = 0; thread < threads; ++thread) {
    Fiber& fiber = s.fibers[thread];
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = nullptr;
    fiber.status = Status::kReady;
    makecontext(&fiber.context, fiber_main, 0);
    s.ready.push_back(static_cast<int>(threads - 1 - thread));  // taken from the back
  }
  s.running = static_cast<int>(threads);
  s.in_block = 0;
  while (!s.ready.empty()) {
    if (s.order != 0) std::swap(s.ready[s.random() % s.ready.size()], s.ready.back());
    const int thread = s.ready.back();
    s.ready.pop_back();
    run_fiber(thread);
  }
  if (s.running > 0) fail("deadlock: every thread of the block waits");
}

inline void launch(unsigned blocks, unsigned threads, unsigned shared_bytes, const std::function<void()>& body) {
  State& s = state();
  if (threads == 0 || threads % kWarp != 0 || threads > 1024) fail("a block must have 1 to 32 whole warps");
  if (blocks == 0) fail("a launch must have at least one block");
  if (shared_bytes > 48 << 10) fail("more shared memory than a block gets without asking");
  s.block_dim = {threads, 1, 1};
  s.grid_dim = {blocks, 1, 1};
  s.body = &body;
  if (s.fibers.size() < threads) s.fibers.resize(threads);
  for (Fiber& fiber : s.fibers) fiber.stack.resize(kStackBytes);
  std::vector<unsigned> numbers(blocks);
  for (unsigned i = 0; i < blocks; ++i) numbers[i] = i;
  if (s.order != 0) {
    s.random.seed(s.order);
    std::shuffle(numbers.begin(), numbers.end(), s.random);
  }
  for (unsigned block : numbers) run_block(block, threads, shared_bytes);
}

// All lanes of the warp leave a value and go on when the last has; returns the values by lane.
inline const uint64_t* meet(const char* operation, unsigned mask, uint64_t value, int line) {
  State& s = state();
  const int first = s.current / kWarp * kWarp;
  Meeting& warp = s.warps[s.current / kWarp];
  if (mask != 0xffffffffu) fail("only whole warps are emulated", operation, line);
  if (warp.left > 0) fail("a thread waits for one of its warp that has left", operation, line);
  if (warp.arrived == 0) {
    warp.operation = operation;
    warp.line = line;
  } else if (warp.line != line || std::strcmp(warp.operation, operation) != 0) {
    fail("threads of one warp wait at different operations", operation, line);
  }
  uint64_t* values = warp.values[warp.number % 2];
  values[s.current - first] = value;
  if (++warp.arrived < kWarp) {
    s.fibers[s.current].status = Status::kInWarp;
    leave_fiber(false);
  } else {
    warp.arrived = 0;
    ++warp.number;
    for (int thread = first + kWarp - 1; thread >= first; --thread) {
      if (thread == s.current) continue;
      s.fibers[thread].status = Status::kReady;
      s.ready.push_back(thread);
    }
    if (s.order != 0) {  // the last to arrive need not be the first to go on
      s.ready.push_back(s.current);
      leave_fiber(false);
    }
  }
  return values;
}

template <typename T>
uint64_t to_bits(T value) {
  static_assert(sizeof(T) <= 8, "shuffles move at most 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <typename T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace emulation

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = emulation::state().multiprocessors;
  return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }

// ---------------------------------------------------------------- threads

inline void __syncwarp(unsigned mask = 0xffffffffu, int line = __builtin_LINE()) {
  emulation::meet("__syncwarp", mask, 0, line);
}

inline void __syncthreads(int line = __builtin_LINE()) {
  emulation::State& s = emulation::state();
  for (const auto& warp : s.warps) {
    if (warp.left > 0) emulation::fail("a thread waits for one of its block that has left", "__syncthreads", line);
  }
  s.fibers[s.current].status = emulation::Status::kInBlock;
  if (++s.in_block < s.running) {
    emulation::leave_fiber(false);
    return;
  }
  s.in_block = 0;
  for (int thread = static_cast<int>(s.block_dim.x) - 1; thread >= 0; --thread) {
    s.fibers[thread].status = emulation::Status::kReady;
    if (thread != s.current) s.ready.push_back(thread);
  }
}

inline unsigned __ballot_sync(unsigned mask, bool predicate, int line = __builtin_LINE()) {
  const uint64_t* values = emulation::meet("__ballot_sync", mask, predicate, line);
  unsigned result = 0;
  for (int lane = 0; lane < emulation::kWarp; ++lane) result |= static_cast<unsigned>(values[lane]) << lane;
  return result;
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int line = __builtin_LINE()) {
  return emulation::from_bits<T>(emulation::meet("__shfl_sync", mask, emulation::to_bits(value), line)[source & 31]);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int distance, int line = __builtin_LINE()) {
  const int lane = emulation::state().current % emulation::kWarp;
  const uint64_t* values = emulation::meet("__shfl_xor_sync", mask, emulation::to_bits(value), line);
  return emulation::from_bits<T>(values[(lane ^ distance) & 31]);
}

// ---------------------------------------------------------------- memory

template <typename T>
T __ldg(const T* source) {
  return *source;
}
template <typename T>
T __ldcs(const T* source) {
  return *source;
}
template <typename T>
void __stcs(T* target, T value) {
  *target = value;
}

template <typename T>
void atomicAdd(T* target, T value) {
  if constexpr (std::is_same_v<T, float4>) {
    target->x += value.x;
    target->y += value.y;
    target->z += value.z;
    target->w += value.w;
  } else {
    *target += value;
  }
}
inline void atomicMax(unsigned long long* target, unsigned long long value) { *target = std::max(*target, value); }
