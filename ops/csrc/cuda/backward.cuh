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

// Adds channels * weight to a row of the gradient, rounded at `scale` if the row is int64.
template <typename Real, int kVector>
__device__ __forceinline__ void scatter(Real* row, const Real (&channels)[kVector], Real weight, Real /*scale*/) {
#if defined(CUDA_EMULATION) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900)
  if constexpr (std::is_same_v<Real, float> && kVector % 4 == 0) {
#pragma unroll
    for (int v = 0; v < kVector; v += 4) {
      atomicAdd(reinterpret_cast<float4*>(row + v), make_float4(channels[v] * weight, channels[v + 1] * weight,
                                                                channels[v + 2] * weight, channels[v + 3] * weight));
    }
    return;
  }
#endif
#pragma unroll
  for (int v = 0; v < kVector; ++v) atomicAdd(row + v, channels[v] * weight);
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
  int token_bytes, grad_token_bytes;
  bool active;
  Real scale;
  const Real (&grad_out)[kVector];
  int count;              // points of the chunk

  // The dot products of point `first + self.within % kPoints`, summed over the lanes whose numbers differ from this
  // one's in the bits below kPoints. Two halves of the points are exchanged for two halves of the lanes, so kPoints
  // points take kPoints - 1 exchanges, where summing each by itself would take kPoints * log2(kPoints).
  template <int kPoints>
  __device__ __forceinline__ Four<Real> dots(int first) const {
    constexpr int kHalf = kPoints / 2;
    Four<Real> kept, sent;
    if constexpr (kPoints == kAtOnce) {
      Four<Real> pair[kAtOnce] = {};
      if (first < count) take_points(first, pair);  // the same in the whole warp
      choose(self.within & kHalf, pair[0], pair[1], kept, sent);
    } else {
      const Four<Real> lower = dots<kHalf>(first), upper = dots<kHalf>(first + kHalf);
      choose(self.within & kHalf, lower, upper, kept, sent);
    }
    return exchange(kept, sent, kHalf);
  }

  // What is left: lanes that hold the same point.
  __device__ __forceinline__ Four<Real> all_dots() const {
    Four<Real> sum = dots<Self::kChunk>(0);
#pragma unroll
    for (int distance = Self::kChunk; distance < kLanes; distance *= 2) sum = exchange(sum, sum, distance);
    return sum;
  }

 private:
  static __device__ __forceinline__ void choose(bool second, const Four<Real>& a, const Four<Real>& b,
                                                Four<Real>& kept, Four<Real>& sent) {
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      kept.at[corner] = second ? b.at[corner] : a.at[corner];
      sent.at[corner] = second ? a.at[corner] : b.at[corner];
    }
  }

  static __device__ __forceinline__ Four<Real> exchange(Four<Real> kept, const Four<Real>& sent, int distance) {
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      kept.at[corner] += __shfl_xor_sync(kAllLanes, sent.at[corner], distance);
    }
    return kept;
  }

  __device__ __forceinline__ void take_points(int first, Four<Real> (&dots)[kAtOnce]) const {
    Four<int> tokens[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) tokens[i] = shared.tokens[self.slot(first + i)];
    const Corners<T, kVector> corners(base, token_bytes, tokens);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
      for (int corner = 0; corner < 4; ++corner) {
        Real channels[kVector];
        corners.packets[i][corner].unpack(channels);
#pragma unroll
        for (int v = 0; v < kVector; ++v) dots[i].at[corner] += grad_out[v] * channels[v];
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const Four<Real> weight = shared.weights[self.slot(first + i)];
#pragma unroll
      for (int corner = 0; corner < 4; ++corner) {
        // No atomics for the corners outside, whose tokens are not theirs.
        if (!active || weight.at[corner] == 0) continue;
        char* row = grad_base + static_cast<int64_t>(tokens[i].at[corner]) * grad_token_bytes;
        scatter(reinterpret_cast<Sum*>(row), grad_out, weight.at[corner], scale);
      }
    }
  }
};

// Sum is A, or int64_t for the fixed point; `maxima` and `log2_terms` are read for the latter alone.
template <typename T, typename Sum, int kVector, int kLanes>
__global__ void __launch_bounds__(kMaxWarps* kWarp)
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
    // Without a fixed point the buffer stays zero; from_fixed_point_kernel then writes NaN.
    if (FixedPoint<Real>::exponent(maxima, log2_terms, exponent)) scale = FixedPoint<Real>::power_of_two(exponent);
  }

  const int token_size = geometry.heads * geometry.channels;
  const int64_t map = self.batch * geometry.tokens * token_size + static_cast<int64_t>(self.head) * geometry.channels;
  const int64_t row = self.row(geometry);
  const bool has_point = self.query >= 0 && self.within < Self::kChunk;
  const bool one_pass = geometry.channels <= kLanes * kVector;

  Real gradient[kVector] = {};
  const auto read_gradient = [&](int channel) {
#pragma unroll
    for (int v = 0; v < kVector; ++v) gradient[v] = 0;
    if (self.query >= 0 && channel < geometry.channels) {
      Packet<T, kVector>::load(grad_out + row * geometry.channels + channel).unpack(gradient);
    }
  };
  if (one_pass) read_gradient(self.channel);

  int level = 0;
  auto next = Point<Real>::read(locations, weights, row, geometry.points, self.within, has_point);
  for (int first = 0; first < geometry.points; first += Self::kChunk) {
    const int index = first + self.within;
    Sample<Real> sample(geometry, level, index, next);
    next = Point<Real>::read(locations, weights, row, geometry.points, index + Self::kChunk, has_point);
    const unsigned touching = __ballot_sync(kAllLanes, sample.touches);
    sample.borrow_tokens(touching, self.lane);
    const Four<Real> bilinear = sample.bilinear();
    Four<Real> corner_weights = bilinear;
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      if (sample.touches) corner_weights.at[corner] *= sample.weight;
    }
    shared.write(self.slot(self.within), self.within < Self::kChunk, sample.tokens, corner_weights);

    Four<Real> dots = {};
    if (touching != 0) {  // the same in the whole warp
      for (int channel = self.channel; channel - self.channel < geometry.channels; channel += kLanes * kVector) {
        if (!one_pass) read_gradient(channel);
        const bool active = channel < geometry.channels;
        const int64_t start = map + (active ? channel : 0);
        const Chunk chunk{self,
                          shared,
                          reinterpret_cast<const char*>(value + start),
                          reinterpret_cast<char*>(grad_value + start),
                          token_size * static_cast<int>(sizeof(T)),
                          token_size * static_cast<int>(sizeof(Sum)),
                          active,
                          scale,
                          gradient,
                          min(Self::kChunk, geometry.points - first)};
        const Four<Real> part = chunk.all_dots();
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) dots.at[corner] += part.at[corner];
      }
    }
    if (!has_point || index >= geometry.points) continue;

    // What a corner outside, or a point that touches nothing, has borrowed must not count, NaN least of all.
    const Real zero = 0, one = 1;
    const Real dot00 = sample.touches && sample.top && sample.left ? dots.at[0] : zero;
    const Real dot01 = sample.touches && sample.top && sample.right ? dots.at[1] : zero;
    const Real dot10 = sample.touches && sample.bottom && sample.left ? dots.at[2] : zero;
    const Real dot11 = sample.touches && sample.bottom && sample.right ? dots.at[3] : zero;
    const Real along_x = (one - sample.y_fraction) * (dot01 - dot00) + sample.y_fraction * (dot11 - dot10);
    const Real along_y = (one - sample.x_fraction) * (dot10 - dot00) + sample.x_fraction * (dot11 - dot01);
    const int64_t target = row * geometry.points + index;
    store_pair(grad_locations + 2 * target, sample.touches ? sample.weight * sample.width * along_x : zero,
               sample.touches ? sample.weight * sample.height * along_y : zero);
    __stcs(grad_weights + target, bilinear.at[0] * dot00 + bilinear.at[1] * dot01 + bilinear.at[2] * dot10 +
                                      bilinear.at[3] * dot11);
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
