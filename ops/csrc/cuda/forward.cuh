// out[b, q, m] = sum over points of weight * bilinear sample of value[b, :, m], equation 3 of arXiv 2010.04159.
#pragma once

#include "sampling.cuh"

namespace deformable::cuda {

// Points whose corners are loaded before the first is used: eight loads in flight in each lane.
constexpr int kAtOnce = 2;

template <typename T, int kVector, int kLanes>
__global__ void __launch_bounds__(kMaxWarps* kWarp, kForwardBlocks<T, kLanes>)
    forward_kernel(const Geometry geometry, const T* __restrict__ value, const RealOf<T>* __restrict__ locations,
                   const RealOf<T>* __restrict__ weights, T* __restrict__ out) {
  using Real = RealOf<T>;
  using Self = Lane<kVector, kLanes>;
  const Self self(geometry);
  const Shared<Real, Self::kSlots> shared(dynamic_shared_memory, self.warp);

  // A lane beyond the last channel keeps its part in the work on coordinates and reads channel 0 again.
  const bool active = self.channel < geometry.channels;
  const int token_size = geometry.heads * geometry.channels;
  const char* base = reinterpret_cast<const char*>(
      value + self.batch * geometry.tokens * token_size + static_cast<int64_t>(self.head) * geometry.channels +
      (active ? self.channel : 0));
  const int64_t row = self.row(geometry);
  // This lane's points are within, within + kChunk, ... of its query's.
  const int end = self.query >= 0 && self.within < Self::kChunk ? geometry.points : 0;
  const int64_t first_point = row * geometry.points;

  T* const target = active && self.query >= 0 ? out + row * geometry.channels + self.channel : nullptr;

  Real sum[kVector] = {};
  int level = 0;
  auto next = Point<Real>::read(locations, weights, first_point + self.within, self.within < end);
  for (int first = 0; first < geometry.points; first += Self::kChunk) {
    const int index = first + self.within;
    Sample<Real> sample(geometry, level, index, next);
    // One chunk ahead, to be there when it is needed.
    next = Point<Real>::read(locations, weights, first_point + index + Self::kChunk, index + Self::kChunk < end);
    const unsigned touching = __ballot_sync(kAllLanes, sample.inside != 0) & self.group_mask();
    sample.borrow_tokens(touching);
    shared.write(self.slot(self.within), self.within < Self::kChunk, sample.tokens, sample.corner_weights());

    if (touching != 0) {  // the same for the lanes of a query; nothing in here waits for the others
      const int count = min(Self::kChunk, geometry.points - first);
#pragma unroll 1
      for (int point = 0; point < count; point += kAtOnce) {  // a point beyond the last has weight zero
        Four<unsigned> tokens[kAtOnce];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) tokens[i] = shared.tokens[self.slot(point + i)];
        const Corners<T, kVector, kAtOnce> corners(base, geometry.token_bytes, tokens);
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          const Four<Real> weight = shared.weights[self.slot(point + i)];
#pragma unroll
          for (int corner = 0; corner < 4; ++corner) {
            Real channels[kVector];
            corners.packets[i][corner].unpack(channels);
#pragma unroll
            for (int v = 0; v < kVector; ++v) sum[v] += weight.at[corner] * channels[v];
          }
        }
      }
    }
  }
  if (target != nullptr) Packet<T, kVector>::store(target, sum);
}

}  // namespace deformable::cuda
