#include "blocks.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <span>
#include <tuple>
#include <utility>

#include "errors.h"
#include "tensors.h"

namespace flashpack {

namespace {

using torch::headeronly::DeviceType;
using torch::headeronly::ScalarType;
using torch::stable::Device;
using torch::stable::Tensor;

std::vector<GivenMemory> memories_of(const Tensors& tensors) {
  std::vector<GivenMemory> memory;
  memory.reserve(tensors.size());
  for (const Tensor& tensor : tensors) {
    memory.push_back(memory_of(tensor));
  }
  return memory;
}

void fill_cuda(const Load& load, const Tensors& tensors, int32_t device, ProgressWords progress) {
  const auto memory = memories_of(tensors);
  load.fill_cuda({memory.data(), memory.size()}, current_stream(device), progress);
}

// Memory that torch's allocator provides on the current stream of `device`, filled.
Tensors blocks_on_cuda(const Load& load, const Device& device, ProgressWords progress) {
  Tensors blocks;
  for (const int64_t bytes : load.memory_bytes()) {
    blocks.push_back(torch::stable::empty({&bytes, 1}, ScalarType::Byte, std::nullopt, device));
  }
  if (!blocks.empty()) {
    fill_cuda(load, blocks, blocks[0].get_device_index(), progress);
  }
  return blocks;
}

// Memory of the process that several tensors lie in; freed with the last of them.
struct HostBlock {
  uint8_t* data;
  std::shared_ptr<rust::Box<Block>> owner;
};

std::vector<HostBlock> blocks_on_host(Load& load, ProgressWords progress) {
  load.read_to_host(progress);
  std::vector<HostBlock> blocks;
  for (size_t left = load.memory_bytes().size(); left > 0; --left) {
    auto block = load.next_block();
    uint8_t* data = block->data();
    blocks.push_back({data, std::make_shared<rust::Box<Block>>(std::move(block))});
  }
  return blocks;
}

std::vector<int64_t> contiguous_strides(std::span<const int64_t> sizes) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t dim = sizes.size(); dim-- > 0;) {
    strides[dim] = stride;
    stride *= std::max<int64_t>(sizes[dim], 1);
  }
  return strides;
}

// The plan has checked the bounds and alignment of every view, which torch does not.

// `view` with a storage of its own, so that saving or sharing one tensor does not drag its neighbours along.
Tensor own_storage(const HostBlock& block, const View& view, std::span<const int64_t> sizes) {
  const auto release = [owner = block.owner](void*) mutable { owner.reset(); };
  return torch::stable::from_blob(block.data + view.offset, {sizes.data(), sizes.size()},
                                  contiguous_strides(sizes), Device(DeviceType::CPU),
                                  static_cast<ScalarType>(view.dtype), release);
}

// A tensor of this type and these sizes, `offset` bytes into the storage of `base`.
Tensor same_storage(const Tensor& base, int64_t offset, int32_t dtype, std::span<const int64_t> sizes) {
  AtenTensorHandle tensor = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch__alloc_from_pool(base.get(), offset, dtype,
                                                            static_cast<int64_t>(sizes.size()), sizes.data(),
                                                            contiguous_strides(sizes).data(), &tensor));
  return Tensor(tensor);
}

Tensors read_to_host(Load& load, ProgressWords progress) {
  const auto blocks = blocks_on_host(load, progress);
  std::map<std::tuple<size_t, int64_t, int64_t>, size_t> first_at;
  Tensors tensors;
  tensors.reserve(load.views().size());
  for (const View& view : load.views()) {
    const auto sizes = sizes_of(load, view);
    const bool has_elements = std::ranges::find(sizes, 0) == sizes.end();
    const int64_t elements =
        has_elements ? std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<>()) : 0;
    const auto place = std::tuple(view.block, view.offset, elements);
    if (const auto first = first_at.find(place); has_elements && first != first_at.end()) {
      tensors.push_back(same_storage(tensors[first->second], 0, view.dtype, sizes));  // tied weights
      continue;
    }
    if (has_elements) {
      first_at.emplace(place, tensors.size());
    }
    tensors.push_back(own_storage(blocks[view.block], view, sizes));
  }
  return tensors;
}

// Views into memory of torch's own allocator, which frees it in the order of its streams.
Tensors read_to_cuda(const Load& load, const Device& device, ProgressWords progress) {
  const auto blocks = blocks_on_cuda(load, device, progress);
  Tensors tensors;
  tensors.reserve(load.views().size());
  for (const View& view : load.views()) {
    tensors.push_back(same_storage(blocks[view.block], view.offset, view.dtype, sizes_of(load, view)));
  }
  return tensors;
}

}  // namespace

Place place_on(const Device& device) {
  switch (device.type()) {
    case DeviceType::CPU:
      return Place::Host;
    case DeviceType::CUDA:
      return Place::Cuda;
    default:
      fail_argument("Unsupported device: FlashPack loads to the CPU and to CUDA devices");
  }
}

std::span<const int64_t> sizes_of(const Load& load, const View& view) {
  return {load.sizes().data() + view.first_size, view.dims};
}

Tensors read(Load& load, const Device& device, ProgressWords progress) {
  return device.type() == DeviceType::CUDA ? read_to_cuda(load, device, progress)
                                           : read_to_host(load, progress);
}

void read_into(const Load& load, const Tensors& tensors, ProgressWords progress) {
  if (!tensors.empty() && tensors[0].is_cuda()) {
    fill_cuda(load, tensors, tensors[0].get_device_index(), progress);
    return;
  }
  const auto memory = memories_of(tensors);
  load.fill_host({memory.data(), memory.size()}, progress);
}

}  // namespace flashpack
