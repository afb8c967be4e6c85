// What objects compiled by nvcc call when they are loaded, and per kernel launch.
#include <cstring>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "runtime_api.h"

using namespace fk;

namespace {

struct DeviceVariable {
  size_t size;
  std::unordered_map<int, void*> address;  // by device, when first asked for
};

struct Registry {
  std::mutex mutex;
  std::unordered_map<const void*, const char*> kernels;  // host stub -> mangled name
  std::unordered_map<const void*, DeviceVariable> variables;
};

Registry& registry() {
  static auto* r = new Registry();
  return *r;
}

struct LaunchConfiguration {
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
};
thread_local std::vector<LaunchConfiguration> pushed_launches;

const char* kernel_name(const void* stub) {
  std::lock_guard<std::mutex> lock(registry().mutex);
  auto it = registry().kernels.find(stub);
  return it == registry().kernels.end() ? nullptr : it->second;
}

}  // namespace

extern "C" FK_API void** __cudaRegisterFatBinary(void* binary) {
  static void* handle;
  handle = binary;
  return &handle;
}

extern "C" FK_API void __cudaRegisterFatBinaryEnd(void**) {}
extern "C" FK_API void __cudaUnregisterFatBinary(void**) {}
extern "C" FK_API char __cudaInitModule(void**) { return 1; }

extern "C" FK_API void __cudaRegisterFunction(void**, const char* stub, char*, const char* name, int, uint3*,
                                              uint3*, dim3*, dim3*, int*) {
  std::lock_guard<std::mutex> lock(registry().mutex);
  registry().kernels[stub] = name;
}

extern "C" FK_API void __cudaRegisterVar(void**, char* host, char*, const char*, int, size_t size, int, int) {
  std::lock_guard<std::mutex> lock(registry().mutex);
  registry().variables[host] = {size, {}};
}

RUNTIME_API cudaGetSymbolAddress(void** out, const void* symbol) {
  ENTER();
  std::lock_guard<std::mutex> lock(registry().mutex);
  auto it = registry().variables.find(symbol);
  if (it == registry().variables.end()) return result(cudaErrorInvalidSymbol);
  int device = current_device();
  void*& address = it->second.address[device];
  if (!address)
    if (int error = device_alloc(device, it->second.size, &address)) return result(error);
  *out = address;
  return cudaSuccess;
}

RUNTIME_API cudaMemcpyToSymbol(const void* symbol, const void* from, size_t size, size_t offset,
                               cudaMemcpyKind kind) {
  void* to;
  if (cudaError_t error = cudaGetSymbolAddress(&to, symbol)) return error;
  return cudaMemcpy(static_cast<char*>(to) + offset, from, size, kind);
}

extern "C" FK_API unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared,
                                                       cudaStream_t stream) {
  pushed_launches.push_back({grid, block, shared, stream});
  return 0;
}

RUNTIME_API __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  if (pushed_launches.empty()) return result(cudaErrorInvalidConfiguration);
  LaunchConfiguration c = pushed_launches.back();
  pushed_launches.pop_back();
  *grid = c.grid;
  *block = c.block;
  *shared = c.shared;
  *static_cast<cudaStream_t*>(stream) = c.stream;
  return cudaSuccess;
}

RUNTIME_API __cudaGetKernel(cudaKernel_t* kernel, const void* stub) {
  *kernel = static_cast<cudaKernel_t>(const_cast<void*>(stub));
  return cudaSuccess;
}

static int launch(const void* stub, void** arguments, cudaStream_t handle) {
  Stream* stream;
  if (int error = stream_resolve(handle, &stream)) return error;
  return launch_kernel(kernel_name(stub), arguments, stream);
}

RUNTIME_API cudaLaunchKernel(const void* stub, dim3, dim3, void** arguments, size_t, cudaStream_t stream) {
  ENTER();
  return result(launch(stub, arguments, stream));
}

RUNTIME_API __cudaLaunchKernel(cudaKernel_t kernel, dim3, dim3, void** arguments, size_t,
                               cudaStream_t stream) {
  ENTER();
  return result(launch(kernel, arguments, stream));
}

RUNTIME_API cudaLaunchKernelExC(const cudaLaunchConfig_t* configuration, const void* stub, void** arguments) {
  ENTER();
  return result(launch(stub, arguments, configuration->stream));
}

RUNTIME_API cudaFuncGetAttributes(cudaFuncAttributes* a, const void*) {
  memset(a, 0, sizeof *a);
  a->maxThreadsPerBlock = 1024;
  a->numRegs = 32;
  a->binaryVersion = a->ptxVersion = 90;
  return cudaSuccess;
}

RUNTIME_API cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }

RUNTIME_API cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, size_t) {
  *blocks = 2;
  return cudaSuccess;
}

RUNTIME_API cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int, size_t,
                                                                   unsigned) {
  *blocks = 2;
  return cudaSuccess;
}
