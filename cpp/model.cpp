#include "model.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>

#include <array>
#include <memory>

#include "errors.h"

namespace flashpack {

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The memory of a handle, which owns the model.
struct Held {
  explicit Held(Opened opened)
      : model(std::move(opened)), words{model.number(), file_bytes(model.number()), file_count(model.number())} {}

  Opened model;
  std::array<int64_t, 3> words;
};

}  // namespace

Tensor handle_on(Opened model) {
  auto held = std::make_unique<Held>(std::move(model));
  const int64_t size = static_cast<int64_t>(held->words.size()), stride = 1;
  const auto release = [](void*, void* memory) { delete static_cast<Held*>(memory); };
  AtenTensorHandle handle = nullptr;
  void* const words = held->words.data();
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_from_blob(words, 1, &size, &stride, 0, aoti_torch_dtype_int64(), aoti_torch_device_type_cpu(), -1,
                      &handle, aoti_torch_layout_strided(), nullptr, 0, release, held.release()));
  return Tensor(handle);
}

int64_t number_of(const Tensor& handle) {
  if (!handle.is_cpu() || handle.scalar_type() != ScalarType::Long || handle.numel() != 3 ||
      !handle.is_contiguous()) {
    fail_argument("this is no open model: torch.ops.flashpack.open gives them");
  }
  return *static_cast<const int64_t*>(handle.const_data_ptr());
}

}  // namespace flashpack
