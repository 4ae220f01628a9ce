// Multi-scale deformable attention on the CPU: the two calls that the torch binding makes. No torch in here, so that
// the same code also runs under sanitizers without it.
#pragma once

#include <cstdint>

#include "../problem.h"

namespace deformable::cpu {

// Runs body(begin, end, context) over parts of [begin, end), perhaps in several threads; torch_parallel_for fits.
using Body = void (*)(int64_t begin, int64_t end, void* context);
using ParallelFor = void (*)(int64_t begin, int64_t end, int64_t grain, Body body, void* context);

// All arrays are contiguous and of the value's type, except locations and weights and their gradients, which are
// fp64 for an fp64 value and fp32 otherwise. Every element of the outputs is written. Returns false if memory ran out.
bool forward(const Problem& problem, DType dtype, const void* value, const void* locations, const void* weights,
             void* out, ParallelFor parallel_for);

// `threads` steers only how the work is cut, never the result: each gradient is summed by one thread in query order.
bool backward(const Problem& problem, DType dtype, const void* grad_out, const void* value, const void* locations,
              const void* weights, void* grad_value, void* grad_locations, void* grad_weights,
              ParallelFor parallel_for, int64_t threads);

// "avx512", "avx2" or "baseline": the widest that this machine runs, or less if ATEN_CPU_CAPABILITY says so.
const char* capability();

}  // namespace deformable::cpu
