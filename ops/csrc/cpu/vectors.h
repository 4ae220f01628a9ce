// Vectors of one register's width and the half-precision types, in the compiler's own vector extension (GCC, Clang):
// one source serves AVX-512, AVX2, SSE2 and NEON. Everything is in an unnamed namespace, and no standard C++ header is
// included, because each instruction set compiles this anew: a shared inline function could be the wrong one's.
#pragma once

#include <cstdint>

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX2__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif

#define INLINE static inline __attribute__((always_inline))

// Lanes picked from two float vectors; GCC has Clang's builtin from version 12 on.
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Vectors<float>::Int{__VA_ARGS__})
#endif

namespace {

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

// The type a value is computed in, and the integers of the same width.
template <typename T>
struct Compute {
  using Real = float;
  using Int = int32_t;
};
template <>
struct Compute<double> {
  using Real = double;
  using Int = int64_t;
};
template <typename T>
struct Compute<const T> : Compute<T> {};
template <typename T>
using RealOf = typename Compute<T>::Real;

template <typename Real>
struct Vectors;
template <>
struct Vectors<float> {
  static constexpr int kLanes = VECTOR_BYTES / 4;
  typedef float Real __attribute__((vector_size(VECTOR_BYTES)));
  typedef int32_t Int __attribute__((vector_size(VECTOR_BYTES)));
  typedef uint32_t Bits __attribute__((vector_size(VECTOR_BYTES)));
  typedef uint16_t Halves __attribute__((vector_size(VECTOR_BYTES / 2)));
};
template <>
struct Vectors<double> {
  static constexpr int kLanes = VECTOR_BYTES / 8;
  typedef double Real __attribute__((vector_size(VECTOR_BYTES)));
  typedef int64_t Int __attribute__((vector_size(VECTOR_BYTES)));
};

template <typename A, typename B>
constexpr bool kSame = false;
template <typename A>
constexpr bool kSame<A, A> = true;

template <typename T>
constexpr int kLanesOf = Vectors<RealOf<T>>::kLanes;
template <typename T>
using VectorOf = typename Vectors<RealOf<T>>::Real;

template <typename To, typename From>
INLINE To bit_copy(From from) {
  static_assert(sizeof(To) == sizeof(From), "a bit copy keeps the size");
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

// The scalar conversions of half precision; Bits is uint32_t or a vector of it, Real the float of the same shape.
template <typename Real, typename Bits>
INLINE Real from_bfloat16(Bits bits) {
  return bit_copy<Real>(bits << 16);
}

template <typename Real, typename Bits>
INLINE Real from_half(Bits bits) {
  // Exponent and mantissa moved to float's places are too small by 2^112, subnormals too; multiplying is exact.
  const Bits magnitude = bits & 0x7fffu;
  const Real scaled = bit_copy<Real>(magnitude << 13) * 0x1p112f;
  const Bits finite = bit_copy<Bits>(scaled);
  const Bits special = (magnitude << 13) | 0x7f800000u;  // infinity and NaN
  return bit_copy<Real>((magnitude >= 0x7c00u ? special : finite) | ((bits & 0x8000u) << 16));
}

INLINE uint16_t to_bfloat16(float value) {
  const uint32_t bits = bit_copy<uint32_t>(value);
  if (value != value) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);  // to nearest, ties to even
}

INLINE uint16_t to_half(float value) {
  const uint32_t bits = bit_copy<uint32_t>(value), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and more round to infinity
  if (magnitude < 0x38800000u) {  // below 2^-14: the sum's last bit is 2^-24, so the adder rounds to a subnormal
    const float sum = bit_copy<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (bit_copy<uint32_t>(sum) - 0x3f000000u));
  }
  const uint32_t rebased = magnitude - 0x38000000u;  // the exponent's bias from 127 to 15
  return static_cast<uint16_t>(sign | ((rebased + 0xfffu + ((rebased >> 13) & 1u)) >> 13));
}

INLINE float to_real(float value) { return value; }
INLINE double to_real(double value) { return value; }
INLINE float to_real(BFloat16 value) { return from_bfloat16<float>(static_cast<uint32_t>(value.bits)); }
INLINE float to_real(Half value) { return from_half<float>(static_cast<uint32_t>(value.bits)); }

template <typename T>
INLINE T from_real(RealOf<T> value) {
  if constexpr (kSame<T, BFloat16>) {
    return BFloat16{to_bfloat16(value)};
  } else if constexpr (kSame<T, Half>) {
    return Half{to_half(value)};
  } else {
    return value;
  }
}

template <typename T>
INLINE VectorOf<T> load(const T* source) {
  if constexpr (sizeof(T) == 2) {
    typename Vectors<float>::Halves halves;
    __builtin_memcpy(&halves, source, sizeof(halves));
    const auto bits = __builtin_convertvector(halves, Vectors<float>::Bits);
    if constexpr (kSame<T, BFloat16>) {
      return from_bfloat16<VectorOf<T>>(bits);
    } else {
      return from_half<VectorOf<T>>(bits);
    }
  } else {
    VectorOf<T> vector;
    __builtin_memcpy(&vector, source, sizeof(vector));
    return vector;
  }
}

// The first `count` lanes, the others zero.
template <typename T>
INLINE VectorOf<T> load_part(const T* source, int64_t count) {
  if (count >= kLanesOf<T>) return load(source);
  VectorOf<T> vector = {};
  for (int lane = 0; lane < kLanesOf<T> && lane < count; ++lane) vector[lane] = to_real(source[lane]);
  return vector;
}

// Writes the first `count` lanes, rounded to T.
template <typename T>
INLINE void store(T* target, VectorOf<T> vector, int64_t count) {
  if constexpr (sizeof(T) == sizeof(RealOf<T>)) {
    if (count >= kLanesOf<T>) {
      __builtin_memcpy(target, &vector, sizeof(vector));
      return;
    }
  }
  for (int lane = 0; lane < kLanesOf<T> && lane < count; ++lane) target[lane] = from_real<T>(vector[lane]);
}

// The sums of four vectors' lanes, side by side. In AVX-512, halves of two vectors share one, then quarters of all four:
// three additions do what folding each by itself takes eight for.
template <typename Real>
INLINE void store_sums(Real* target, VectorOf<Real> a, VectorOf<Real> b, VectorOf<Real> c, VectorOf<Real> d) {
  if constexpr (sizeof(Real) == 4) {
#if VECTOR_BYTES == 64
    const auto ab = SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
                    SHUFFLE(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    const auto cd = SHUFFLE(c, d, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
                    SHUFFLE(c, d, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    const auto quarters = SHUFFLE(ab, cd, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
                          SHUFFLE(ab, cd, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    const auto pairs =
        quarters + SHUFFLE(quarters, quarters, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    const auto each = pairs + SHUFFLE(pairs, pairs, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
    const auto sums = SHUFFLE(each, each, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12);
#elif VECTOR_BYTES == 32
    const auto ac = SHUFFLE(a, c, 0, 1, 2, 3, 8, 9, 10, 11) + SHUFFLE(a, c, 4, 5, 6, 7, 12, 13, 14, 15);
    const auto bd = SHUFFLE(b, d, 0, 1, 2, 3, 8, 9, 10, 11) + SHUFFLE(b, d, 4, 5, 6, 7, 12, 13, 14, 15);
    const auto pairs = SHUFFLE(ac, bd, 0, 8, 1, 9, 4, 12, 5, 13) + SHUFFLE(ac, bd, 2, 10, 3, 11, 6, 14, 7, 15);
    const auto sums = SHUFFLE(pairs, pairs, 0, 1, 4, 5, 0, 1, 4, 5) + SHUFFLE(pairs, pairs, 2, 3, 6, 7, 2, 3, 6, 7);
#else
    const auto ab = SHUFFLE(a, b, 0, 4, 1, 5) + SHUFFLE(a, b, 2, 6, 3, 7);
    const auto cd = SHUFFLE(c, d, 0, 4, 1, 5) + SHUFFLE(c, d, 2, 6, 3, 7);
    const auto sums = SHUFFLE(ab, cd, 0, 1, 4, 5) + SHUFFLE(ab, cd, 2, 3, 6, 7);
#endif
    __builtin_memcpy(target, &sums, 4 * sizeof(Real));
  } else {
    Real sums[4] = {};
    for (int lane = 0; lane < kLanesOf<Real>; ++lane) {
      sums[0] += a[lane];
      sums[1] += b[lane];
      sums[2] += c[lane];
      sums[3] += d[lane];
    }
    __builtin_memcpy(target, sums, sizeof(sums));
  }
}

}  // namespace
