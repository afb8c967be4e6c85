// The few things this library asks of torch beyond its stable headers.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "flashpack/src/bindings/bridge.rs.h"

namespace flashpack {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct DeleteHandle {
  void operator()(AtenTensorHandle handle) const { aoti_torch_delete_tensor_object(handle); }
};

// A tensor as operators get and give it. `Tensor` adds a count of references to it, which costs an allocation
// more.
using Handle = std::unique_ptr<AtenTensorOpaque, DeleteHandle>;
using Handles = std::vector<Handle>;

// The tensors of a list that an operator was called with, which is no more after that.
Handles take_list(StableListHandle list);

struct DeleteText {
  void operator()(StringHandle text) const { torch_delete_string(text); }
};

// A string as operators give it.
using Text = std::unique_ptr<StringOpaque, DeleteText>;

Text make_text(rust::Str text);

// A list for an operator to return.
StableIValue make_list(Handles tensors);
StableIValue make_list(std::vector<Text> texts);

// Makes `tensor` share the storage, sizes and dtype of `value`. Identity, version and autograd state stay.
void set_data(Handle tensor, Handle value);

// A reference of its own to `tensor`.
Handle handle_of(const Tensor& tensor);

// Whether the tensor is an ordinary strided one.
bool is_dense(AtenTensorHandle tensor);

// Whether its elements lie row-major, without gaps.
bool is_contiguous(AtenTensorHandle tensor);

// torch's number of its type.
int32_t dtype_of(AtenTensorHandle tensor);

// Its sizes, as long as nothing changes them.
std::span<const int64_t> sizes_of(AtenTensorHandle tensor);

// torch's numbers of a kind of device, and of a device of that kind.
struct DeviceNumbers {
  int32_t type;
  int32_t index;
  bool operator==(const DeviceNumbers&) const = default;
};

DeviceNumbers device_of(AtenTensorHandle tensor);

// The stream of `device` that torch's work goes to now.
CudaStream current_stream(int32_t device);

// Where the elements of `tensor`, which is contiguous, are.
GivenMemory memory_of(AtenTensorHandle tensor);

// The elements of `tensor` in the sizes of `like`, which has as many; both are row-major.
Tensor reshaped(const Tensor& tensor, const Tensor& like);

// The elements of `tensor` as `dtype`, row-major, in CPU or CUDA memory; `tensor` itself if that is what it
// is. (Conjugate and negative views never come this far: torch resolves them before it calls an operator.)
Tensor materialize(const Tensor& tensor, ScalarType dtype);

}  // namespace flashpack
