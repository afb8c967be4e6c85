// The few things this library asks of torch beyond its stable headers.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>

namespace flashpack {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Makes `tensor` share the storage, sizes and dtype of `value`. Identity, version and autograd state stay.
void set_data(const Tensor& tensor, const Tensor& value);

// Whether the elements in memory stand for their conjugates or negatives.
bool is_conj(const Tensor& tensor);
bool is_neg(const Tensor& tensor);

// The elements of `tensor` as `dtype`, row-major in CPU memory; `tensor` itself if that is what it is.
Tensor materialize(const Tensor& tensor, ScalarType dtype);

}  // namespace flashpack
