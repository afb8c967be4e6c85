// torch.ops.flashpack.*: schemas and short bodies. The work is done in Rust.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "blocks.h"
#include "errors.h"
#include "flashpack/src/bridge.rs.h"
#include "tensors.h"

namespace flashpack {

namespace {

using Names = std::vector<std::string>;
using Tensors = std::vector<Tensor>;

ProgressWords words(const std::optional<Tensor>& progress) {
  if (!progress) {
    return {0};
  }
  if (progress->scalar_type() != ScalarType::Long || progress->numel() != 3 || !progress->is_cpu() ||
      !progress->is_contiguous()) {
    fail_argument("progress must be a contiguous int64 tensor of 3 elements on the CPU");
  }
  return {reinterpret_cast<size_t>(progress->mutable_data_ptr())};
}

LoadOptions options(std::optional<bool> eager, std::optional<bool> verify,
                    const std::optional<Tensor>& progress) {
  const auto choice = [](std::optional<bool> value) { return static_cast<int8_t>(value ? *value : -1); };
  return {choice(eager), choice(verify), words(progress)};
}

std::string shape_of(const Tensor& tensor) {
  std::string text = "(";
  for (const int64_t size : tensor.sizes()) {
    text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  }
  return text + ")";
}

// Refuses, before anything changes, what set_data could not do or should not.
void check_assignable(const Names& names, const Tensors& tensors, const Tensors& values,
                      const std::string& path) {
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (!tensors[i].is_cpu()) {
      fail_argument(path + ": cannot assign '" + names[i] + "' to a tensor that is not in CPU memory");
    }
    const auto have = tensors[i].sizes();
    const auto want = values[i].sizes();
    if (have.size() != want.size() || !std::equal(have.begin(), have.end(), want.begin())) {
      fail_argument(path + ": '" + names[i] + "' has shape " + shape_of(values[i]) +
                    ", the tensor given for it " + shape_of(tensors[i]));
    }
  }
}

// The elements that `tensor` shows, if another tensor could show the same: tensors with equal keys are tied.
using TieKey = std::tuple<const void*, ScalarType, std::vector<int64_t>, std::vector<int64_t>>;

TieKey tie_key(const Tensor& tensor) {
  const bool flat = tensor.is_contiguous();
  const auto list = [](auto view) { return std::vector<int64_t>(view.begin(), view.end()); };
  return {tensor.const_data_ptr(), tensor.scalar_type(),
          flat ? std::vector<int64_t>{tensor.numel()} : list(tensor.sizes()),
          flat ? std::vector<int64_t>{} : list(tensor.strides())};
}

rust::Vec<TensorSpec> describe(const Names& names, const Tensors& tensors, std::optional<ScalarType> dtype) {
  const int32_t wanted = dtype ? static_cast<int32_t>(*dtype) : -1;
  std::map<TieKey, int64_t> first;
  rust::Vec<TensorSpec> specs;
  specs.reserve(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    const auto own = static_cast<int32_t>(tensors[i].scalar_type());
    TensorSpec spec{rust::String(names[i]), stored_dtype(names[i], own, wanted), {}, -1};
    for (const int64_t size : tensors[i].sizes()) {
      spec.shape.push_back(size);
    }
    if (tensors[i].numel() > 0) {
      const auto [tied, is_first] = first.emplace(tie_key(tensors[i]), static_cast<int64_t>(i));
      spec.tied_to = is_first ? -1 : tied->second;
    }
    specs.push_back(std::move(spec));
  }
  return specs;
}

void check_counts(const Names& names, const Tensors& tensors) {
  if (names.size() != tensors.size()) {
    fail_argument(std::to_string(names.size()) + " names were given for " + std::to_string(tensors.size()) +
                  " tensors");
  }
}

std::string op_footer(const std::string& path) { return std::string(footer(path)); }

int64_t op_verify(const std::string& path, const std::optional<Tensor>& progress) {
  return verify(path, words(progress));
}

Tensors op_load(const std::string& path, const Names& names, std::optional<bool> eager,
                std::optional<bool> verify, const std::optional<Tensor>& progress) {
  return take_tensors(*load_names(path, names, options(eager, verify, progress)));
}

std::tuple<Names, Tensors> op_state_dict(const std::string& path, const std::optional<Names>& ignore_names,
                                         const std::optional<Names>& ignore_prefixes,
                                         const std::optional<Names>& ignore_suffixes,
                                         std::optional<bool> eager, std::optional<bool> verify,
                                         const std::optional<Tensor>& progress) {
  const Names none;
  auto loaded = load_except(path, ignore_names.value_or(none), ignore_prefixes.value_or(none),
                            ignore_suffixes.value_or(none), options(eager, verify, progress));
  const auto& names = loaded->names();
  return {Names(names.begin(), names.end()), take_tensors(*loaded)};
}

Tensors op_blocks(const std::string& path, std::optional<bool> eager, std::optional<bool> verify,
                  const std::optional<Tensor>& progress) {
  return take_tensors(*load_blocks(path, options(eager, verify, progress)));
}

void op_set_data(const Tensors& tensors, const Tensors& values) {
  if (tensors.size() != values.size()) {
    fail_argument(std::to_string(values.size()) + " values were given for " + std::to_string(tensors.size()) +
                  " tensors");
  }
  for (size_t i = 0; i < tensors.size(); ++i) {
    set_data(tensors[i], values[i]);
  }
}

void op_assign(const std::string& path, const Names& names, const Tensors& tensors, std::optional<bool> eager,
               std::optional<bool> verify) {
  check_counts(names, tensors);
  const auto values = op_load(path, names, eager, verify, std::nullopt);
  check_assignable(names, tensors, values, path);
  op_set_data(tensors, values);
}

void op_pack(const std::string& path, const Names& names, const Tensors& tensors,
             std::optional<ScalarType> dtype, int64_t align_bytes, bool keep_order,
             const std::optional<Names>& metadata, const std::optional<Tensor>& progress) {
  check_counts(names, tensors);
  const auto specs = describe(names, tensors, dtype);
  auto file = pack(path, {specs.data(), specs.size()}, keep_order, align_bytes, metadata.value_or(Names{}),
                   words(progress));
  for (const size_t number : file->order()) {
    const Tensor plain = materialize(tensors[number], static_cast<ScalarType>(specs[number].dtype));
    const auto bytes = static_cast<size_t>(plain.numel()) * plain.element_size();
    file->write({static_cast<const uint8_t*>(plain.const_data_ptr()), bytes});
  }
  finish(std::move(file));
}

}  // namespace

// `Tensor(*!)[]`: with `Tensor(a!)[]` TorchScript would drop calls whose tensors are a module's own
// parameters.
STABLE_TORCH_LIBRARY(flashpack, m) {
  m.def("footer(str path) -> str");
  m.def("verify(str path, *, Tensor? progress=None) -> int");
  m.def(
      "load(str path, str[] names, *, bool? eager=None, bool? verify=None, Tensor? progress=None) -> "
      "Tensor[]");
  m.def(
      "state_dict(str path, *, str[]? ignore_names=None, str[]? ignore_prefixes=None, "
      "str[]? ignore_suffixes=None, bool? eager=None, bool? verify=None, Tensor? progress=None) -> "
      "(str[], Tensor[])");
  m.def("blocks(str path, *, bool? eager=None, bool? verify=None, Tensor? progress=None) -> Tensor[]");
  m.def("assign(str path, str[] names, Tensor(*!)[] tensors, *, bool? eager=None, bool? verify=None) -> ()");
  m.def("set_data(Tensor(*!)[] tensors, Tensor[] values) -> ()");
  m.def(
      "pack(str path, str[] names, Tensor(*!)[] tensors, *, ScalarType? dtype=None, int align_bytes=128, "
      "bool keep_order=False, str[]? metadata=None, Tensor? progress=None) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(flashpack, CompositeExplicitAutograd, m) {
  m.impl("footer", TORCH_BOX(&op_footer));
  m.impl("verify", TORCH_BOX(&op_verify));
  m.impl("load", TORCH_BOX(&op_load));
  m.impl("state_dict", TORCH_BOX(&op_state_dict));
  m.impl("blocks", TORCH_BOX(&op_blocks));
  m.impl("assign", TORCH_BOX(&op_assign));
  m.impl("set_data", TORCH_BOX(&op_set_data));
  m.impl("pack", TORCH_BOX(&op_pack));
}

}  // namespace flashpack
