#include "tensors.h"

#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/ops.h>

#include <array>

namespace flashpack {

namespace {

using torch::stable::detail::from;
using torch::stable::detail::to;

// Calls the unary aten operator `name`.
template <typename Result>
Result call(const char* name, const Tensor& tensor) {
  std::array<StableIValue, 1> stack{from(tensor)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, "", stack.data(), TORCH_ABI_VERSION));
  return to<Result>(stack[0]);
}

}  // namespace

void set_data(const Tensor& tensor, const Tensor& value) {
  std::array<StableIValue, 2> stack{from(tensor), from(value)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::set_data", "", stack.data(), TORCH_ABI_VERSION));
}

bool is_conj(const Tensor& tensor) { return call<bool>("aten::is_conj", tensor); }

bool is_neg(const Tensor& tensor) { return call<bool>("aten::is_neg", tensor); }

Tensor materialize(const Tensor& tensor, ScalarType dtype) {
  Tensor plain = call<Tensor>("aten::resolve_neg", call<Tensor>("aten::resolve_conj", tensor));
  if (plain.scalar_type() != dtype || !plain.is_cpu()) {
    plain = torch::stable::to(plain, dtype, std::nullopt, torch::stable::Device(torch::headeronly::DeviceType::CPU));
  }
  return torch::stable::contiguous(plain);
}

}  // namespace flashpack
