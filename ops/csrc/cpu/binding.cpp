// The operator's CPU kernels as torch sees them, on the stable C++ ABI: one build serves every torch from 2.10 on. The
// schemas are in ops/library.py.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../arguments.h"
#include "ms_deform_attn.h"

namespace {

using namespace deformable;

void parallel_for(int64_t begin, int64_t end, int64_t grain, cpu::Body body, void* context) {
  STABLE_TORCH_ERROR_CODE_CHECK(torch_parallel_for(begin, end, grain, body, context));
}

void check_memory(bool enough) { STD_TORCH_CHECK(enough, "ms_deform_attn: not enough memory for the scratch arrays"); }

Tensor forward(const Tensor& value, std::vector<int64_t> spatial_shapes, const Tensor& sampling_locations,
               const Tensor& attention_weights, std::vector<int64_t> num_points) {
  const Problem problem = check(value, spatial_shapes, sampling_locations, attention_weights, num_points);
  const Tensor v = dense(value), locations = dense(sampling_locations),
               weights = dense(attention_weights);
  Tensor out = empty_as(v, {problem.batch, problem.queries, problem.heads * problem.channels});
  check_memory(cpu::forward(problem, dtype_of(v), v.const_data_ptr(), locations.const_data_ptr(),
                            weights.const_data_ptr(), out.mutable_data_ptr(), parallel_for));
  return out;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& value,
                                            std::vector<int64_t> spatial_shapes, const Tensor& sampling_locations,
                                            const Tensor& attention_weights, std::vector<int64_t> num_points,
                                            bool /*deterministic: always*/) {
  const Problem problem = check(value, spatial_shapes, sampling_locations, attention_weights, num_points);
  check_gradient(grad, value, problem);
  const Tensor g = dense(grad), v = dense(value), locations = dense(sampling_locations),
               weights = dense(attention_weights);
  Tensor grad_value = empty_as(v, {v.size(0), v.size(1), v.size(2), v.size(3)});
  Tensor grad_locations = empty_as(locations, {problem.batch, problem.queries, problem.heads, problem.points, 2});
  Tensor grad_weights = empty_as(weights, {problem.batch, problem.queries, problem.heads, problem.points});
  if (problem.channels == 0 || problem.points == 0) {  // nothing was sampled
    for (Tensor* tensor : {&grad_value, &grad_locations, &grad_weights}) torch::stable::zero_(*tensor);
    return {grad_value, grad_locations, grad_weights};
  }
  check_memory(cpu::backward(problem, dtype_of(v), g.const_data_ptr(), v.const_data_ptr(), locations.const_data_ptr(),
                             weights.const_data_ptr(), grad_value.mutable_data_ptr(),
                             grad_locations.mutable_data_ptr(), grad_weights.mutable_data_ptr(), parallel_for,
                             torch::stable::get_num_threads()));
  return {grad_value, grad_locations, grad_weights};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(deformable_detr, CPU, library) {
  library.impl("ms_deform_attn", TORCH_BOX(&forward));
  library.impl("ms_deform_attn_backward", TORCH_BOX(&backward));
}

// Read by ops/backends.py through ctypes.
extern "C" __attribute__((visibility("default"))) const char* ms_deform_attn_cpu_capability() {
  return deformable::cpu::capability();
}
