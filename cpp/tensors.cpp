#include "tensors.h"

#include <torch/csrc/stable/ops.h>

#include <array>
#include <utility>

#include "errors.h"

// In libtorch_cuda, which a CPU-only torch does not have.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index,
                                                                                   void** ret_stream);

namespace flashpack {

namespace {

using torch::headeronly::DeviceType;

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

int32_t dtype_of(AtenTensorHandle tensor) {
  int32_t dtype = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor, &dtype));
  return dtype;
}

void* mutable_data_of(AtenTensorHandle tensor) {
  void* data = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_get_mutable_data_ptr(tensor, &data));
  return data;
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

Handle share(AtenTensorHandle tensor) {
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(tensor, &handle));
  return Handle(handle);
}

GivenTensor described(AtenTensorHandle tensor, Elements elements) {
  int64_t *sizes = nullptr, *strides = nullptr, dims = 0;
  int32_t layout = 0;
  GivenTensor given{dtype_of(tensor), 0, 0, {}, {}, false, false, 0};
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor, &given.device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(tensor, &given.device_index));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(tensor, &sizes));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(tensor, &dims));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_layout(tensor, &layout));
  given.sizes = {sizes, static_cast<size_t>(dims)};
  given.dense = layout == aoti_torch_layout_strided();
  if (elements == Elements::Nothing || !given.dense) {
    return given;
  }
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(tensor, &strides));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_is_contiguous(tensor, &given.contiguous));
  const void* data = nullptr;
  if (elements == Elements::WhereTheyAre) {
    STABLE_TORCH_ERROR_CODE_CHECK(torch_get_const_data_ptr(tensor, &data));
  } else if (given.contiguous) {
    data = mutable_data_of(tensor);
  }
  given.strides = {strides, static_cast<size_t>(dims)};
  given.address = reinterpret_cast<size_t>(data);
  return given;
}

torch::stable::Device device_of(const std::vector<GivenTensor>& tensors) {
  using torch::stable::detail::from, torch::stable::detail::to;
  if (tensors.empty()) {
    return {DeviceType::CPU, 0};
  }
  return {to<DeviceType>(from(tensors[0].device_type)), tensors[0].device_index};
}

CudaStream current_stream(int32_t device) {
  void* stream = nullptr;
  if (aoti_torch_get_current_cuda_stream == nullptr) {
    fail_argument("this torch has no CUDA");
  }
  if (device < 0) {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_device_index(&device));
  }
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return {device, reinterpret_cast<size_t>(stream)};
}

GivenMemory memory_of(AtenTensorHandle tensor) {
  int64_t elements = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_numel(tensor, &elements));
  const size_t element_bytes = aoti_torch_dtype_element_size(dtype_of(tensor));
  return {reinterpret_cast<size_t>(mutable_data_of(tensor)), static_cast<size_t>(elements) * element_bytes};
}

void copy(AtenTensorHandle from, AtenTensorHandle to) {
  Tensor target(share(to).release());
  AtenTensorHandle source = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(from, target.dim(), target.sizes().data(),
                                                               target.strides().data(), 0, &source));
  torch::stable::copy_(target, Tensor(source));
}

Tensor materialize(const Tensor& tensor, ScalarType dtype) {
  const bool stays = tensor.is_cpu() || tensor.is_cuda();
  if (stays && tensor.scalar_type() == dtype) {
    return torch::stable::contiguous(tensor);
  }
  const auto device = stays ? tensor.device() : torch::stable::Device(DeviceType::CPU);
  return torch::stable::contiguous(torch::stable::to(tensor, dtype, std::nullopt, device));
}

}  // namespace flashpack
