// Errors of the C++ side, in the form that Rust's take: a sentence, then a tag for those who raise typed
// exceptions.
#pragma once

#include <stdexcept>
#include <string>

#include "flashpack/src/bindings/bridge.rs.h"

namespace flashpack {

// The caller passed something that cannot work.
[[noreturn]] inline void fail_argument(const std::string& message) {
  throw std::runtime_error(std::string(printable(message)) +
                           R"( [flashpack:{"kind":"argument","errno":null,"path":null}])");
}

}  // namespace flashpack
