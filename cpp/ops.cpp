// torch.ops.flashpack.*: schemas and short bodies. The work is done in Rust.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <map>
#include <optional>
#include <ranges>
#include <set>
#include <span>
#include <string>
#include <string_view>
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

LoadOptions options(std::optional<bool> eager, std::optional<bool> verify, Place place) {
  const auto choice = [](std::optional<bool> value) { return static_cast<int8_t>(value ? *value : -1); };
  return {choice(eager), choice(verify), place};
}

// Text of which Rust takes no copy.
rust::Str str_of(const std::string& text) { return {text.data(), text.size()}; }

rust::Slice<const int64_t> view_of(const Numbers& numbers) { return {numbers.data(), numbers.size()}; }

Device or_cpu(const std::optional<Device>& device) { return device.value_or(Device(DeviceType::CPU)); }

std::string shape_of(const Tensor& tensor) {
  std::string text = "(";
  for (const int64_t size : tensor.sizes()) {
    text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  }
  return text + ")";
}

bool same_sizes(const Tensor& one, const Tensor& other) {
  return std::ranges::equal(one.sizes(), other.sizes());
}

[[noreturn]] void refuse(int64_t model, const std::string& name, const std::string& why) {
  fail_argument(std::string(shown_path(model)) + ": cannot load '" + name +
                "' into the tensor given: " + why);
}

// The device of the first of `tensors`.
Device device_of_first(const Handles& tensors) {
  if (tensors.empty()) {
    return or_cpu(std::nullopt);
  }
  const DeviceNumbers numbers = device_of(tensors[0].get());
  return {torch::stable::detail::to<DeviceType>(torch::stable::detail::from(numbers.type)), numbers.index};
}

// The one device that all of `tensors` are on.
Device common_device(int64_t model, const Names& names, const Tensors& tensors) {
  if (tensors.empty()) {
    return or_cpu(std::nullopt);
  }
  const Device device = tensors[0].device();
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (tensors[i].device() != device) {
      refuse(model, names[i], "it is not on the device of the others");
    }
  }
  return device;
}

// Refuses, before anything changes, values of another shape or dtype than the tensors they are for.
void check_values(int64_t model, const Names& names, const Tensors& tensors, const Tensors& values) {
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (!same_sizes(tensors[i], values[i])) {
      refuse(model, names[i], "it has shape " + shape_of(tensors[i]) + ", the file's " + shape_of(values[i]));
    }
    if (tensors[i].scalar_type() != values[i].scalar_type()) {
      refuse(model, names[i], "it has another dtype than the file's");
    }
  }
}

// Refuses, before anything changes, tensors that have no storage to exchange.
void check_dense(const Tensors& tensors) {
  for (const Tensor& tensor : tensors) {
    if (!is_dense(tensor.get())) {
      fail_argument("a tensor given is sparse or has no storage of its own");
    }
  }
}

// Refuses, before anything changes, tensors whose memory cannot take the file's bytes as they are.
void check_memory(int64_t model, const Names& names, const Tensors& tensors, const Load& load) {
  for (size_t i = 0; i < tensors.size(); ++i) {
    const View& view = load.views()[i];
    if (!std::ranges::equal(tensors[i].sizes(), sizes_of(load, view))) {
      refuse(model, names[i], "it has another shape than the file's: " + shape_of(tensors[i]));
    }
    if (static_cast<int32_t>(tensors[i].scalar_type()) != view.dtype) {
      refuse(model, names[i], "it has another dtype than the file's");
    }
    if (!tensors[i].is_contiguous()) {
      refuse(model, names[i], "it is not contiguous");
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

Tensor op_open(const std::string& path) { return handle_on(Opened(path)); }

std::string op_describe(const Tensor& model) { return std::string(footer(number_of(model))); }

int64_t op_verify(const Tensor& model, const std::optional<Tensor>& progress) {
  return verify(number_of(model), words(progress));
}

Handles load_named(int64_t model, const Names& names, const Device& device, std::optional<bool> eager,
                   std::optional<bool> verify, const Numbers& slices, const std::optional<Tensor>& progress) {
  auto load = load_names(model, names, view_of(slices), options(eager, verify, place_on(device)));
  return read(*load, device, words(progress));
}

StableIValue op_load(const std::string& path, const Names& names, const std::optional<Device>& device,
                     std::optional<bool> eager, std::optional<bool> verify,
                     const std::optional<Numbers>& slices, const std::optional<Tensor>& progress) {
  const Opened model(path);
  return make_list(
      load_named(model.number(), names, or_cpu(device), eager, verify, slices.value_or(Numbers{}), progress));
}

StableIValue op_load_names(const Tensor& model, const Names& names, const std::optional<Device>& device,
                           std::optional<bool> eager, std::optional<bool> verify,
                           const std::optional<Numbers>& slices, const std::optional<Tensor>& progress) {
  return make_list(load_named(number_of(model), names, or_cpu(device), eager, verify,
                              slices.value_or(Numbers{}), progress));
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
                          ignore_suffixes.value_or(none), options(eager, verify, place_on(target)));
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
  auto load = load_blocks(number_of(model), options(eager, verify, place_on(target)));
  return make_list(read(*load, target, words(progress)));
}

void op_set_data(const Tensors& tensors, const Tensors& values) {
  if (tensors.size() != values.size()) {
    fail_argument(std::to_string(values.size()) + " values were given for " + std::to_string(tensors.size()) +
                  " tensors");
  }
  check_dense(tensors);
  check_dense(values);
  for (size_t i = 0; i < tensors.size(); ++i) {
    set_data(handle_of(tensors[i]), handle_of(values[i]));
  }
}

void op_assign(const std::string& path, const Names& names, const Tensors& tensors, std::optional<bool> eager,
               std::optional<bool> verify) {
  check_counts(names, tensors);
  const Opened opened(path);
  const int64_t model = opened.number();
  const Device device = common_device(model, names, tensors);
  Tensors values;
  for (Handle& value : load_named(model, names, device, eager, verify, {}, std::nullopt)) {
    values.emplace_back(value.release());
  }
  check_values(model, names, tensors, values);
  std::set<const void*> taken;
  for (Tensor& value : values) {
    // Tied in the file, but two tensors here: training one must not change the other.
    if (value.numel() > 0 && !taken.insert(value.const_data_ptr()).second) {
      value = torch::stable::clone(value);
    }
  }
  op_set_data(tensors, values);
}

// Fills `tensors` with what `load` has been told to read for them.
void fill_tensors(int64_t model, const Names& names, const Tensors& tensors, const Load& load,
                  const std::optional<Tensor>& progress) {
  check_memory(model, names, tensors, load);
  std::vector<GivenMemory> given;
  for (const Tensor& tensor : tensors) {
    given.push_back(memory_of(tensor.get()));
  }
  // Tensors of the same bytes of the file, which are read once, into the first; others that are not the very
  // memory of that get a copy.
  std::vector<GivenMemory> distinct, read;
  std::vector<size_t> copied;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const size_t first = load.views()[i].block;
    const bool same = first != i && given[i].address == given[first].address;
    distinct.push_back(same ? GivenMemory{} : given[i]);
    read.push_back(first == i ? given[i] : GivenMemory{});
    if (first != i && !same) {
      copied.push_back(i);
    }
  }
  if (overlap({distinct.data(), distinct.size()})) {
    fail_argument(std::string(shown_path(model)) +
                  ": two of the tensors given share memory, but not in the file");
  }
  read_into(load, common_device(model, names, tensors), read, words(progress));
  for (const size_t i : copied) {
    Tensor copy = tensors[i];
    torch::stable::copy_(copy, reshaped(tensors[load.views()[i].block], copy));
  }
}

LoadOptions into(int64_t model, const Names& names, const Tensors& tensors, std::optional<bool> verify) {
  const bool on_cuda = place_on(common_device(model, names, tensors)) == Place::Cuda;
  return options(std::nullopt, verify, on_cuda ? Place::GivenCuda : Place::GivenHost);
}

void op_fill(const Tensor& handle, const Names& names, const Tensors& tensors, std::optional<bool> verify,
             const std::optional<Tensor>& progress) {
  check_counts(names, tensors);
  const int64_t model = number_of(handle);
  const auto load = load_names(model, names, {}, into(model, names, tensors, verify));
  fill_tensors(model, names, tensors, *load, progress);
}

void op_fill_payload(const Tensor& handle, const Numbers& offsets, const Tensors& tensors,
                     std::optional<bool> verify, const std::optional<Tensor>& progress) {
  if (offsets.size() != tensors.size()) {
    fail_argument(std::to_string(offsets.size()) + " offsets were given for " +
                  std::to_string(tensors.size()) + " tensors");
  }
  const int64_t model = number_of(handle);
  Names names;
  Numbers ranges;
  for (size_t i = 0; i < tensors.size(); ++i) {
    int64_t end = 0;
    if (__builtin_add_overflow(offsets[i], tensors[i].numel(), &end)) {
      fail_argument("an offset is larger than any file");
    }
    ranges.insert(ranges.end(), {offsets[i], end});
    names.push_back("payload from " + std::to_string(offsets[i]));
  }
  const auto load = load_payload(model, view_of(ranges), into(model, names, tensors, verify));
  fill_tensors(model, names, tensors, *load, progress);
}

// The tensors of `given` in the order of the records. Nothing unless each that `load` is of is a dense
// tensor's of the same device, type and sizes, and no two show the same bytes.
std::optional<Handles> targets_of(const Load& load, Handles given) {
  const auto& places = load.places();
  if (load.views().empty() || places.size() + load.unknown().size() != given.size()) {
    return std::nullopt;
  }
  const DeviceNumbers device = device_of(given[0].get());
  Handles targets;
  targets.reserve(places.size());
  for (const View& view : load.views()) {
    const size_t number = targets.size();
    Handle& tensor = given[places[number]];
    if (view.same_as != number || dtype_of(tensor.get()) != view.dtype || device_of(tensor.get()) != device ||
        !is_dense(tensor.get()) || !std::ranges::equal(sizes_of(tensor.get()), sizes_of(load, view))) {
      return std::nullopt;
    }
    targets.push_back(std::move(tensor));
  }
  return targets;
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

// Fills memory that does not overlap. Else false, and nothing is changed.
bool fill_targets(const Load& load, Handles given, const Device& device, ProgressWords progress) {
  const auto targets = targets_of(load, std::move(given));
  if (!targets) {
    return false;
  }
  std::vector<GivenMemory> memory;
  memory.reserve(targets->size());
  for (const Handle& target : *targets) {
    if (!is_contiguous(target.get())) {
      return false;
    }
    memory.push_back(memory_of(target.get()));
  }
  if (overlap({memory.data(), memory.size()})) {  // as that of one tensor under two names does
    return false;
  }
  read_into(load, device, memory, progress);
  return true;
}

Outcome op_fill_all(const Tensor& model, const std::string& names, StableListHandle tensors, bool partly,
                    std::optional<bool> verify, const std::optional<Tensor>& progress) {
  Handles given = take_list(tensors);
  const Device device = device_of_first(given);
  const Place place = place_on(device) == Place::Cuda ? Place::GivenCuda : Place::GivenHost;
  const auto load =
      load_fitting(number_of(model), str_of(names), partly, options(std::nullopt, verify, place));
  return outcome(fill_targets(*load, std::move(given), device, words(progress)), *load);
}

// The same by new memory for each tensor, in the place of its own.
Outcome op_assign_all(const Tensor& model, const std::string& names, StableListHandle tensors, bool partly,
                      std::optional<bool> eager, std::optional<bool> verify,
                      const std::optional<Tensor>& progress) {
  Handles given = take_list(tensors);
  const Device device = device_of_first(given);
  auto load = load_fitting(number_of(model), str_of(names), partly, options(eager, verify, place_on(device)));
  auto targets = targets_of(*load, std::move(given));
  if (!targets) {
    return outcome(false, *load);
  }
  Handles values = read(*load, device, words(progress));  // all of them, before anything changes
  for (size_t number = 0; number < values.size(); ++number) {
    set_data(std::move((*targets)[number]), std::move(values[number]));
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

void op_pack(const std::string& path, const Names& names, const Tensors& tensors,
             std::optional<ScalarType> dtype, int64_t align_bytes, bool keep_order,
             const std::optional<Names>& metadata, const std::optional<std::string>& checksum,
             std::optional<int64_t> max_shard_bytes, const std::optional<Tensor>& progress) {
  check_counts(names, tensors);
  const auto specs = describe(names, tensors, dtype);
  const PackOptions options{keep_order, align_bytes, max_shard_bytes.value_or(-1)};
  auto file = pack(path, {specs.data(), specs.size()}, options, metadata.value_or(Names{}),
                   checksum.value_or(""), words(progress));
  for (const size_t number : file->order()) {
    const Tensor plain = materialize(tensors[number], static_cast<ScalarType>(specs[number].dtype));
    const auto bytes = static_cast<size_t>(plain.numel()) * plain.element_size();
    if (plain.is_cuda()) {
      file->write_cuda(memory_of(plain.get()), current_stream(plain.get_device_index()));
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
  m.def("open(str path) -> Tensor");
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
      "load_blocks(Tensor model, *, Device? device=None, bool? eager=None, bool? verify=None, "
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
      "Tensor? progress=None) -> ()");
  m.def("last_load() -> str");
  m.def("pinned(*, bool release=False) -> int[]");
}

STABLE_TORCH_LIBRARY_IMPL(flashpack, CompositeExplicitAutograd, m) {
  m.impl("open", TORCH_BOX(&op_open));
  m.impl("describe", TORCH_BOX(&op_describe));
  m.impl("verify", TORCH_BOX(&op_verify));
  m.impl("load", TORCH_BOX(&op_load));
  m.impl("load.names", TORCH_BOX(&op_load_names));
  m.impl("load.ignoring", TORCH_BOX(&op_load_except));
  m.impl("load_blocks", TORCH_BOX(&op_load_blocks));
  m.impl("assign", TORCH_BOX(&op_assign));
  m.impl("assign.all", TORCH_BOX(&op_assign_all));
  m.impl("fill", TORCH_BOX(&op_fill));
  m.impl("fill.all", TORCH_BOX(&op_fill_all));
  m.impl("fill.payload", TORCH_BOX(&op_fill_payload));
  m.impl("set_data", TORCH_BOX(&op_set_data));
  m.impl("pack", TORCH_BOX(&op_pack));
  m.impl("last_load", TORCH_BOX(&op_last_load));
  m.impl("pinned", TORCH_BOX(&op_pinned));
}

}  // namespace flashpack
