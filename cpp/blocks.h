// Loads into torch tensors.
#pragma once

#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/tensor.h>

#include <memory>
#include <span>
#include <vector>

#include "flashpack/src/bridge.rs.h"
#include "tensors.h"

namespace flashpack {

using Tensors = std::vector<torch::stable::Tensor>;

// Where a load to `device` puts its tensors. Refuses devices that are neither CPU nor CUDA.
Place place_on(const torch::stable::Device& device);

// Sizes of the dimensions of `view`, one of the load's.
std::span<const int64_t> sizes_of(const Load& load, const View& view);

class HostBlock;

struct ReleaseBlock {
  void operator()(HostBlock* block) const;
};

// Fresh memory on a device with what a load has prepared; on CUDA in the order of the current stream.
class Memory {
 public:
  Memory(Load& load, const torch::stable::Device& device, ProgressWords progress);

  // The tensor of `view`, one of the load's, which keeps the memory alive that it lies in. On the host it has
  // a storage of its own, so that saving or sharing one tensor does not drag its neighbours along.
  Handle tensor(const View& view) const;

 private:
  const Load& load_;
  Tensors on_cuda_;
  std::vector<std::unique_ptr<HostBlock, ReleaseBlock>> on_host_;
};

// Reads what `load` has prepared into fresh memory on `device`: the tensors, in its order.
Handles read(Load& load, const torch::stable::Device& device, ProgressWords progress);

// Reads what `load` has prepared into `memory` on `device`, each of the right size.
void read_into(const Load& load, const torch::stable::Device& device, const std::vector<GivenMemory>& memory,
               ProgressWords progress);

}  // namespace flashpack
