#include "blocks.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <memory>
#include <span>
#include <utility>

#include "errors.h"

namespace flashpack {

namespace {

using torch::headeronly::DeviceType;
using torch::headeronly::ScalarType;
using torch::stable::Device;
using torch::stable::Tensor;

// Memory that torch's allocator provides on the current stream of `device`, filled.
Tensors blocks_on_cuda(const Load& load, const Device& device, ProgressWords progress) {
  Tensors blocks;
  std::vector<GivenMemory> memory;
  for (const int64_t bytes : load.memory_bytes()) {
    blocks.push_back(torch::stable::empty({&bytes, 1}, ScalarType::Byte, std::nullopt, device));
    memory.push_back(memory_of(blocks.back().get()));
  }
  if (!blocks.empty()) {
    read_into(load, blocks[0].device(), memory, progress);
  }
  return blocks;
}

const int64_t* strides_of(const Load& load, const View& view) {
  return load.strides().data() + view.first_size;
}

// The plan has checked the bounds and alignment of every view, which torch does not.

// `view` as a part of the storage of `base`, from byte `offset` of it on.
Handle part_of(AtenTensorHandle base, int64_t offset, const Load& load, const View& view) {
  AtenTensorHandle tensor = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch__alloc_from_pool(base, offset, view.dtype, static_cast<int64_t>(view.dims),
                                  sizes_of(load, view).data(), strides_of(load, view), &tensor));
  return Handle(tensor);
}

// `view` at `data`, with a storage of its own, which tells `owner` by `release` that it is gone.
Handle own_storage(uint8_t* data, const Load& load, const View& view, void (*release)(void*, void*),
                   void* owner) {
  AtenTensorHandle tensor = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_from_blob(data, static_cast<int64_t>(view.dims),
                                                sizes_of(load, view).data(), strides_of(load, view), 0,
                                                view.dtype, aoti_torch_device_type_cpu(), -1, &tensor,
                                                aoti_torch_layout_strided(), nullptr, 0, release, owner));
  return Handle(tensor);
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

// Memory of the process that tensors lie in; freed with the last of them. It counts them itself: a shared
// pointer in each one's deleter would take two more allocations for it.
class HostBlock {
 public:
  explicit HostBlock(rust::Box<Block> block) : block_(std::move(block)), data_(block_->data()) {}

  Handle tensor(const Load& load, const View& view) {
    holders_.fetch_add(1, std::memory_order_relaxed);
    const auto release = [](void*, void* block) { static_cast<HostBlock*>(block)->release(); };
    return own_storage(data_ + view.offset, load, view, release, this);
  }

  void release() {
    if (holders_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      delete this;
    }
  }

 private:
  rust::Box<Block> block_;
  uint8_t* data_;
  std::atomic<size_t> holders_{1};
};

Memory::Memory(Load& load, const Device& device, ProgressWords progress) : load_(load) {
  if (device.type() == DeviceType::CUDA) {
    on_cuda_ = blocks_on_cuda(load, device, progress);
    return;
  }
  load.read_to_host(progress);
  const size_t blocks = load.memory_bytes().size();
  on_host_.reserve(blocks);
  while (on_host_.size() < blocks) {
    on_host_.emplace_back(new HostBlock(load.next_block()));
  }
}

void ReleaseBlock::operator()(HostBlock* block) const { block->release(); }

Handle Memory::tensor(const View& view) const {
  return on_cuda_.empty() ? on_host_[view.block]->tensor(load_, view)
                          : part_of(on_cuda_[view.block].get(), view.offset, load_, view);
}

Handles read(Load& load, const Device& device, ProgressWords progress) {
  const Memory memory(load, device, progress);
  const bool on_host = device.type() != DeviceType::CUDA;
  Handles tensors;
  tensors.reserve(load.views().size());
  for (const View& view : load.views()) {
    const bool tied = on_host && view.same_as != tensors.size();
    tensors.push_back(tied ? part_of(tensors[view.same_as].get(), 0, load, view) : memory.tensor(view));
  }
  return tensors;
}

void read_into(const Load& load, const Device& device, const std::vector<GivenMemory>& memory,
               ProgressWords progress) {
  if (device.type() == DeviceType::CUDA) {
    load.fill_cuda({memory.data(), memory.size()}, current_stream(device.index()), progress);
  } else {
    load.fill_host({memory.data(), memory.size()}, progress);
  }
}

}  // namespace flashpack
