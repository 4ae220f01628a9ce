// Picks the kernels' instances, cuts the work into blocks and launches them.
#include "ms_deform_attn.h"

#include <cstdint>

#include "backward.cuh"
#include "forward.cuh"

// The emulation has its own.
#if !defined(LAUNCH)
#define LAUNCH(kernel, blocks, threads, shared_bytes, stream, ...) \
  kernel<<<blocks, threads, shared_bytes, stream>>>(__VA_ARGS__)
#endif

namespace deformable::cuda {
namespace {

constexpr int64_t kInt32Max = INT32_MAX;

int64_t divide_up(int64_t count, int64_t by) { return (count + by - 1) / by; }

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// Tokens, queries, points and the bytes of one token are counted in 32 bits, everything else in 64.
bool fits(const Problem& problem, int64_t channel_bytes) {
  return problem.num_levels <= kMaxLevels && problem.tokens < kInt32Max && problem.queries < kInt32Max &&
         problem.points < kInt32Max - 64 && problem.heads <= kInt32Max && problem.channels <= kInt32Max &&
         (problem.channels == 0 || problem.heads <= kInt32Max / channel_bytes / problem.channels);
}

struct Launch {
  Geometry geometry;
  unsigned blocks;
  unsigned threads;
};

// How many blocks of `block_queries` queries a (batch, head) takes, and which queries they hold.
void set_tiles(const Problem& problem, int64_t block_queries, Geometry& geometry) {
  geometry.tile_width = geometry.tile_height = 0;
  const int64_t runs = divide_up(problem.queries, block_queries);
  geometry.tiles = static_cast<unsigned>(runs);
  if (problem.queries != problem.tokens) return;

  int64_t width = 1, tiles = 0;
  while (width * width < block_queries) width *= 2;
  for (int i = 0; i < problem.num_levels; ++i) {
    const Level& level = problem.levels[i];
    geometry.levels[i].first_tile = static_cast<int>(tiles);
    geometry.levels[i].tiles_across = static_cast<int>(divide_up(level.width, width));
    tiles += geometry.levels[i].tiles_across * divide_up(level.height, block_queries / width);
  }
  if (tiles > 2 * runs) return;  // maps narrower than a tile: most lanes would have no query
  geometry.tiles = static_cast<unsigned>(tiles);
  geometry.tile_width = static_cast<int>(width);
  geometry.tile_height = static_cast<int>(block_queries / width);
}

// A forward kernel (no Sum) takes channels beyond vector * lanes in blocks of their own, a backward kernel in a loop.
template <typename T, typename Sum>
cudaError_t plan(const Problem& problem, int vector, int lanes, Launch& launch) {
  int device = 0, multiprocessors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;

  Geometry& geometry = launch.geometry;
  geometry.heads = static_cast<int>(problem.heads);
  geometry.channels = static_cast<int>(problem.channels);
  geometry.queries = static_cast<int>(problem.queries);
  geometry.points = static_cast<int>(problem.points);
  geometry.num_levels = problem.num_levels;
  geometry.tokens = problem.tokens;
  geometry.token_bytes = static_cast<unsigned>(problem.heads * problem.channels * sizeof(T));
  if constexpr (!std::is_void_v<Sum>) {
    geometry.sum_token_bytes = static_cast<unsigned>(problem.heads * problem.channels * sizeof(Sum));
  }
  const int64_t passes = std::is_void_v<Sum> ? divide_up(problem.channels, vector * lanes) : 1;
  geometry.passes = static_cast<unsigned>(passes);
  for (int i = 0; i < problem.num_levels; ++i) {
    const Level& level = problem.levels[i];
    geometry.levels[i] = {static_cast<int>(level.height), static_cast<int>(level.width), static_cast<int>(level.start),
                          static_cast<int>(level.first_point), 0, 0};
  }

  // Large blocks share L1; but every multiprocessor should have a few, or the last ones would be waited for.
  const int64_t maps = problem.batch * problem.heads * passes, warp_queries = kWarp / lanes;
  int warps = kMaxWarps;
  while (warps > 1 && maps * divide_up(problem.queries, warps * warp_queries) < 4 * multiprocessors) warps /= 2;
  set_tiles(problem, warps * warp_queries, geometry);
  if (maps > kInt32Max / geometry.tiles) return cudaErrorInvalidConfiguration;
  launch.blocks = static_cast<unsigned>(maps * geometry.tiles);
  launch.threads = static_cast<unsigned>(warps * kWarp);
  return cudaSuccess;
}

template <typename T, int kVector, int kLanes>
unsigned shared_bytes(const Launch& launch) {
  return launch.threads / kWarp * Shared<RealOf<T>, Lane<kVector, kLanes>::kSlots>::kBytes;
}

struct Forward {
  const Problem& problem;
  const void *value, *locations, *weights;
  void* out;
  cudaStream_t stream;

  template <typename T, int kVector, int kLanes>
  cudaError_t run() const {
    Launch launch;
    const cudaError_t error = plan<T, void>(problem, kVector, kLanes, launch);
    if (error != cudaSuccess) return error;
    using Real = RealOf<T>;
    const auto kernel = &forward_kernel<T, kVector, kLanes>;
    LAUNCH(kernel, launch.blocks, launch.threads, (shared_bytes<T, kVector, kLanes>(launch)), stream, launch.geometry,
           static_cast<const T*>(value), static_cast<const Real*>(locations), static_cast<const Real*>(weights),
           static_cast<T*>(out));
    return cudaGetLastError();
  }
};

// So many terms at most are added to one element of grad_value, as a power of two.
int log2_terms(const Problem& problem) {
  int result = 1;
  while (result < 60 && (int64_t{1} << result) < problem.queries * problem.points) ++result;
  return result;
}

template <bool kFixedPoint>
struct Backward {
  const Problem& problem;
  const void *grad_out, *value, *locations, *weights;
  void *grad_value, *grad_locations, *grad_weights;
  const uint64_t* maxima;
  cudaStream_t stream;

  template <typename T, int kVector, int kLanes>
  cudaError_t run() const {
    Launch launch;
    using Real = RealOf<T>;
    using Sum = std::conditional_t<kFixedPoint, int64_t, Real>;
    const cudaError_t error = plan<T, Sum>(problem, kVector, kLanes, launch);
    if (error != cudaSuccess) return error;
    const auto kernel = &backward_kernel<T, Sum, kVector, kLanes>;
    LAUNCH(kernel, launch.blocks, launch.threads, (shared_bytes<T, kVector, kLanes>(launch)), stream, launch.geometry,
           static_cast<const T*>(grad_out), static_cast<const T*>(value), static_cast<const Real*>(locations),
           static_cast<const Real*>(weights), static_cast<Sum*>(grad_value), static_cast<Real*>(grad_locations),
           static_cast<Real*>(grad_weights), maxima, log2_terms(problem));
    return cudaGetLastError();
  }
};

// The instance for D channels: 16-byte loads where D is a multiple of them, and no more lanes than they need.
template <typename T, typename Job>
cudaError_t run_by_channels(int64_t channels, const Job& job) {
  constexpr int kVector = 16 / sizeof(T);
  if (channels % kVector != 0) return job.template run<T, 1, kWarp>();
  if constexpr (kVector > 2) {
    if (channels <= 4 * kVector) return job.template run<T, kVector, 4>();
    if (channels <= 8 * kVector) return job.template run<T, kVector, 8>();
  }
  if (channels <= 16 * kVector) return job.template run<T, kVector, 16>();
  return job.template run<T, kVector, 32>();
}

template <typename Job>
cudaError_t run_by_dtype(DType dtype, int64_t channels, const Job& job) {
  switch (dtype) {
    case DType::kFloat32:
      return run_by_channels<float>(channels, job);
    case DType::kFloat64:
      return run_by_channels<double>(channels, job);
    case DType::kFloat16:
      return run_by_channels<__half>(channels, job);
    case DType::kBFloat16:
      return run_by_channels<__nv_bfloat16>(channels, job);
  }
  return cudaErrorInvalidValue;
}

// In fixed point a lane has one channel whatever D is: its atomics are 8 bytes wide, and only then do neighbouring
// lanes hit neighbouring words. The mode is for reproducing a run, so one instance for each dtype is enough.
template <typename Job>
cudaError_t run_one_channel_each(DType dtype, const Job& job) {
  switch (dtype) {
    case DType::kFloat32:
      return job.template run<float, 1, kWarp>();
    case DType::kFloat64:
      return job.template run<double, 1, kWarp>();
    case DType::kFloat16:
      return job.template run<__half, 1, kWarp>();
    case DType::kBFloat16:
      return job.template run<__nv_bfloat16, 1, kWarp>();
  }
  return cudaErrorInvalidValue;
}

// Jobs without a shape of their own: one element after the other.
unsigned blocks_for(int64_t count) {
  const int64_t blocks = divide_up(count, kMaxWarps * kWarp);
  return static_cast<unsigned>(blocks < 1024 ? blocks : 1024);
}

struct Maximum {
  const void* array;
  int64_t count;
  uint64_t* maximum;
  cudaStream_t stream;

  template <typename T, int, int>
  cudaError_t run() const {
    if (count == 0) return cudaSuccess;
    const auto kernel = &maximum_kernel<T>;
    LAUNCH(kernel, blocks_for(count), kMaxWarps * kWarp, 0, stream, static_cast<const T*>(array), count, maximum);
    return cudaGetLastError();
  }
};

struct FromFixedPoint {
  const int64_t* fixed;
  int64_t count;
  const uint64_t* maxima;
  int log2_terms;
  void* grad_value;
  cudaStream_t stream;

  template <typename T, int, int>
  cudaError_t run() const {
    if (count == 0) return cudaSuccess;
    const auto kernel = &from_fixed_point_kernel<T>;
    LAUNCH(kernel, blocks_for(count), kMaxWarps * kWarp, 0, stream, fixed, count, maxima, log2_terms,
           static_cast<T*>(grad_value));
    return cudaGetLastError();
  }
};

}  // namespace

cudaError_t forward(const Problem& problem, DType dtype, const void* value, const void* locations, const void* weights,
                    void* out, cudaStream_t stream) {
  if (!fits(problem, sizeof(double))) return cudaErrorInvalidValue;
  if (!aligned(value) || !aligned(locations) || !aligned(weights) || !aligned(out)) return cudaErrorMisalignedAddress;
  if (problem.batch * problem.queries * problem.heads * problem.channels == 0) return cudaSuccess;
  return run_by_dtype(dtype, problem.channels, Forward{problem, value, locations, weights, out, stream});
}

cudaError_t backward(const Problem& problem, DType dtype, const void* grad_out, const void* value,
                     const void* locations, const void* weights, void* grad_value, void* grad_locations,
                     void* grad_weights, const uint64_t* maxima, cudaStream_t stream) {
  if (!fits(problem, sizeof(double))) return cudaErrorInvalidValue;
  for (const void* pointer : {grad_out, value, locations, weights, const_cast<const void*>(grad_value),
                              const_cast<const void*>(grad_locations), const_cast<const void*>(grad_weights)}) {
    if (!aligned(pointer)) return cudaErrorMisalignedAddress;
  }
  if (problem.batch * problem.queries * problem.heads * problem.points == 0) return cudaSuccess;
  if (maxima != nullptr) {
    return run_one_channel_each(dtype, Backward<true>{problem, grad_out, value, locations, weights, grad_value,
                                                      grad_locations, grad_weights, maxima, stream});
  }
  return run_by_dtype(dtype, problem.channels,
                      Backward<false>{problem, grad_out, value, locations, weights, grad_value, grad_locations,
                                      grad_weights, maxima, stream});
}

cudaError_t find_maxima(const Problem& problem, DType dtype, const void* grad_out, const void* weights,
                        uint64_t* maxima, cudaStream_t stream) {
  const int64_t rows = problem.batch * problem.queries * problem.heads;
  const cudaError_t error =
      run_one_channel_each(dtype, Maximum{grad_out, rows * problem.channels, maxima, stream});
  if (error != cudaSuccess) return error;
  const DType weights_dtype = dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  return run_one_channel_each(weights_dtype, Maximum{weights, rows * problem.points, maxima + 1, stream});
}

cudaError_t from_fixed_point(const Problem& problem, DType dtype, const int64_t* fixed, const uint64_t* maxima,
                             void* grad_value, cudaStream_t stream) {
  const int64_t count = problem.batch * problem.tokens * problem.heads * problem.channels;
  return run_one_channel_each(dtype,
                              FromFixedPoint{fixed, count, maxima, log2_terms(problem), grad_value, stream});
}

}  // namespace deformable::cuda
