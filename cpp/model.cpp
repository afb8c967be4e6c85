#include "model.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>

#include "errors.h"

namespace flashpack {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Tensor handle_on(rust::Box<Opened> model) {
  const auto words = model->words();
  const int64_t size = static_cast<int64_t>(words.size()), stride = 1;
  const auto release = [](void*, void* model) { rust::Box<Opened>::from_raw(static_cast<Opened*>(model)); };
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_from_blob(const_cast<int64_t*>(words.data()), 1, &size, &stride, 0,
                                                aoti_torch_dtype_int64(), aoti_torch_device_type_cpu(), -1,
                                                &handle, aoti_torch_layout_strided(), nullptr, 0, release,
                                                model.into_raw()));
  return Tensor(handle);
}

int64_t number_of(const Tensor& handle) {
  if (!handle.is_cpu() || handle.scalar_type() != ScalarType::Long || handle.numel() != 4 ||
      !handle.is_contiguous()) {
    fail_argument("this is no open model: torch.ops.flashpack.open gives them");
  }
  return *static_cast<const int64_t*>(handle.const_data_ptr());
}

}  // namespace flashpack
