// Gradients of forward.cuh. With g the gradient of a query's output and dot_c = g . value at corner c of a point:
//   grad_weight   = sum_c bilinear_c * dot_c
//   grad_location = weight * size * sum_c (derivative of bilinear_c) * dot_c, in each of x and y
//   grad_value at corner c += weight * bilinear_c * g
// The first two are linear in the dot products, so only those are summed over the lanes of a query, and the lane that
// worked out a point's coordinates gets its sums: nothing but grad_value needs atomics.
#pragma once

#include "sampling.cuh"

namespace deformable::cuda {

// Sums of a fixed number of terms bounded by max|grad_out| * max|weight|, as int64 in units of 1 / scale. The scale is
// a power of two, so that multiplying by it is exact.
template <typename Real>
struct FixedPoint {
  using Bits = std::conditional_t<std::is_same_v<Real, double>, uint64_t, uint32_t>;
  static constexpr int kMantissa = std::is_same_v<Real, double> ? 52 : 23;
  static constexpr int kBias = std::is_same_v<Real, double> ? 1023 : 127;

  static __device__ __forceinline__ uint64_t magnitude_bits(Real x) {
    Bits bits;
    memcpy(&bits, &x, sizeof(bits));
    return bits & ~(Bits{1} << (8 * sizeof(Bits) - 1));
  }

  static __device__ __forceinline__ Real power_of_two(int exponent) {
    const Bits bits = static_cast<Bits>(exponent + kBias) << kMantissa;
    Real power;
    memcpy(&power, &bits, sizeof(power));
    return power;
  }

  // 2^result is the scale: 2^log2_terms terms stay below 2^62. False if a maximum is not finite, or their product might
  // not be: then no fixed point holds the gradient. A subnormal counts as the smallest normal number.
  static __device__ __forceinline__ bool exponent(const uint64_t* maxima, int log2_terms, int& result) {
    const int first = static_cast<int>(maxima[0] >> kMantissa), second = static_cast<int>(maxima[1] >> kMantissa);
    const int bound = first + second - 2 * (kBias - 1);  // the product is below 2^bound
    result = min(62 - log2_terms - bound, kBias - 1);
    return first <= 2 * kBias && second <= 2 * kBias && bound <= kBias;
  }

  static __device__ __forceinline__ long long round(float x) { return __float2ll_rn(x); }
  static __device__ __forceinline__ long long round(double x) { return __double2ll_rn(x); }
};

// Four neighbouring sums in one transaction, where the hardware has it.
__device__ __forceinline__ void add_four(float* target, float a, float b, float c, float d) {
#if defined(CUDA_EMULATION) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900)
  atomicAdd(reinterpret_cast<float4*>(target), make_float4(a, b, c, d));
#else
  atomicAdd(target, a);
  atomicAdd(target + 1, b);
  atomicAdd(target + 2, c);
  atomicAdd(target + 3, d);
#endif
}

// Adds channels * weight to a row of the gradient, rounded at `scale` if the row is int64.
template <typename Real, int kVector>
__device__ __forceinline__ void scatter(Real* row, const Real (&channels)[kVector], Real weight, Real /*scale*/) {
  if constexpr (std::is_same_v<Real, float> && kVector % 4 == 0) {
#pragma unroll
    for (int v = 0; v < kVector; v += 4) {
      add_four(row + v, channels[v] * weight, channels[v + 1] * weight, channels[v + 2] * weight,
               channels[v + 3] * weight);
    }
  } else {
#pragma unroll
    for (int v = 0; v < kVector; ++v) atomicAdd(row + v, channels[v] * weight);
  }
}

template <typename Real, int kVector>
__device__ __forceinline__ void scatter(int64_t* row, const Real (&channels)[kVector], Real weight, Real scale) {
#pragma unroll
  for (int v = 0; v < kVector; ++v) {
    const long long term = FixedPoint<Real>::round(channels[v] * weight * scale);
    atomicAdd(reinterpret_cast<unsigned long long*>(row + v), static_cast<unsigned long long>(term));
  }
}

// One chunk of points seen by one lane: dot products of its channels, summed over the lanes of its query on the way.
template <typename T, typename Sum, int kVector, int kLanes>
struct BackwardChunk {
  using Real = RealOf<T>;
  using Self = Lane<kVector, kLanes>;

  const Self& self;
  const Shared<Real, Self::kSlots>& shared;
  const char* base;       // of the value, at this lane's channels of token 0
  char* grad_base;        // of its gradient
  unsigned token_bytes, grad_token_bytes;
  bool active;
  Real scale;
  const Real (&grad_out)[kVector];
  int count;              // points of the chunk

  // The dot products of point `first + self.within % kPoints`, summed over the lanes whose numbers differ from this
  // one's in the bits below kPoints. Two halves of the points are exchanged for two halves of the lanes, so kPoints
  // points take kPoints - 1 exchanges, where summing each by itself would take kPoints * log2(kPoints).
  template <int kPoints>
  __device__ __forceinline__ Four<Real> dots(int first) const {
    if constexpr (kPoints == 1) {
      return first < count ? take_point(first) : Four<Real>{};  // the same in the whole warp
    } else {
      constexpr int kHalf = kPoints / 2;
      const Four<Real> a = dots<kHalf>(first), b = dots<kHalf>(first + kHalf);
      const bool second = self.within & kHalf;
      Four<Real> kept, sent;
#pragma unroll
      for (int corner = 0; corner < 4; ++corner) {
        kept.at[corner] = second ? b.at[corner] : a.at[corner];
        sent.at[corner] = second ? a.at[corner] : b.at[corner];
      }
      return exchange(kept, sent, kHalf);
    }
  }

  // What is left: lanes that hold the same point.
  __device__ __forceinline__ Four<Real> all_dots() const {
    Four<Real> sum = dots<Self::kChunk>(0);
#pragma unroll
    for (int distance = Self::kChunk; distance < kLanes; distance *= 2) sum = exchange(sum, sum, distance);
    return sum;
  }

 private:
  static __device__ __forceinline__ Four<Real> exchange(Four<Real> kept, const Four<Real>& sent, int distance) {
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      kept.at[corner] += __shfl_xor_sync(kAllLanes, sent.at[corner], distance);
    }
    return kept;
  }

  __device__ __forceinline__ Four<Real> take_point(int point) const {
    const Four<unsigned> tokens = shared.tokens[self.slot(point)];
    const Corners<T, kVector, 1> corners(base, token_bytes, &tokens);
    // The atomics need none of the loads, so they go out while those are on their way.
    const Four<Real> weight = shared.weights[self.slot(point)];
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      // None for the corners outside, whose tokens are not theirs.
      if (!active || weight.at[corner] == 0) continue;
      char* row = token_at(grad_base, tokens.at[corner], grad_token_bytes);
      scatter(reinterpret_cast<Sum*>(row), grad_out, weight.at[corner], scale);
    }
    Four<Real> dot = {};
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      Real channels[kVector];
      corners.packets[0][corner].unpack(channels);
#pragma unroll
      for (int v = 0; v < kVector; ++v) dot.at[corner] += grad_out[v] * channels[v];
    }
    return dot;
  }
};

// Sum is A, or int64_t for the fixed point; `maxima` and `log2_terms` are read for the latter alone.
template <typename T, typename Sum, int kVector, int kLanes>
__global__ void __launch_bounds__(kMaxWarps* kWarp, kBackwardBlocks<T, kLanes>)
    backward_kernel(const Geometry geometry, const T* __restrict__ grad_out, const T* __restrict__ value,
                    const RealOf<T>* __restrict__ locations, const RealOf<T>* __restrict__ weights,
                    Sum* __restrict__ grad_value, RealOf<T>* __restrict__ grad_locations,
                    RealOf<T>* __restrict__ grad_weights, const uint64_t* __restrict__ maxima, int log2_terms) {
  using Real = RealOf<T>;
  using Self = Lane<kVector, kLanes>;
  using Chunk = BackwardChunk<T, Sum, kVector, kLanes>;
  const Self self(geometry);
  const Shared<Real, Self::kSlots> shared(dynamic_shared_memory, self.warp);

  Real scale = 0;
  if constexpr (std::is_same_v<Sum, int64_t>) {
    int exponent;
    // Without a fixed point it does not matter what is summed: from_fixed_point_kernel writes NaN.
    if (FixedPoint<Real>::exponent(maxima, log2_terms, exponent)) scale = FixedPoint<Real>::power_of_two(exponent);
  }

  const int token_size = geometry.heads * geometry.channels;
  const int64_t map = self.batch * geometry.tokens * token_size + static_cast<int64_t>(self.head) * geometry.channels;
  const int64_t row = self.row(geometry);
  // This lane's points are within, within + kChunk, ... of its query's.
  const int end = self.query >= 0 && self.within < Self::kChunk ? geometry.points : 0;
  const int64_t first_point = row * geometry.points;

  Real gradient[kVector] = {};
  const auto read_gradient = [&](int channel) {
#pragma unroll
    for (int v = 0; v < kVector; ++v) gradient[v] = 0;
    if (self.query >= 0 && channel < geometry.channels) {
      Packet<T, kVector>::load(grad_out + row * geometry.channels + channel).unpack(gradient);
    }
  };
  if (Self::kOnePass) read_gradient(self.channel);

  int level = 0;
  for (int first = 0; first < geometry.points; first += Self::kChunk) {
    const int index = first + self.within;
    // Not read a chunk ahead, as forward does: three registers more than there are.
    const auto point = Point<Real>::read(locations, weights, first_point + index, index < end);
    Sample<Real> sample(geometry, level, index, point);
    const unsigned touching = __ballot_sync(kAllLanes, sample.inside != 0);
    sample.borrow_tokens(touching);
    shared.write(self.slot(self.within), self.within < Self::kChunk, sample.tokens, sample.corner_weights());

    Four<Real> dots = {};
    if (touching != 0 && geometry.channels > 0) {  // the same in the whole warp
      int channel = self.channel;
      do {
        if (!Self::kOnePass) read_gradient(channel);
        const bool active = channel < geometry.channels;
        const int64_t start = map + (active ? channel : 0);
        const Chunk chunk{self,
                          shared,
                          reinterpret_cast<const char*>(value + start),
                          reinterpret_cast<char*>(grad_value + start),
                          geometry.token_bytes,
                          geometry.sum_token_bytes,
                          active,
                          scale,
                          gradient,
                          min(Self::kChunk, geometry.points - first)};
        const Four<Real> part = chunk.all_dots();
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) dots.at[corner] += part.at[corner];
        channel += kLanes * kVector;
      } while (!Self::kOnePass && channel - self.channel < geometry.channels);
    }
    if (index >= end) continue;

    // What a corner outside, or a point that touches nothing, has borrowed must not count, NaN least of all.
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      if (!(sample.inside >> corner & 1)) dots.at[corner] = 0;
    }
    const Real dot00 = dots.at[0], dot01 = dots.at[1], dot10 = dots.at[2], dot11 = dots.at[3];
    const Real x1 = sample.x_fraction, x0 = 1 - x1, y1 = sample.y_fraction, y0 = 1 - y1;
    const Real along_x = y0 * (dot01 - dot00) + y1 * (dot11 - dot10);
    const Real along_y = x0 * (dot10 - dot00) + x1 * (dot11 - dot01);
    const Real bilinear = y0 * (x0 * dot00 + x1 * dot01) + y1 * (x0 * dot10 + x1 * dot11);
    const GeometryLevel& size = geometry.levels[level];
    const int64_t target = first_point + index;
    store_pair(grad_locations + 2 * target,
               sample.inside ? sample.weight * static_cast<Real>(size.width) * along_x : 0,
               sample.inside ? sample.weight * static_cast<Real>(size.height) * along_y : 0);
    __stcs(grad_weights + target, bilinear);
  }
}

// The largest magnitude of an array. As bits, non-negative numbers are in order, infinity above them, NaN above all.
template <typename T>
__global__ void __launch_bounds__(kMaxWarps* kWarp)
    maximum_kernel(const T* __restrict__ array, int64_t count, uint64_t* __restrict__ maximum) {
  using Fixed = FixedPoint<RealOf<T>>;
  unsigned long long largest = 0;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    const unsigned long long bits = Fixed::magnitude_bits(to_real(array[i]));
    largest = bits > largest ? bits : largest;
  }
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const unsigned long long other = __shfl_xor_sync(kAllLanes, largest, distance);
    largest = other > largest ? other : largest;
  }
  if (threadIdx.x % kWarp == 0) atomicMax(reinterpret_cast<unsigned long long*>(maximum), largest);
}

template <typename T>
__global__ void __launch_bounds__(kMaxWarps* kWarp)
    from_fixed_point_kernel(const int64_t* __restrict__ fixed, int64_t count, const uint64_t* __restrict__ maxima,
                            int log2_terms, T* __restrict__ grad_value) {
  using Real = RealOf<T>;
  int exponent;
  const bool holds = FixedPoint<Real>::exponent(maxima, log2_terms, exponent);
  const Real unit = holds ? FixedPoint<Real>::power_of_two(-exponent) : static_cast<Real>(NAN);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    grad_value[i] = from_real<T>(static_cast<Real>(fixed[i]) * unit);
  }
}

}  // namespace deformable::cuda
