// Loads into torch tensors.
#pragma once

#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/tensor.h>

#include <span>
#include <vector>

#include "flashpack/src/bindings/bridge.rs.h"
#include "tensors.h"

namespace flashpack {

using Tensors = std::vector<torch::stable::Tensor>;

// Where a load to `device` puts its tensors. Refuses devices that are neither CPU nor CUDA.
Place place_on(const torch::stable::Device& device);

// Sizes of the dimensions of `view`, one of the load's.
std::span<const int64_t> sizes_of(const Load& load, const View& view);

// Reads what `load` has prepared into fresh memory on `device`: the tensors, in its order. They keep the
// memory alive that they lie in. On CUDA they are ready in the order of the current stream.
Handles read(Load& load, const torch::stable::Device& device, ProgressWords progress);

// Reads what `load` has prepared into `memory` on `device`, each of the right size.
void read_into(const Load& load, const torch::stable::Device& device, const std::vector<GivenMemory>& memory,
               ProgressWords progress);

}  // namespace flashpack
