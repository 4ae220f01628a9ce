// What forward and backward share: who computes what, and where a point samples.
//
// A lane holds kVector neighbouring channels, one 16-byte load; kLanes lanes hold one query of one head, so a warp has
// 32 / kLanes queries of that head. Points are taken in chunks: each lane works out one point of its query (tokens and
// weights of its four corners) and leaves it in shared memory of the warp, where all lanes of the query read it: two
// broadcast loads, cheaper than eight shuffles. No barrier is wider than a warp.
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

// Blocks of kMaxWarps that should fit on a multiprocessor, which bounds the registers (4: 64, 3: 80, 2: 128): enough
// warps to hide the loads behind, as many registers as the loads in flight take. fp64 takes twice the registers, and a
// whole warp to a query a few more.
template <typename T, int kLanes>
constexpr int kForwardBlocks = std::is_same_v<T, double> ? 2 : kLanes < kWarp ? 4 : 3;
template <typename T, int kLanes>
constexpr int kBackwardBlocks = std::is_same_v<T, double> ? 1 : kLanes < kWarp ? 3 : 2;

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
  unsigned token_bytes, sum_token_bytes;  // from a token to the next, in value and in the sums of its gradient
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
  static constexpr bool kOnePass = kLanes < kWarp;           // fewer lanes are only taken where they hold all channels

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
    const unsigned pass = kOnePass ? 0 : blockIdx.x % geometry.passes;
    const unsigned rest = kOnePass ? blockIdx.x : blockIdx.x / geometry.passes;
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

// One point as it is read.
template <typename Real>
struct Point {
  Real x, y, weight;

  // Point `index` of all; a lane without a point gets one at NaN, which touches nothing.
  static __device__ __forceinline__ Point read(const Real* locations, const Real* weights, int64_t index, bool exists) {
    const Real nowhere = static_cast<Real>(NAN);
    if (!exists) return {nowhere, nowhere, 0};
    const auto location = load_pair(locations + 2 * index);
    return {location.x, location.y, __ldcs(weights + index)};
  }
};

// Where a point samples its level.
template <typename Real>
struct Sample {
  Four<unsigned> tokens;        // of the corners; those outside moved to the nearest inside, which this one touches
  Real x_fraction, y_fraction;  // of the way from left to right and from top to bottom
  Real weight;                  // attention weight
  unsigned inside;              // which corners are, as bits; none if all are outside or the location is not finite,
                                // and then all of the above is meaningless

  // `level` is a cursor: a lane's points only move up.
  __device__ __forceinline__ Sample(const Geometry& geometry, int& level, int index, const Point<Real>& point) {
    while (level + 1 < geometry.num_levels && index >= geometry.levels[level + 1].first_point) ++level;
    const GeometryLevel& map = geometry.levels[level];
    weight = point.weight;
    const Real width = static_cast<Real>(map.width), height = static_cast<Real>(map.height);
    Real x = point.x * width - static_cast<Real>(0.5), y = point.y * height - static_cast<Real>(0.5);
    // Also false for NaN. What passes fits an int.
    const bool touches = x >= -1 && x < width && y >= -1 && y < height;
    if (!touches) x = y = 0;
    const Real column = floor(x), row = floor(y);
    x_fraction = x - column;
    y_fraction = y - row;
    const int first_column = static_cast<int>(column), first_row = static_cast<int>(row);
    const bool left = first_column >= 0, right = first_column < map.width - 1;
    const bool top = first_row >= 0, bottom = first_row < map.height - 1;
    const unsigned columns = (left ? 1u : 0u) | (right ? 2u : 0u);
    inside = touches ? (top ? columns : 0u) | (bottom ? columns << 2 : 0u) : 0u;
    const int x0 = max(first_column, 0), x1 = right ? first_column + 1 : map.width - 1;
    const int y0 = max(first_row, 0), y1 = bottom ? first_row + 1 : map.height - 1;
    const unsigned upper = map.start + y0 * map.width, lower = map.start + y1 * map.width;
    tokens = {{upper + x0, upper + x1, lower + x0, lower + x1}};
  }

  // Attention weight times bilinear weight of each corner, zero outside.
  __device__ __forceinline__ Four<Real> corner_weights() const {
    const Real x1 = x_fraction, x0 = 1 - x1, y1 = y_fraction, y0 = 1 - y1;
    const Four<Real> bilinear = {{y0 * x0, y0 * x1, y1 * x0, y1 * x1}};
    Four<Real> result;
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      result.at[corner] = inside >> corner & 1 ? bilinear.at[corner] * weight : static_cast<Real>(0);
    }
    return result;
  }

  // A point that touches nothing reads what another one in `candidates` (a ballot of those that touch) reads anyway,
  // with weight zero: no branch, no extra memory traffic, and no NaN from a token that its query does not touch.
  // Without candidates the tokens are meaningless and must not be read.
  __device__ __forceinline__ void borrow_tokens(unsigned candidates) {
    const int source = (__ffs(static_cast<int>(candidates)) - 1) & (kWarp - 1);
    const unsigned token = __shfl_sync(kAllLanes, tokens.at[0], source);
    if (!inside) tokens = {{token, token, token, token}};
  }
};

// The points of a warp's chunk in shared memory.
template <typename Real, int kSlots>
struct Shared {
  static constexpr int kBytes = kSlots * static_cast<int>(sizeof(Four<unsigned>) + sizeof(Four<Real>));
  Four<unsigned>* tokens;
  Four<Real>* weights;

  __device__ __forceinline__ Shared(void* memory, int warp) {
    char* own = static_cast<char*>(memory) + warp * kBytes;
    tokens = reinterpret_cast<Four<unsigned>*>(own);
    weights = reinterpret_cast<Four<Real>*>(own + kSlots * sizeof(Four<unsigned>));
  }

  __device__ __forceinline__ void write(int slot, bool writes, const Four<unsigned>& token,
                                        const Four<Real>& weight) const {
    __syncwarp();  // the last chunk has been read; the vote since then orders lanes, but not memory
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

// Where a token is. In 64 bits, so that no map is too large; the product is spelled out because the compiler widens the
// factors before the loop, and then takes five instructions where this, with the sum, is one.
template <typename Byte>
__device__ __forceinline__ Byte* token_at(Byte* base, unsigned token, unsigned token_bytes) {
#if defined(CUDA_EMULATION)
  return base + static_cast<uint64_t>(token) * token_bytes;
#else
  uint64_t offset;
  asm("mul.wide.u32 %0, %1, %2;" : "=l"(offset) : "r"(token), "r"(token_bytes));
  return base + offset;
#endif
}

// The four corners of a few points, loaded from `base`: the lane's channels of token 0.
template <typename T, int kVector, int kPoints>
struct Corners {
  Packet<T, kVector> packets[kPoints][4];

  __device__ __forceinline__ Corners(const char* base, unsigned token_bytes, const Four<unsigned>* tokens) {
#pragma unroll
    for (int i = 0; i < kPoints; ++i) {
#pragma unroll
      for (int corner = 0; corner < 4; ++corner) {
        packets[i][corner] = Packet<T, kVector>::load(token_at(base, tokens[i].at[corner], token_bytes));
      }
    }
  }
};

}  // namespace deformable::cuda
