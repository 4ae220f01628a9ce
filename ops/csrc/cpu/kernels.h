// What each instruction set's build of kernels.cpp offers.
#pragma once

#include "ms_deform_attn.h"

namespace deformable::cpu {

// Whether so many samples are taken from a head's maps that a packed copy of them pays. The copy costs about two corner
// rows for each row. Static: an inline function shared by several instruction sets could be any one's.
static inline bool worth_packing(int64_t samples, int64_t tokens) { return 2 * samples >= tokens; }

struct ForwardJob {
  const Problem* problem;
  const void *value, *locations, *weights;
  void* out;
};

struct BackwardJob {
  const Problem* problem;
  const void *grad_out, *value, *locations, *weights;
  void *grad_value, *grad_locations, *grad_weights;
};

struct Kernels {
  // (batch, head, query) triples [begin, end), counted with the query fastest and the batch slowest.
  bool (*forward[4])(const ForwardJob& job, int64_t begin, int64_t end);  // by DType
  // All queries of one batch entry and head, on levels [first_level, last_level). Adds to grad_value, which must be
  // zero, if packing is not worth it for all levels together; overwrites it otherwise.
  bool (*backward[4])(const BackwardJob& job, int64_t batch, int64_t head, int first_level, int last_level);
};

// kernels.cpp is compiled once for each; only those built for this processor family exist.
namespace avx512 {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace baseline {
extern const Kernels kernels;
}

}  // namespace deformable::cpu
