// Multi-scale deformable attention on CUDA: the calls that the torch binding makes. No torch in here, so that the same
// kernels also run under the CPU emulation of tests/ops/cuda_emulation.
//
// All arrays are contiguous device memory aligned to 16 bytes. T is the dtype of value; A is fp64 for an fp64 value and
// fp32 otherwise, and sums are taken in A. Nothing is synchronised, and nothing is launched where there is no work.
#pragma once

#if !defined(CUDA_EMULATION)
#include <cuda_runtime_api.h>
#endif

#include <cstdint>

#include "../problem.h"

namespace deformable::cuda {

// value [B, S, M, D] of T, locations [B, Q, M, P, 2] and weights [B, Q, M, P] of A -> out [B, Q, M, D] of T.
cudaError_t forward(const Problem& problem, DType dtype, const void* value, const void* locations, const void* weights,
                    void* out, cudaStream_t stream);

// grad_out [B, Q, M, D] of T -> grad_locations and grad_weights of A, every element written, and grad_value, summed by
// atomics onto a buffer [B, S, M, D] that the caller has zeroed. Without `maxima` the buffer is of A, and the sums
// depend on the order of the atomics in their last bits. With `maxima` (see find_maxima) it is of int64 and the sums
// are exact in fixed point, the same in every run.
cudaError_t backward(const Problem& problem, DType dtype, const void* grad_out, const void* value,
                     const void* locations, const void* weights, void* grad_value, void* grad_locations,
                     void* grad_weights, const uint64_t* maxima, cudaStream_t stream);

// The bits of max|grad_out| and of max|weights|, into maxima[2], which the caller has zeroed: they fix the fixed point.
cudaError_t find_maxima(const Problem& problem, DType dtype, const void* grad_out, const void* weights,
                        uint64_t* maxima, cudaStream_t stream);

// The int64 buffer of backward -> grad_value [B, S, M, D] of T; all NaN if a gradient or a weight was not finite.
cudaError_t from_fixed_point(const Problem& problem, DType dtype, const int64_t* fixed, const uint64_t* maxima,
                             void* grad_value, cudaStream_t stream);

}  // namespace deformable::cuda
