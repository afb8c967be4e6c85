// torch.ops.flashpack.last_load: apart from the other operators because it loads nothing.

#include <torch/csrc/stable/library.h>

#include <string>

#include "flashpack/src/bridge.rs.h"

namespace flashpack {

namespace {

std::string op_last_load() { return std::string(last_load()); }

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(flashpack, m) { m.def("last_load() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(flashpack, CompositeExplicitAutograd, m) {
  m.impl("last_load", TORCH_BOX(&op_last_load));
}

}  // namespace flashpack
