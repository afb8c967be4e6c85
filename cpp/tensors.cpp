#include "tensors.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/ops.h>

#include <array>
#include <utility>

#include "errors.h"

// In libtorch_cuda, which a CPU-only torch does not have.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index,
                                                                                   void** ret_stream);

namespace flashpack {

namespace {

struct DeleteList {
  void operator()(StableListHandle list) const { torch_delete_list(list); }
};

using List = std::unique_ptr<StableListOpaque, DeleteList>;

template <class Owned>
StableIValue list_of(std::vector<Owned> items) {
  StableListHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_new_list_reserve_size(items.size(), &handle));
  List list(handle);
  for (Owned& item : items) {
    STABLE_TORCH_ERROR_CODE_CHECK(torch_list_push_back(handle, torch::stable::detail::from(item.release())));
  }
  return torch::stable::detail::from(list.release());
}

}  // namespace

Handles take_list(StableListHandle handle) {
  const List list(handle);
  size_t size = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_list_size(handle, &size));
  Handles tensors(size);
  for (size_t i = 0; i < size; ++i) {
    StableIValue tensor = 0;
    STABLE_TORCH_ERROR_CODE_CHECK(torch_list_get_item(handle, i, &tensor));
    tensors[i].reset(torch::stable::detail::to<AtenTensorHandle>(tensor));
  }
  return tensors;
}

Text make_text(rust::Str text) {
  StringHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_new_string_handle(text.data(), text.size(), &handle));
  return Text(handle);
}

StableIValue make_list(Handles tensors) { return list_of(std::move(tensors)); }

StableIValue make_list(std::vector<Text> texts) { return list_of(std::move(texts)); }

void set_data(Handle tensor, Handle value) {
  std::array<StableIValue, 2> stack{torch::stable::detail::from(tensor.release()),
                                    torch::stable::detail::from(value.release())};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::set_data", "", stack.data(), TORCH_ABI_VERSION));
}

Handle handle_of(const Tensor& tensor) {
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(tensor.get(), &handle));
  return Handle(handle);
}

bool is_contiguous(AtenTensorHandle tensor) {
  bool contiguous = false;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_is_contiguous(tensor, &contiguous));
  return contiguous;
}

int32_t dtype_of(AtenTensorHandle tensor) {
  int32_t dtype = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor, &dtype));
  return dtype;
}

std::span<const int64_t> sizes_of(AtenTensorHandle tensor) {
  int64_t* sizes = nullptr;
  int64_t dims = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(tensor, &sizes));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(tensor, &dims));
  return {sizes, static_cast<size_t>(dims)};
}

DeviceNumbers device_of(AtenTensorHandle tensor) {
  DeviceNumbers numbers{};
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor, &numbers.type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(tensor, &numbers.index));
  return numbers;
}

bool is_dense(AtenTensorHandle tensor) {
  int32_t layout = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_layout(tensor, &layout));
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

GivenMemory memory_of(AtenTensorHandle tensor) {
  void* data = nullptr;
  int64_t elements = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_get_mutable_data_ptr(tensor, &data));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_numel(tensor, &elements));
  const size_t element_bytes = aoti_torch_dtype_element_size(dtype_of(tensor));
  return {reinterpret_cast<size_t>(data), static_cast<size_t>(elements) * element_bytes};
}

Tensor reshaped(const Tensor& tensor, const Tensor& like) {
  AtenTensorHandle view = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(tensor.get(), like.dim(), like.sizes().data(),
                                                               like.strides().data(), 0, &view));
  return Tensor(view);
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
