#include "tensors.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/ops.h>

#include <array>

#include "errors.h"

// In libtorch_cuda, which a CPU-only torch does not have.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index,
                                                                                   void** ret_stream);

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

CudaStream current_stream(int32_t device) {
  void* stream = nullptr;
  if (aoti_torch_get_current_cuda_stream == nullptr) {
    fail_argument("this torch has no CUDA");
  }
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return {device, reinterpret_cast<size_t>(stream)};
}

GivenMemory memory_of(const Tensor& tensor) {
  return {reinterpret_cast<size_t>(tensor.mutable_data_ptr()),
          static_cast<size_t>(tensor.numel()) * tensor.element_size()};
}

Tensor materialize(const Tensor& tensor, ScalarType dtype) {
  const bool stays = tensor.is_cpu() || tensor.is_cuda();
  if (stays && tensor.scalar_type() == dtype) {
    return torch::stable::contiguous(tensor);
  }
  const auto device = stays ? tensor.device() : torch::stable::Device(torch::headeronly::DeviceType::CPU);
  return torch::stable::contiguous(torch::stable::to(tensor, dtype, std::nullopt, device));
}

}  // namespace flashpack
