#include "blocks.h"

#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/ops.h>

#include <memory>
#include <utility>

namespace flashpack {

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A flat byte tensor that owns `block`.
Tensor wrap(rust::Box<Block> block) {
  uint8_t* data = block->data();
  const int64_t size = block->bytes();
  const int64_t stride = 1;
  auto owner = std::make_shared<rust::Box<Block>>(std::move(block));
  const auto release = [owner](void*) mutable { owner.reset(); };
  return torch::stable::from_blob(data, {&size, 1}, {&stride, 1},
                                  torch::stable::Device(torch::headeronly::DeviceType::CPU), ScalarType::Byte,
                                  release);
}

// `view` of `block`. The plan has checked bounds and alignment, which torch does not.
Tensor show(const Tensor& block, const View& view, const int64_t* sizes, std::vector<int64_t>& strides) {
  strides.resize(view.dims);
  int64_t stride = 1;
  for (size_t dim = view.dims; dim-- > 0;) {
    strides[dim] = stride;
    stride *= sizes[dim] > 1 ? sizes[dim] : 1;
  }
  AtenTensorHandle tensor = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch__alloc_from_pool(
      block.get(), view.offset, view.dtype, static_cast<int64_t>(view.dims), sizes, strides.data(), &tensor));
  return Tensor(tensor);
}

}  // namespace

std::vector<Tensor> take_tensors(LoadedTensors& loaded) {
  std::vector<Tensor> blocks;
  while (loaded.blocks_left() > 0) {
    blocks.push_back(wrap(loaded.take_block()));
  }
  const auto& sizes = loaded.sizes();
  std::vector<int64_t> strides;
  std::vector<Tensor> tensors;
  tensors.reserve(loaded.views().size());
  for (const View& view : loaded.views()) {
    tensors.push_back(show(blocks[view.block], view, sizes.data() + view.first_size, strides));
  }
  return tensors;
}

}  // namespace flashpack
