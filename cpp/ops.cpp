// torch.ops.flashpack.*: schemas and short bodies. The work is done in Rust.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "blocks.h"
#include "errors.h"
#include "flashpack/src/bindings/bridge.rs.h"
#include "model.h"
#include "tensors.h"

namespace flashpack {

namespace {

using Names = std::vector<std::string>;
using Numbers = std::vector<int64_t>;
using torch::headeronly::DeviceType;
using torch::stable::Device;

ProgressWords words(const std::optional<Tensor>& progress) {
  if (!progress) {
    return {0};
  }
  if (progress->scalar_type() != ScalarType::Long || progress->numel() != 3 || !progress->is_cpu() ||
      !progress->is_contiguous()) {
    fail_argument("progress must be a contiguous int64 tensor of 3 elements on the CPU");
  }
  const auto address = reinterpret_cast<size_t>(progress->mutable_data_ptr());
  if (address % alignof(int64_t) != 0) {
    fail_argument("progress must be aligned to its elements");
  }
  return {address};
}

LoadOptions options(std::optional<bool> eager, std::optional<bool> verify, const Device& device,
                    bool in_place = false) {
  const auto choice = [](std::optional<bool> value) { return static_cast<int8_t>(value ? *value : -1); };
  return {choice(eager), choice(verify), is_cuda(device), in_place};
}

// Text of which Rust takes no copy.
rust::Str str_of(const std::string& text) { return {text.data(), text.size()}; }

Device or_cpu(const std::optional<Device>& device) { return device.value_or(Device(DeviceType::CPU)); }

Tensor op_open(const std::string& path, std::optional<std::string> cache_dir,
               const std::optional<Tensor>& progress) {
  return handle_on(open_model(path, cache_dir.value_or(""), words(progress)));
}

std::string op_describe(const Tensor& model) { return std::string(footer(number_of(model))); }

int64_t op_verify(const Tensor& model, const std::optional<Tensor>& progress) {
  return verify(number_of(model), words(progress));
}

StableIValue load_named(int64_t model, const Names& names, const std::optional<Device>& device,
                        std::optional<bool> eager, std::optional<bool> verify,
                        const std::optional<Numbers>& slices, const std::optional<Tensor>& progress) {
  const Device target = or_cpu(device);
  auto load = load_names(model, names, slice_of(slices.value_or(Numbers{})), options(eager, verify, target));
  return make_list(read(*load, target, words(progress)));
}

StableIValue op_load(const std::string& path, const Names& names, const std::optional<Device>& device,
                     std::optional<bool> eager, std::optional<bool> verify,
                     const std::optional<Numbers>& slices, const std::optional<Tensor>& progress) {
  return load_named(open_model(path, "", words(progress))->number(), names, device, eager, verify, slices,
                    progress);
}

StableIValue op_load_names(const Tensor& model, const Names& names, const std::optional<Device>& device,
                           std::optional<bool> eager, std::optional<bool> verify,
                           const std::optional<Numbers>& slices, const std::optional<Tensor>& progress) {
  return load_named(number_of(model), names, device, eager, verify, slices, progress);
}

std::tuple<StableIValue, StableIValue> op_load_except(const Tensor& model,
                                                      const std::optional<Names>& ignore_names,
                                                      const std::optional<Names>& ignore_prefixes,
                                                      const std::optional<Names>& ignore_suffixes,
                                                      const std::optional<Device>& device,
                                                      std::optional<bool> eager, std::optional<bool> verify,
                                                      const std::optional<Tensor>& progress) {
  const Names none;
  const Device target = or_cpu(device);
  auto load = load_except(number_of(model), ignore_names.value_or(none), ignore_prefixes.value_or(none),
                          ignore_suffixes.value_or(none), options(eager, verify, target));
  std::vector<Text> names;
  names.reserve(load->views().size());
  while (names.size() < load->views().size()) {
    names.push_back(make_text(load->name(names.size())));
  }
  Handles tensors = read(*load, target, words(progress));
  return {make_list(std::move(names)), make_list(std::move(tensors))};
}

StableIValue op_load_blocks(const Tensor& model, const std::optional<Device>& device,
                            std::optional<bool> eager, std::optional<bool> verify,
                            const std::optional<Tensor>& progress) {
  const Device target = or_cpu(device);
  auto load = load_blocks(number_of(model), options(eager, verify, target));
  return make_list(read(*load, target, words(progress)));
}

void op_set_data(const Tensors& tensors, const Tensors& values) {
  check_exchange(slice_of(described(tensors)), slice_of(described(values)));
  for (size_t i = 0; i < tensors.size(); ++i) {
    set_data(share(tensors[i].get()), share(values[i].get()));
  }
}

void op_assign(const std::string& path, const Names& names, const Tensors& tensors, std::optional<bool> eager,
               std::optional<bool> verify) {
  const auto given = described(tensors);
  const Device device = device_of(given);
  auto load = load_names(open_model(path, "", {0})->number(), names, {}, options(eager, verify, device));
  load->require_fit(slice_of(given));
  Handles values = read(*load, device, {0});  // all of them, before anything changes
  for (size_t i = 0; i < values.size(); ++i) {
    Tensor value(values[i].release());
    // Tied in the file, but two tensors here: training one must not change the other.
    const bool is_tied = load->views()[i].same_as != i;
    set_data(share(tensors[i].get()), share((is_tied ? torch::stable::clone(value) : value).get()));
  }
}

// Fills `tensors` with what `load` is to read for them; those that are tied in the file but not here get
// copies.
void fill_tensors(Load& load, const Tensors& tensors, const std::vector<GivenTensor>& given,
                  const std::optional<Tensor>& progress) {
  load.require_fit(slice_of(given));
  fill(load, device_of(given), words(progress));
  for (const size_t i : load.copied()) {
    copy(tensors[load.views()[i].same_as].get(), tensors[i].get());
  }
}

void op_fill(const Tensor& model, const Names& names, const Tensors& tensors, std::optional<bool> verify,
             const std::optional<Tensor>& progress) {
  const auto given = described(tensors, Elements::WhereToWrite);
  const auto into = options(std::nullopt, verify, device_of(given), true);
  fill_tensors(*load_names(number_of(model), names, {}, into), tensors, given, progress);
}

void op_fill_payload(const Tensor& model, const Numbers& offsets, const Tensors& tensors,
                     std::optional<bool> verify, const std::optional<Tensor>& progress) {
  const auto given = described(tensors, Elements::WhereToWrite);
  const auto into = options(std::nullopt, verify, device_of(given), true);
  auto load = load_payload(number_of(model), slice_of(offsets), slice_of(given), into);
  fill_tensors(*load, tensors, given, progress);
}

// Whether a load into tensors was done, the places of the names that the file lacks, and its names that were
// not given. It was not done for a reason in the tensors if there are neither.
using Outcome = std::tuple<bool, Numbers, StableIValue>;

Outcome outcome(bool done, const Load& load) {
  std::vector<Text> unnamed;
  for (const rust::String& name : load.unnamed()) {
    unnamed.push_back(make_text({name.data(), name.size()}));
  }
  return {done, Numbers(load.unknown().begin(), load.unknown().end()), make_list(std::move(unnamed))};
}

Outcome op_fill_all(const Tensor& model, const std::string& names, StableListHandle tensors, bool partly,
                    std::optional<bool> verify, const std::optional<Tensor>& progress) {
  const Handles targets = take_list(tensors);
  const auto given = described(targets, Elements::WhereToWrite);
  const auto into = options(std::nullopt, verify, device_of(given), true);
  auto load = load_fitting(number_of(model), str_of(names), partly, into);
  const bool fits = load->fits_all(slice_of(given));
  if (fits) {
    fill(*load, device_of(given), words(progress));
  }
  return outcome(fits, *load);
}

// The same by new memory for each tensor, in the place of its own.
Outcome op_assign_all(const Tensor& model, const std::string& names, StableListHandle tensors, bool partly,
                      std::optional<bool> eager, std::optional<bool> verify,
                      const std::optional<Tensor>& progress) {
  Handles targets = take_list(tensors);
  const auto given = described(targets, Elements::WhereTheyAre);
  const Device device = device_of(given);
  auto load = load_fitting(number_of(model), str_of(names), partly, options(eager, verify, device));
  if (!load->fits_all(slice_of(given))) {
    return outcome(false, *load);
  }
  Handles values = read(*load, device, words(progress));  // all of them, before anything changes
  for (size_t number = 0; number < values.size(); ++number) {
    set_data(std::move(targets[load->places()[number]]), std::move(values[number]));
  }
  return outcome(true, *load);
}

std::string op_last_load() { return std::string(last_load()); }

std::vector<int64_t> op_pinned(bool release) {
  if (release) {
    release_pinned();
  }
  const PinnedUsage usage = pinned_usage();
  return {usage.bytes, usage.peak_bytes, static_cast<int64_t>(usage.pageable)};
}

bool op_is_bound_to_thread(const Device& device) {
  return is_bound_to_thread(current_stream(device.index()));
}

void op_pack(const std::string& path, const Names& names, const Tensors& tensors,
             std::optional<ScalarType> dtype, int64_t align_bytes, bool keep_order,
             const std::optional<Names>& metadata, const std::optional<std::string>& checksum,
             std::optional<int64_t> max_shard_bytes, const std::optional<std::string>& compress,
             const std::optional<Tensor>& progress) {
  const PackOptions options{dtype ? static_cast<int32_t>(*dtype) : -1,
                            keep_order,
                            align_bytes,
                            max_shard_bytes.value_or(-1),
                            checksum.value_or(""),
                            compress.value_or("")};
  auto file = pack(path, names, slice_of(described(tensors, Elements::WhereTheyAre)), options,
                   metadata.value_or(Names{}), words(progress));
  for (const size_t number : file->order()) {
    if (tensors[number].is_cuda()) {
      file->use_cuda(current_stream(tensors[number].get_device_index()));
    }
    const Tensor plain = materialize(tensors[number], static_cast<ScalarType>(file->dtype(number)));
    const auto bytes = static_cast<size_t>(plain.numel()) * plain.element_size();
    if (plain.is_cuda()) {
      file->write_cuda(memory_of(plain.get()));
    } else {
      file->write({static_cast<const uint8_t*>(plain.const_data_ptr()), bytes});
    }
  }
  finish(std::move(file));
}

}  // namespace

// `Tensor(*!)[]`: with `Tensor(a!)[]` TorchScript would drop calls whose tensors are a module's own
// parameters. Those with a path are for graphs, which cannot hold an open model.
STABLE_TORCH_LIBRARY(flashpack, m) {
  m.def("open(str path, *, str? cache_dir=None, Tensor? progress=None) -> Tensor");
  m.def("describe(Tensor model) -> str");
  m.def("verify(Tensor model, *, Tensor? progress=None) -> int");
  m.def(
      "load(str path, str[] names, *, Device? device=None, bool? eager=None, bool? verify=None, "
      "int[]? slices=None, Tensor? progress=None) -> Tensor[]");
  m.def(
      "load.names(Tensor model, str[] names, *, Device? device=None, bool? eager=None, bool? verify=None, "
      "int[]? slices=None, Tensor? progress=None) -> Tensor[]");
  m.def(
      "load.ignoring(Tensor model, *, str[]? ignore_names=None, str[]? ignore_prefixes=None, "
      "str[]? ignore_suffixes=None, Device? device=None, bool? eager=None, bool? verify=None, "
      "Tensor? progress=None) -> (str[], Tensor[])");
  m.def(
      "load.blocks(Tensor model, *, Device? device=None, bool? eager=None, bool? verify=None, "
      "Tensor? progress=None) -> Tensor[]");
  m.def("assign(str path, str[] names, Tensor(*!)[] tensors, *, bool? eager=None, bool? verify=None) -> ()");
  m.def(
      "assign.all(Tensor model, str names, Tensor(*!)[] tensors, *, bool partly=False, bool? eager=None, "
      "bool? verify=None, Tensor? progress=None) -> (bool, int[], str[])");
  m.def(
      "fill(Tensor model, str[] names, Tensor(*!)[] tensors, *, bool? verify=None, "
      "Tensor? progress=None) -> ()");
  m.def(
      "fill.all(Tensor model, str names, Tensor(*!)[] tensors, *, bool partly=False, bool? verify=None, "
      "Tensor? progress=None) -> (bool, int[], str[])");
  m.def(
      "fill.payload(Tensor model, int[] offsets, Tensor(*!)[] tensors, *, bool? verify=None, "
      "Tensor? progress=None) -> ()");
  m.def("set_data(Tensor(*!)[] tensors, Tensor[] values) -> ()");
  m.def(
      "pack(str path, str[] names, Tensor(*!)[] tensors, *, ScalarType? dtype=None, int align_bytes=128, "
      "bool keep_order=False, str[]? metadata=None, str? checksum=None, int? max_shard_bytes=None, "
      "str? compress=None, Tensor? progress=None) -> ()");
  m.def("last_load() -> str");
  m.def("pinned(*, bool release=False) -> int[]");
  m.def("is_bound_to_thread(Device device) -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(flashpack, CompositeExplicitAutograd, m) {
  m.impl("open", TORCH_BOX(&op_open));
  m.impl("describe", TORCH_BOX(&op_describe));
  m.impl("verify", TORCH_BOX(&op_verify));
  m.impl("load", TORCH_BOX(&op_load));
  m.impl("load.names", TORCH_BOX(&op_load_names));
  m.impl("load.ignoring", TORCH_BOX(&op_load_except));
  m.impl("load.blocks", TORCH_BOX(&op_load_blocks));
  m.impl("assign", TORCH_BOX(&op_assign));
  m.impl("assign.all", TORCH_BOX(&op_assign_all));
  m.impl("fill", TORCH_BOX(&op_fill));
  m.impl("fill.all", TORCH_BOX(&op_fill_all));
  m.impl("fill.payload", TORCH_BOX(&op_fill_payload));
  m.impl("set_data", TORCH_BOX(&op_set_data));
  m.impl("pack", TORCH_BOX(&op_pack));
  m.impl("last_load", TORCH_BOX(&op_last_load));
  m.impl("pinned", TORCH_BOX(&op_pinned));
  m.impl("is_bound_to_thread", TORCH_BOX(&op_is_bound_to_thread));
}

}  // namespace flashpack
