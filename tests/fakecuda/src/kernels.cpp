// Kernels do not run: there is no device code to run them with. PyTorch's fill kernel is
// simple enough to imitate; every other launch is refused loudly, or skipped with FAKECUDA_SKIP_KERNELS=1.
#include <cxxabi.h>

#include <cstdlib>
#include <map>

#include "config.h"
#include "counters.h"
#include "engine.h"

namespace fk {

namespace {

std::string demangle(const char* name) {
  if (!name) return "(a kernel that was never registered)";
  int status;
  char* text = abi::__cxa_demangle(name, nullptr, nullptr, &status);
  std::string result = text ? text : name;
  free(text);
  return result;
}

size_t element_size(const std::string& type) {
  static const std::map<std::string, size_t> kSizes = {
      {"float", 4}, {"double", 8},    {"int", 4},           {"long", 8},        {"short", 2},
      {"bool", 1},  {"c10::Half", 2}, {"c10::BFloat16", 2}, {"signed char", 1}, {"unsigned char", 1}};
  auto it = kSizes.find(type);
  return it == kSizes.end() ? 0 : it->second;
}

// at::native::vectorized_elementwise_kernel<N, FillFunctor<T>, array<char*, 1>>: its
// arguments are the number of elements, the functor (which is the value), the pointers.
bool imitate_fill(const std::string& name, void** arguments, Stream* stream, int* result) {
  static const std::string kFunctor = "FillFunctor<";
  size_t at = name.find(kFunctor);
  if (name.find("vectorized_elementwise_kernel") == std::string::npos) return false;
  if (at == std::string::npos) return false;
  at += kFunctor.size();
  size_t unit = element_size(name.substr(at, name.find('>', at) - at));
  if (!unit) return false;
  int elements = *static_cast<int*>(arguments[0]);
  void* to = *static_cast<void**>(arguments[2]);
  count(Counter::kernels_imitated);
  *result = fill(to, arguments[1], unit, elements, stream, false);
  return true;
}

}  // namespace

int launch_kernel(const char* mangled_name, void** arguments, Stream* stream) {
  count(Counter::kernels_launched);
  std::string name = demangle(mangled_name);
  int result;
  if (imitate_fill(name, arguments, stream, &result)) return result;
  bool skip = config().skip_kernels;
  count(Counter::kernels_refused);
  say("KERNEL LAUNCH not emulated%s: %.300s", skip ? " (skipped)" : "", name.c_str());
  return skip ? kOk : kNotSupported;
}

}  // namespace fk
