// The sizes of one multi-scale deformable attention, shared by the CPU and the CUDA backend. No torch in here.
#pragma once

#include <cstdint>

namespace deformable {

constexpr int kMaxLevels = 32;

enum class DType : int32_t { kFloat32 = 0, kFloat64 = 1, kFloat16 = 2, kBFloat16 = 3 };

struct Level {
  int64_t height, width;
  int64_t start;        // first token of the level
  int64_t first_point;  // its points of a query and head are first_point .. first_point + points
  int64_t points;       // K of this level
};

// value [B, S, M, D], sampling_locations [B, Q, M, P, 2], attention_weights [B, Q, M, P], output [B, Q, M, D].
struct Problem {
  int64_t batch, tokens, heads, channels, queries, points;
  int32_t num_levels;
  Level levels[kMaxLevels];
};

}  // namespace deformable
