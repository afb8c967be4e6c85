// The few things this library asks of torch beyond its stable headers.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#include "flashpack/src/bridge.rs.h"

namespace flashpack {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Makes `tensor` share the storage, sizes and dtype of `value`. Identity, version and autograd state stay.
void set_data(const Tensor& tensor, const Tensor& value);

// Whether `tensor` is an ordinary strided one.
bool is_dense(const Tensor& tensor);

// The stream of `device` that torch's work goes to now.
CudaStream current_stream(int32_t device);

// Where the elements of `tensor`, which is contiguous, are.
GivenMemory memory_of(const Tensor& tensor);

// The elements of `tensor` as `dtype`, row-major, in CPU or CUDA memory; `tensor` itself if that is what it
// is. (Conjugate and negative views never come this far: torch resolves them before it calls an operator.)
Tensor materialize(const Tensor& tensor, ScalarType dtype);

}  // namespace flashpack
