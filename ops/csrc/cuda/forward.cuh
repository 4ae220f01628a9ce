// out[b, q, m] = sum over points of weight * bilinear sample of value[b, :, m], equation 3 of arXiv 2010.04159.
#pragma once

#include "sampling.cuh"

namespace deformable::cuda {

template <typename T, int kVector, int kLanes>
__global__ void __launch_bounds__(kMaxWarps* kWarp)
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
  const int token_bytes = token_size * static_cast<int>(sizeof(T));
  const int64_t row = self.row(geometry);
  const bool has_point = self.query >= 0 && self.within < Self::kChunk;

  Real sum[kVector] = {};
  int level = 0;
  auto next = Point<Real>::read(locations, weights, row, geometry.points, self.within, has_point);
  for (int first = 0; first < geometry.points; first += Self::kChunk) {
    Sample<Real> sample(geometry, level, first + self.within, next);
    next = Point<Real>::read(locations, weights, row, geometry.points, first + Self::kChunk + self.within, has_point);
    const unsigned touching = __ballot_sync(kAllLanes, sample.touches) & self.group_mask();
    sample.borrow_tokens(touching, self.lane);
    Four<Real> corner_weights = sample.bilinear();
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      if (sample.touches) corner_weights.at[corner] *= sample.weight;
    }
    shared.write(self.slot(self.within), self.within < Self::kChunk, sample.tokens, corner_weights);

    if (touching == 0) continue;  // for the lanes of this query; nothing below waits for the others
    const int count = min(Self::kChunk, geometry.points - first);
#pragma unroll 1
    for (int point = 0; point < count; point += kAtOnce) {  // a point beyond the last has weight zero
      Four<int> tokens[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) tokens[i] = shared.tokens[self.slot(point + i)];
      const Corners<T, kVector> corners(base, token_bytes, tokens);
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
  if (active && self.query >= 0) {
    Packet<T, kVector>::store(out + row * geometry.channels + self.channel, sum);
  }
}

}  // namespace deformable::cuda
