// Loads into torch tensors.
#pragma once

#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "flashpack/src/bindings/bridge.rs.h"
#include "tensors.h"

namespace flashpack {

using Tensors = std::vector<torch::stable::Tensor>;

// Whether a load to `device` goes to CUDA. Refuses devices that are neither CPU nor CUDA.
bool is_cuda(const torch::stable::Device& device);

// Reads what `load` has prepared into fresh memory on `device`: the tensors, in its order. They keep the
// memory alive that they lie in. On CUDA they are ready in the order of the current stream.
Handles read(Load& load, const torch::stable::Device& device, ProgressWords progress);

// Reads what `load` has prepared into the memory that it was given on `device`.
void fill(const Load& load, const torch::stable::Device& device, ProgressWords progress);

}  // namespace flashpack
