// The few things this library asks of torch beyond its stable headers.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <memory>
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
Handle share(AtenTensorHandle tensor);

// What of a tensor's elements Rust is told.
enum class Elements { Nothing, WhereTheyAre, WhereToWrite };

// What Rust is told of `tensor`, as long as nothing changes its sizes.
GivenTensor described(AtenTensorHandle tensor, Elements elements);

template <class List>
std::vector<GivenTensor> described(const List& tensors, Elements elements = Elements::Nothing) {
  std::vector<GivenTensor> all;
  all.reserve(tensors.size());
  for (const auto& tensor : tensors) {
    all.push_back(described(tensor.get(), elements));
  }
  return all;
}

// A list of which Rust takes no copy.
template <class Item>
rust::Slice<const Item> slice_of(const std::vector<Item>& items) {
  return {items.data(), items.size()};
}

// The device of the first tensor: the CPU if there is none.
torch::stable::Device device_of(const std::vector<GivenTensor>& tensors);

// The stream of `device` that torch's work goes to now.
CudaStream current_stream(int32_t device);

// Where the elements of `tensor`, which is contiguous, are.
GivenMemory memory_of(AtenTensorHandle tensor);

// Copies the elements of `from` to `to`, which has as many; both are row-major.
void copy(AtenTensorHandle from, AtenTensorHandle to);

// The elements of `tensor` as `dtype`, row-major, in CPU or CUDA memory; `tensor` itself if that is what it
// is. (Conjugate and negative views never come this far: torch resolves them before it calls an operator.)
Tensor materialize(const Tensor& tensor, ScalarType dtype);

}  // namespace flashpack
