#include "blocks.h"

#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <memory>
#include <utility>

#include "errors.h"

namespace flashpack {

namespace {

using torch::headeronly::DeviceType;
using torch::headeronly::ScalarType;
using torch::stable::Device;
using torch::stable::Tensor;

// Memory that torch's allocator provides on the current stream of `device`, filled.
Tensors blocks_on_cuda(Load& load, const Device& device, ProgressWords progress) {
  Tensors blocks;
  std::vector<GivenMemory> memory;
  const auto relaxed = begin_on_cuda(current_stream(device.index()));
  for (const int64_t bytes : load.memory_bytes()) {
    blocks.push_back(torch::stable::empty({&bytes, 1}, ScalarType::Byte, std::nullopt, device));
    memory.push_back(memory_of(blocks.back().get()));
  }
  if (!blocks.empty()) {
    load.provide(slice_of(memory));
    fill(load, blocks[0].device(), progress);
  }
  return blocks;
}

// The plan has checked the bounds and alignment of every view, which torch does not.

// `view` as a part of the storage of `base`, from byte `offset` of it on.
Handle part_of(AtenTensorHandle base, int64_t offset, const Load& load, const View& view) {
  AtenTensorHandle tensor = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch__alloc_from_pool(
      base, offset, view.dtype, static_cast<int64_t>(view.dims), load.sizes().data() + view.first_size,
      load.strides().data() + view.first_size, &tensor));
  return Handle(tensor);
}

// Memory of the process that tensors lie in; freed with the last of them. It counts them itself: a shared
// pointer in each one's deleter would take two more allocations for it.
class HostBlock {
 public:
  explicit HostBlock(rust::Box<Block> block) : block_(std::move(block)), data_(block_->data()) {}

  // `view`, which lies in this block, with a storage of its own, so that saving or sharing one tensor does
  // not drag its neighbours along.
  Handle tensor(const Load& load, const View& view) {
    // Not taken back if torch fails: whether it has called the deleter then is not to be told from here.
    holders_.fetch_add(1, std::memory_order_relaxed);
    const auto release = [](void*, void* block) { static_cast<HostBlock*>(block)->release(); };
    AtenTensorHandle tensor = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(torch_from_blob(
        data_ + view.offset, static_cast<int64_t>(view.dims), load.sizes().data() + view.first_size,
        load.strides().data() + view.first_size, 0, view.dtype, aoti_torch_device_type_cpu(), -1, &tensor,
        aoti_torch_layout_strided(), nullptr, 0, release, this));
    return Handle(tensor);
  }

  void release() {
    if (holders_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      delete this;
    }
  }

 private:
  ~HostBlock() = default;

  rust::Box<Block> block_;
  uint8_t* data_;
  std::atomic<size_t> holders_{1};
};

struct Release {
  void operator()(HostBlock* block) const { block->release(); }
};

Handles read_to_host(Load& load, ProgressWords progress) {
  load.read_to_host(progress);
  std::vector<std::unique_ptr<HostBlock, Release>> blocks(load.memory_bytes().size());
  for (auto& block : blocks) {
    block.reset(new HostBlock(load.next_block()));
  }
  Handles tensors;
  tensors.reserve(load.views().size());
  for (const View& view : load.views()) {
    const bool tied = view.same_as != tensors.size();
    tensors.push_back(tied ? part_of(tensors[view.same_as].get(), 0, load, view)
                           : blocks[view.block]->tensor(load, view));
  }
  return tensors;
}

// Views into memory of torch's own allocator, which frees it in the order of its streams.
Handles read_to_cuda(Load& load, const Device& device, ProgressWords progress) {
  const Tensors blocks = blocks_on_cuda(load, device, progress);
  Handles tensors;
  tensors.reserve(load.views().size());
  for (const View& view : load.views()) {
    tensors.push_back(part_of(blocks[view.block].get(), view.offset, load, view));
  }
  return tensors;
}

}  // namespace

bool is_cuda(const Device& device) {
  if (device.type() != DeviceType::CPU && device.type() != DeviceType::CUDA) {
    fail_argument("Unsupported device: FlashPack loads to the CPU and to CUDA devices");
  }
  return device.type() == DeviceType::CUDA;
}

Handles read(Load& load, const Device& device, ProgressWords progress) {
  return is_cuda(device) ? read_to_cuda(load, device, progress) : read_to_host(load, progress);
}

void fill(const Load& load, const Device& device, ProgressWords progress) {
  if (is_cuda(device)) {
    load.fill_cuda(current_stream(device.index()), progress);
  } else {
    load.fill_host(progress);
  }
}

}  // namespace flashpack
