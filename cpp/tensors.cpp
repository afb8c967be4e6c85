#include "tensors.h"

#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/ops.h>

#include <array>

namespace flashpack {

void set_data(const Tensor& tensor, const Tensor& value) {
  std::array<StableIValue, 2> stack{torch::stable::detail::from(tensor), torch::stable::detail::from(value)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::set_data", "", stack.data(), TORCH_ABI_VERSION));
}

bool is_dense(const Tensor& tensor) {
  int32_t layout = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_layout(tensor.get(), &layout));
  return layout == aoti_torch_layout_strided();
}

Tensor materialize(const Tensor& tensor, ScalarType dtype) {
  if (tensor.scalar_type() == dtype && tensor.is_cpu()) {
    return torch::stable::contiguous(tensor);
  }
  return torch::stable::contiguous(torch::stable::to(
      tensor, dtype, std::nullopt, torch::stable::Device(torch::headeronly::DeviceType::CPU)));
}

}  // namespace flashpack
