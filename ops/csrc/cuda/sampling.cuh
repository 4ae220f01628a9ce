// What forward and backward share: who computes what, and where a point samples.
//
// A lane holds kVector neighbouring channels, one 16-byte load; kLanes lanes hold one query of one head, so a warp works
// on 32 / kLanes queries of that head. Points are taken in chunks: each lane works out one point of its query (tokens
// and weights of its four corners) and leaves it in shared memory of the warp, where all lanes of the query read it:
// two broadcast loads, cheaper than eight shuffles. No barrier is wider than a warp.
//
// Corners are ordered top left, top right, bottom left, bottom right.
#pragma once

#if !defined(CUDA_EMULATION)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../problem.h"

namespace deformable::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kWarp = 32;
constexpr int kMaxWarps = 8;  // of a block

template <typename T>
using RealOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

__device__ __forceinline__ float to_real(float x) { return x; }
__device__ __forceinline__ double to_real(double x) { return x; }
__device__ __forceinline__ float to_real(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_real(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ __forceinline__ T from_real(RealOf<T> x) {
  if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(x);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(x);
  } else {
    return x;
  }
}

template <typename T>
struct alignas(16) Four {
  T at[4];
};

__device__ __forceinline__ float2 load_pair(const float* source) {
  return __ldcs(reinterpret_cast<const float2*>(source));
}
__device__ __forceinline__ double2 load_pair(const double* source) {
  return __ldcs(reinterpret_cast<const double2*>(source));
}
__device__ __forceinline__ void store_pair(float* target, float x, float y) {
  __stcs(reinterpret_cast<float2*>(target), make_float2(x, y));
}
__device__ __forceinline__ void store_pair(double* target, double x, double y) {
  __stcs(reinterpret_cast<double2*>(target), make_double2(x, y));
}

// kVector neighbouring channels as they lie in memory, so that a load in flight takes four registers in every dtype.
template <typename T, int kVector>
struct Packet {
  static_assert(kVector * sizeof(T) == sizeof(uint4), "a packet is one 16-byte load");
  uint4 bits;

  static __device__ __forceinline__ Packet load(const void* source) {
    return {__ldg(static_cast<const uint4*>(source))};
  }
  __device__ __forceinline__ void unpack(RealOf<T> (&channels)[kVector]) const {
    T parts[kVector];
    memcpy(parts, &bits, sizeof(bits));
#pragma unroll
    for (int i = 0; i < kVector; ++i) channels[i] = to_real(parts[i]);
  }
  static __device__ __forceinline__ void store(T* target, const RealOf<T> (&channels)[kVector]) {
    T parts[kVector];
#pragma unroll
    for (int i = 0; i < kVector; ++i) parts[i] = from_real<T>(channels[i]);
    uint4 bits;
    memcpy(&bits, parts, sizeof(bits));
    __stcs(reinterpret_cast<uint4*>(target), bits);
  }
};

template <typename T>
struct Packet<T, 1> {
  T bits;

  static __device__ __forceinline__ Packet load(const void* source) { return {__ldg(static_cast<const T*>(source))}; }
  __device__ __forceinline__ void unpack(RealOf<T> (&channels)[1]) const { channels[0] = to_real(bits); }
  static __device__ __forceinline__ void store(T* target, const RealOf<T> (&channels)[1]) {
    *target = from_real<T>(channels[0]);
  }
};

struct GeometryLevel {
  int height, width, start, first_point;
  int first_tile, tiles_across;
};

// The sizes as the kernels want them: 32 bits wherever one batch entry and head fits, and how queries go to blocks.
struct Geometry {
  int heads, channels, queries, points, num_levels;
  int64_t tokens;
  // A (batch, head) has `tiles` blocks (times the channel passes). Where the queries are the tokens, a tile is
  // tile_width x tile_height neighbouring ones of a level, whose samples overlap and hit L1; otherwise tile_width is 0
  // and a tile is a run of queries.
  unsigned tiles, passes;
  int tile_width, tile_height;
  GeometryLevel levels[kMaxLevels];
};

// Who this lane is.
template <int kVector, int kLanes>
struct Lane {
  static constexpr int kQueries = kWarp / kLanes;            // of a warp
  static constexpr int kChunk = kLanes < 8 ? kLanes : 8;     // points of a query worked out at once
  static constexpr int kSlots = kChunk * kQueries;           // points of a warp in shared memory

  int warp, lane;
  int within;    // among the lanes of its query
  int group;     // of its query, among the queries of the warp
  int head;
  int64_t batch;
  int channel;   // its first
  int query;     // -1 if it has none

  // Blocks are ordered with the (batch, head) slowest: the blocks at work at one time read few maps, which stay in L2.
  __device__ __forceinline__ explicit Lane(const Geometry& geometry) {
    warp = static_cast<int>(threadIdx.x) / kWarp;
    lane = static_cast<int>(threadIdx.x) % kWarp;
    within = lane % kLanes;
    group = lane / kLanes;
    const unsigned pass = blockIdx.x % geometry.passes, rest = blockIdx.x / geometry.passes;
    const unsigned tile = rest % geometry.tiles, map = rest / geometry.tiles;
    head = static_cast<int>(map % geometry.heads);
    batch = map / geometry.heads;
    channel = (static_cast<int>(pass) * kLanes + within) * kVector;
    query = query_of(geometry, static_cast<int>(tile), warp * kQueries + group);
  }

  // Index of (batch, query, head) in [B, Q, M].
  __device__ __forceinline__ int64_t row(const Geometry& geometry) const {
    return (batch * geometry.queries + query) * geometry.heads + head;
  }

  // Where point `point` of the chunk is in shared memory. The queries of a warp lie side by side, so that their
  // simultaneous reads of one point fall into different banks.
  __device__ __forceinline__ int slot(int point) const { return point * kQueries + group; }

  // Of the lanes that hold the same query.
  __device__ __forceinline__ unsigned group_mask() const {
    return kLanes == kWarp ? kAllLanes : ((1u << (kLanes % kWarp)) - 1u) << (group * kLanes);
  }

 private:
  static __device__ __forceinline__ int query_of(const Geometry& geometry, int tile, int place) {
    if (geometry.tile_width == 0) {
      const int64_t query = static_cast<int64_t>(tile) * (static_cast<int>(blockDim.x) / kLanes) + place;
      return query < geometry.queries ? static_cast<int>(query) : -1;
    }
    int level = 0;
    while (level + 1 < geometry.num_levels && tile >= geometry.levels[level + 1].first_tile) ++level;
    const GeometryLevel& map = geometry.levels[level];
    const int number = tile - map.first_tile;
    const int x = number % map.tiles_across * geometry.tile_width + place % geometry.tile_width;
    const int y = number / map.tiles_across * geometry.tile_height + place / geometry.tile_width;
    return x < map.width && y < map.height ? map.start + y * map.width + x : -1;
  }
};

// One point as it is read, one chunk ahead of its use.
template <typename Real>
struct Point {
  Real x, y, weight;

  // A lane without a point gets one at NaN, which touches nothing. `row` is that of (batch, query, head).
  static __device__ __forceinline__ Point read(const Real* locations, const Real* weights, int64_t row, int points,
                                               int point, bool exists) {
    const Real nowhere = static_cast<Real>(NAN);
    if (!exists || point >= points) return {nowhere, nowhere, 0};
    const int64_t index = row * points + point;
    const auto location = load_pair(locations + 2 * index);
    return {location.x, location.y, __ldcs(weights + index)};
  }
};

// Where a point samples its level.
template <typename Real>
struct Sample {
  Four<int> tokens;                // of the corners; those outside moved to the nearest inside, which this one touches
  Real x_fraction, y_fraction;     // of the way from left to right and from top to bottom
  Real weight, width, height;      // attention weight; size of the level
  bool touches;                    // false for a point that is outside, or not finite: all else is then meaningless
  bool left, right, top, bottom;   // which columns and rows of corners are inside

  // `level` is a cursor: a lane's points only move up.
  __device__ __forceinline__ Sample(const Geometry& geometry, int& level, int index, const Point<Real>& point) {
    while (level + 1 < geometry.num_levels && index >= geometry.levels[level + 1].first_point) ++level;
    const GeometryLevel& map = geometry.levels[level];
    weight = point.weight;
    width = static_cast<Real>(map.width);
    height = static_cast<Real>(map.height);
    const Real x = point.x * width - static_cast<Real>(0.5), y = point.y * height - static_cast<Real>(0.5);
    // Also false for NaN. What passes fits an int.
    touches = x >= -1 && x < width && y >= -1 && y < height;
    const Real column = floor(touches ? x : 0), row = floor(touches ? y : 0);
    x_fraction = x - column;
    y_fraction = y - row;
    const int first_column = static_cast<int>(column), first_row = static_cast<int>(row);
    left = first_column >= 0;
    top = first_row >= 0;
    right = first_column < map.width - 1;
    bottom = first_row < map.height - 1;
    const int x0 = max(first_column, 0), x1 = right ? first_column + 1 : map.width - 1;
    const int y0 = max(first_row, 0), y1 = bottom ? first_row + 1 : map.height - 1;
    const int upper = map.start + y0 * map.width, lower = map.start + y1 * map.width;
    tokens = {{upper + x0, upper + x1, lower + x0, lower + x1}};
  }

  // Bilinear weight of each corner, zero outside.
  __device__ __forceinline__ Four<Real> bilinear() const {
    const Real zero = 0, one = 1;
    const Real x0 = touches && left ? one - x_fraction : zero, x1 = touches && right ? x_fraction : zero;
    const Real y0 = touches && top ? one - y_fraction : zero, y1 = touches && bottom ? y_fraction : zero;
    return {{y0 * x0, y0 * x1, y1 * x0, y1 * x1}};
  }

  // A point that touches nothing reads what another one in `candidates` (a ballot of those that touch) reads anyway,
  // with weight zero: no branch, no extra memory traffic, and no NaN from a token that its query does not touch.
  __device__ __forceinline__ void borrow_tokens(unsigned candidates, int lane) {
    const int source = candidates ? __ffs(static_cast<int>(candidates)) - 1 : lane;
    const int token = __shfl_sync(kAllLanes, tokens.at[0], source);
    if (!touches) tokens = {{token, token, token, token}};
  }
};

// The points of a warp's chunk in shared memory.
template <typename Real, int kSlots>
struct Shared {
  static constexpr int kBytes = kSlots * static_cast<int>(sizeof(Four<int>) + sizeof(Four<Real>));
  Four<int>* tokens;
  Four<Real>* weights;

  __device__ __forceinline__ Shared(void* memory, int warp) {
    char* own = static_cast<char*>(memory) + warp * kBytes;
    tokens = reinterpret_cast<Four<int>*>(own);
    weights = reinterpret_cast<Four<Real>*>(own + kSlots * sizeof(Four<int>));
  }

  __device__ __forceinline__ void write(int slot, bool writes, const Four<int>& token, const Four<Real>& weight) {
    __syncwarp();  // the last chunk has been read
    if (writes) {
      tokens[slot] = token;
      weights[slot] = weight;
    }
    __syncwarp();
  }
};

// Dynamic, because a block has 1 to kMaxWarps warps: what is not taken here is L1 cache.
#if !defined(CUDA_EMULATION)
extern __shared__ uint4 dynamic_shared_memory[];
#endif

// Points whose corners are loaded before the first is used: eight loads in flight in each lane.
constexpr int kAtOnce = 2;

// The four corners of kAtOnce points, loaded from `base`: the lane's channels of token 0.
template <typename T, int kVector>
struct Corners {
  Packet<T, kVector> packets[kAtOnce][4];

  // One 32-bit multiplication with a 64-bit sum for each address: no map is too large.
  __device__ __forceinline__ Corners(const char* base, int token_bytes, const Four<int> (&tokens)[kAtOnce]) {
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
      for (int corner = 0; corner < 4; ++corner) {
        packets[i][corner] = Packet<T, kVector>::load(base + static_cast<int64_t>(tokens[i].at[corner]) * token_bytes);
      }
    }
  }
};

}  // namespace deformable::cuda
