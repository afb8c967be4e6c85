// Open models, as operators give and take them.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <string>
#include <utility>

#include "flashpack/src/bindings/bridge.rs.h"

namespace flashpack {

// A model that is open as long as this lives.
class Opened {
 public:
  explicit Opened(const std::string& path) : number_(open_model(path)) {}
  Opened(Opened&& other) noexcept : number_(std::exchange(other.number_, 0)) {}
  Opened& operator=(Opened&&) = delete;
  ~Opened() { close_model(number_); }

  // What Rust knows it by.
  int64_t number() const { return number_; }

 private:
  int64_t number_;  // 0 is no model's
};

// A tensor that stands for the model, which is closed with the last reference: its number, and the bytes of
// its files.
torch::stable::Tensor handle_on(Opened model);

// The number of the model that `handle` stands for, if it stands for one: Rust finds out.
int64_t number_of(const torch::stable::Tensor& handle);

}  // namespace flashpack
