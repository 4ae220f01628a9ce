// The CUDA backend of the operators that ops/ declares, on PyTorch's stable ABI: one build for every torch from 2.10.
#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>
#include <vector>

#include "../arguments.h"
#include "ms_deform_attn.h"

namespace {

using deformable::compute_type;
using deformable::dtype_of;
using deformable::empty_as;
using deformable::Problem;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// For 16-byte loads also aligned: a slice of a tensor may begin anywhere.
Tensor dense(const Tensor& tensor) {
  const Tensor result = deformable::dense(tensor);
  if (reinterpret_cast<uintptr_t>(result.const_data_ptr()) % 16 != 0) return torch::stable::clone(result);
  return result;
}

cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

void check_kernel_limits(const Problem& problem) {
  STD_TORCH_CHECK(problem.queries < INT32_MAX && problem.points < INT32_MAX - 64,
                  "ms_deform_attn: at most 2^31 - 65 queries and points are supported, got ", problem.queries, " and ",
                  problem.points);
  STD_TORCH_CHECK(problem.heads < (1 << 28) && problem.channels < (1 << 28) &&
                      problem.heads * problem.channels < (1 << 28),
                  "ms_deform_attn: at most 2^28 - 1 channels in all heads are supported, got ", problem.heads, " * ",
                  problem.channels);
}

Tensor forward(const Tensor& value, std::vector<int64_t> spatial_shapes, const Tensor& sampling_locations,
               const Tensor& attention_weights, std::vector<int64_t> num_points) {
  const Problem problem = deformable::check(value, spatial_shapes, sampling_locations, attention_weights, num_points);
  check_kernel_limits(problem);
  const torch::stable::accelerator::DeviceGuard guard(value.get_device_index());
  const Tensor v = dense(value), locations = dense(sampling_locations), weights = dense(attention_weights);
  Tensor out = empty_as(v, {problem.batch, problem.queries, problem.heads * problem.channels});
  STD_CUDA_CHECK(deformable::cuda::forward(problem, dtype_of(v), v.const_data_ptr(), locations.const_data_ptr(),
                                           weights.const_data_ptr(), out.mutable_data_ptr(), current_stream(v)));
  return out;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& value,
                                            std::vector<int64_t> spatial_shapes, const Tensor& sampling_locations,
                                            const Tensor& attention_weights, std::vector<int64_t> num_points,
                                            bool deterministic) {
  const Problem problem = deformable::check(value, spatial_shapes, sampling_locations, attention_weights, num_points);
  deformable::check_gradient(grad, value, problem);
  check_kernel_limits(problem);
  const torch::stable::accelerator::DeviceGuard guard(value.get_device_index());
  const cudaStream_t stream = current_stream(value);
  const Tensor g = dense(grad), v = dense(value), locations = dense(sampling_locations),
               weights = dense(attention_weights);
  Tensor grad_locations = empty_as(locations, {problem.batch, problem.queries, problem.heads, problem.points, 2});
  Tensor grad_weights = empty_as(weights, {problem.batch, problem.queries, problem.heads, problem.points});

  const auto run = [&](Tensor& sums, const uint64_t* maxima) {
    STD_CUDA_CHECK(deformable::cuda::backward(problem, dtype_of(v), g.const_data_ptr(), v.const_data_ptr(),
                                              locations.const_data_ptr(), weights.const_data_ptr(),
                                              sums.mutable_data_ptr(), grad_locations.mutable_data_ptr(),
                                              grad_weights.mutable_data_ptr(), maxima, stream));
  };
  if (deterministic) {
    Tensor maxima = torch::stable::new_zeros(v, {2}, ScalarType::Long);
    Tensor sums = torch::stable::new_zeros(v, v.sizes(), ScalarType::Long);
    auto* bits = static_cast<uint64_t*>(maxima.mutable_data_ptr());
    STD_CUDA_CHECK(deformable::cuda::find_maxima(problem, dtype_of(v), g.const_data_ptr(), weights.const_data_ptr(),
                                                 bits, stream));
    run(sums, bits);
    Tensor grad_value = torch::stable::new_empty(v, v.sizes());
    STD_CUDA_CHECK(deformable::cuda::from_fixed_point(problem, dtype_of(v),
                                                      static_cast<const int64_t*>(sums.const_data_ptr()), bits,
                                                      grad_value.mutable_data_ptr(), stream));
    return {grad_value, grad_locations, grad_weights};
  }
  Tensor sums = torch::stable::new_zeros(v, v.sizes(), compute_type(v));
  run(sums, nullptr);
  Tensor grad_value = sums.scalar_type() == v.scalar_type() ? sums : torch::stable::to(sums, v.scalar_type());
  return {grad_value, grad_locations, grad_weights};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(deformable_detr, CUDA, library) {
  library.impl("ms_deform_attn", TORCH_BOX(&forward));
  library.impl("ms_deform_attn_backward", TORCH_BOX(&backward));
}
