// Loaded memory as torch tensors.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "flashpack/src/bridge.rs.h"

namespace flashpack {

// The tensors of a finished load, in its order. They keep the memory alive that they lie in.
std::vector<torch::stable::Tensor> take_tensors(LoadedTensors& loaded);

}  // namespace flashpack
