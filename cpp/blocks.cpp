#include "blocks.h"

#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <map>
#include <memory>
#include <span>
#include <utility>

namespace flashpack {

namespace {

using torch::headeronly::DeviceType;
using torch::headeronly::ScalarType;
using torch::stable::Device;
using torch::stable::Tensor;

// Memory that several tensors lie in; freed with the last of them.
struct SharedBlock {
  uint8_t* data;
  std::shared_ptr<rust::Box<Block>> owner;
};

SharedBlock share(rust::Box<Block> block) {
  uint8_t* data = block->data();
  return {data, std::make_shared<rust::Box<Block>>(std::move(block))};
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

// `view` with a storage of its own, so that saving or sharing one tensor does not drag its neighbours along.
// The plan has checked bounds and alignment, which torch does not.
Tensor own_storage(const SharedBlock& block, const View& view, std::span<const int64_t> sizes) {
  const auto release = [owner = block.owner](void*) mutable { owner.reset(); };
  return torch::stable::from_blob(block.data + view.offset, {sizes.data(), sizes.size()},
                                  contiguous_strides(sizes), Device(DeviceType::CPU),
                                  static_cast<ScalarType>(view.dtype), release);
}

// Another tensor in the storage of `first`: a tied weight.
Tensor same_storage(const Tensor& first, const View& view, std::span<const int64_t> sizes) {
  AtenTensorHandle tensor = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch__alloc_from_pool(first.get(), 0, view.dtype,
                                                            static_cast<int64_t>(sizes.size()), sizes.data(),
                                                            contiguous_strides(sizes).data(), &tensor));
  return Tensor(tensor);
}

}  // namespace

std::vector<Tensor> take_tensors(LoadedTensors& loaded) {
  std::vector<SharedBlock> blocks;
  while (loaded.blocks_left() > 0) {
    blocks.push_back(share(loaded.take_block()));
  }
  std::map<std::pair<size_t, int64_t>, size_t> first_at;
  std::vector<Tensor> tensors;
  tensors.reserve(loaded.views().size());
  for (const View& view : loaded.views()) {
    const std::span sizes(loaded.sizes().data() + view.first_size, view.dims);
    const bool has_elements = std::ranges::find(sizes, 0) == sizes.end();
    const auto place = std::pair(view.block, view.offset);
    if (const auto first = first_at.find(place); has_elements && first != first_at.end()) {
      tensors.push_back(same_storage(tensors[first->second], view, sizes));
      continue;
    }
    if (has_elements) {
      first_at.emplace(place, tensors.size());
    }
    tensors.push_back(own_storage(blocks[view.block], view, sizes));
  }
  return tensors;
}

}  // namespace flashpack
