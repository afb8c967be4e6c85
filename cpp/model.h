// Open models, as operators give and take them.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#include "flashpack/src/bindings/bridge.rs.h"

namespace flashpack {

// A tensor that stands for the model, which is closed with the last reference: its number, the bytes of its
// files, how many these are, and 1 if any is compressed.
torch::stable::Tensor handle_on(rust::Box<Opened> model);

// The number of the model that `handle` stands for, if it stands for one: Rust finds out.
int64_t number_of(const torch::stable::Tensor& handle);

}  // namespace flashpack
