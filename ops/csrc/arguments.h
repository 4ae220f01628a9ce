// From the operator's tensors to a Problem, with every check the kernels rely on. ops/functional.py refuses the same
// mistakes earlier and in friendlier words; these stand for callers of torch.ops.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <string>
#include <vector>

#include "problem.h"

#if !defined(STABLE_TORCH_ERROR_CODE_CHECK)  // its name in torch 2.10
#define STABLE_TORCH_ERROR_CODE_CHECK(call) TORCH_ERROR_CODE_CHECK(call)
#endif

namespace deformable {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string shape_of(const Tensor& tensor) {
  std::string text = "[";
  for (int64_t i = 0; i < tensor.dim(); ++i) text += (i ? ", " : "") + std::to_string(tensor.size(i));
  return text + "]";
}

inline void check_shape(const char* name, const Tensor& tensor, const std::vector<int64_t>& expected) {
  bool same = tensor.dim() == static_cast<int64_t>(expected.size());
  std::string wanted = "[";
  for (size_t i = 0; i < expected.size(); ++i) {
    same = same && tensor.size(static_cast<int64_t>(i)) == expected[i];
    wanted += (i ? ", " : "") + std::to_string(expected[i]);
  }
  STD_TORCH_CHECK(same, "ms_deform_attn: ", name, " must be ", wanted, "], got ", shape_of(tensor));
}

inline DType dtype_of(const Tensor& value) {
  switch (value.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Double:
      return DType::kFloat64;
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    default:
      STD_TORCH_CHECK(false, "ms_deform_attn: value must be float32, float64, float16 or bfloat16");
  }
  return DType::kFloat32;
}

// Locations, weights and sums: fp64 for an fp64 value, fp32 for all others.
inline ScalarType compute_type(const Tensor& value) {
  return value.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline Problem check(const Tensor& value, const std::vector<int64_t>& spatial_shapes, const Tensor& locations,
                     const Tensor& weights, const std::vector<int64_t>& num_points) {
  STD_TORCH_CHECK(value.dim() == 4, "ms_deform_attn: value must be [B, S, M, D], got ", shape_of(value));
  STD_TORCH_CHECK(weights.dim() == 4, "ms_deform_attn: attention_weights must be [B, Q, M, P], got ",
                  shape_of(weights));
  const size_t levels = num_points.size();
  STD_TORCH_CHECK(spatial_shapes.size() == 2 * levels, "ms_deform_attn: spatial_shapes must hold two numbers for each of ",
                  levels, " levels, got ", spatial_shapes.size());
  STD_TORCH_CHECK(levels <= kMaxLevels, "ms_deform_attn: at most ", kMaxLevels, " levels are supported, got ", levels);

  Problem problem{value.size(0), value.size(1), value.size(2), value.size(3), weights.size(1), 0,
                  static_cast<int32_t>(levels), {}};
  int64_t tokens = 0;
  for (size_t i = 0; i < levels; ++i) {
    const int64_t height = spatial_shapes[2 * i], width = spatial_shapes[2 * i + 1], points = num_points[i];
    STD_TORCH_CHECK(height >= 0 && width >= 0 && points >= 0,
                    "ms_deform_attn: spatial_shapes and num_points must not be negative");
    problem.levels[i] = {height, width, tokens, problem.points, points};
    tokens += height * width;
    problem.points += points;
  }
  STD_TORCH_CHECK(tokens == problem.tokens, "ms_deform_attn: value has ", problem.tokens,
                  " tokens, but spatial_shapes hold ", tokens);
  // Rows are counted in 32 bits, less one for what is outside; elements in 64.
  STD_TORCH_CHECK(tokens < INT32_MAX, "ms_deform_attn: value has ", tokens, " tokens, at most 2^31 - 2 are supported");
  check_shape("attention_weights", weights, {problem.batch, problem.queries, problem.heads, problem.points});
  check_shape("sampling_locations", locations, {problem.batch, problem.queries, problem.heads, problem.points, 2});
  const ScalarType expected = compute_type(value);
  const char* word = expected == ScalarType::Double ? "float64" : "float32";
  STD_TORCH_CHECK(locations.scalar_type() == expected, "ms_deform_attn: sampling_locations must be ", word,
                  " for this value");
  STD_TORCH_CHECK(weights.scalar_type() == expected, "ms_deform_attn: attention_weights must be ", word,
                  " for this value");
  STD_TORCH_CHECK(locations.device() == value.device() && weights.device() == value.device(),
                  "ms_deform_attn: value, sampling_locations and attention_weights must be on one device");
  return problem;
}

// As torch::stable::contiguous and new_empty, without their way through the dispatcher, which looks operators up by name:
// several microseconds in a call that small shapes finish in as many.
inline Tensor dense(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline Tensor empty_as(const Tensor& like, const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * (sizes[i] > 0 ? sizes[i] : 1);
  int32_t dtype = 0, device_type = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(),
                                                         strides.data(), dtype, device_type, like.get_device_index(),
                                                         &handle));
  return Tensor(handle);
}

inline void check_gradient(const Tensor& grad, const Tensor& value, const Problem& problem) {
  check_shape("grad", grad, {problem.batch, problem.queries, problem.heads * problem.channels});
  STD_TORCH_CHECK(grad.scalar_type() == value.scalar_type() && grad.device() == value.device(),
                  "ms_deform_attn: grad must have the dtype and device of value");
}

}  // namespace deformable
