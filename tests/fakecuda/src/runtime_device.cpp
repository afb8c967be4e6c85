// Errors, versions, devices, memory pools.
#include <cstdio>
#include <cstring>
#include <mutex>
#include <unordered_map>

#include "capture.h"
#include "runtime_api.h"

using namespace fk;

static thread_local int last_error = kOk;

cudaError_t result(int error) {
  if (error) last_error = error;
  return static_cast<cudaError_t>(error);
}

extern "C" FK_API int fakecuda_runtime_stub(const char* name) { return result(stub(name)); }

// --- Errors and versions. ------------------------------------------------------------

RUNTIME_API cudaGetLastError() {
  int error = sticky_error() ? sticky_error() : last_error;
  last_error = sticky_error();
  return static_cast<cudaError_t>(error);
}

RUNTIME_API cudaPeekAtLastError() {
  return static_cast<cudaError_t>(sticky_error() ? sticky_error() : last_error);
}

extern "C" FK_API const char* cudaGetErrorString(cudaError_t error) { return error_text(error); }

extern "C" FK_API const char* cudaGetErrorName(cudaError_t error) {
  static std::mutex mutex;
  static std::unordered_map<int, std::string> names;
  std::lock_guard<std::mutex> lock(mutex);
  std::string& name = names[error];
  if (name.empty()) name = std::string("cudaError_") + error_name(error);
  return name.c_str();
}

RUNTIME_API cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

RUNTIME_API cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

// --- Devices. ------------------------------------------------------------------------

RUNTIME_API cudaGetDeviceCount(int* count) {
  *count = 0;
  ENTER_ALWAYS();
  *count = config().devices;
  return cudaSuccess;
}

RUNTIME_API cudaGetDevice(int* device) {
  ENTER_ALWAYS();
  *device = current_device(false);
  return cudaSuccess;
}

RUNTIME_API cudaSetDevice(int device) {
  ENTER_ALWAYS();
  CHECK_DEVICE(device);
  bind_device(device);
  return cudaSuccess;
}

RUNTIME_API cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  CHECK_DEVICE(device);
  return result(device_attribute(attribute, device, value));
}

static int attribute(int which, int device) {
  int value;
  device_attribute(which, device, &value);
  return value;
}

RUNTIME_API cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
  ENTER_ALWAYS();
  CHECK_DEVICE(device);
  auto get = [&](cudaDeviceAttr which) { return attribute(which, device); };
  memset(p, 0, sizeof *p);
  snprintf(p->name, sizeof p->name, "FakeCUDA emulated device %d", device);
  memset(&p->uuid, 0xFA, sizeof p->uuid);
  p->uuid.bytes[15] = char(device);
  p->totalGlobalMem = config().memory;
  p->major = get(cudaDevAttrComputeCapabilityMajor);
  p->minor = get(cudaDevAttrComputeCapabilityMinor);
  p->warpSize = get(cudaDevAttrWarpSize);
  p->multiProcessorCount = get(cudaDevAttrMultiProcessorCount);
  p->maxThreadsPerBlock = get(cudaDevAttrMaxThreadsPerBlock);
  p->maxThreadsPerMultiProcessor = get(cudaDevAttrMaxThreadsPerMultiProcessor);
  p->maxBlocksPerMultiProcessor = get(cudaDevAttrMaxBlocksPerMultiprocessor);
  for (int i = 0; i < 3; i++) {
    p->maxThreadsDim[i] = get(cudaDeviceAttr(cudaDevAttrMaxBlockDimX + i));
    p->maxGridSize[i] = get(cudaDeviceAttr(cudaDevAttrMaxGridDimX + i));
  }
  p->regsPerBlock = get(cudaDevAttrMaxRegistersPerBlock);
  p->regsPerMultiprocessor = get(cudaDevAttrMaxRegistersPerMultiprocessor);
  p->sharedMemPerBlock = get(cudaDevAttrMaxSharedMemoryPerBlock);
  p->sharedMemPerBlockOptin = get(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  p->sharedMemPerMultiprocessor = get(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  p->reservedSharedMemPerBlock = 1024;
  p->totalConstMem = get(cudaDevAttrTotalConstantMemory);
  p->memPitch = get(cudaDevAttrMaxPitch);
  p->textureAlignment = get(cudaDevAttrTextureAlignment);
  p->memoryBusWidth = get(cudaDevAttrGlobalMemoryBusWidth);
  p->l2CacheSize = get(cudaDevAttrL2CacheSize);
  p->pciBusID = get(cudaDevAttrPciBusId);
  p->asyncEngineCount = get(cudaDevAttrAsyncEngineCount);
  p->canMapHostMemory = p->concurrentKernels = p->unifiedAddressing = 1;
  p->streamPrioritiesSupported = p->managedMemory = p->memoryPoolsSupported = 1;
  p->hostRegisterSupported = 1;
  return cudaSuccess;
}

RUNTIME_API cudaDeviceGetPCIBusId(char* text, int size, int device) {
  CHECK_DEVICE(device);
  snprintf(text, size, "0000:%02x:00.0", device + 1);
  return cudaSuccess;
}

RUNTIME_API cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  ENTER();
  if (least) *least = 0;
  if (greatest) *greatest = -5;
  return cudaSuccess;
}

RUNTIME_API cudaDeviceCanAccessPeer(int* value, int device, int peer) {
  CHECK_DEVICE(device);
  CHECK_DEVICE(peer);
  *value = device != peer;
  return cudaSuccess;
}

RUNTIME_API cudaDeviceEnablePeerAccess(int peer, unsigned) {
  CHECK_DEVICE(peer);
  return cudaSuccess;
}

RUNTIME_API cudaDeviceSynchronize() {
  ENTER();
  UNSAFE_IN_CAPTURES();
  return result(device_synchronize(current_device()));
}

// --- Driver entry points, memory pools, profiler. ----

RUNTIME_API cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned version,
                                             unsigned long long flags,
                                             cudaDriverEntryPointQueryResult* status) {
  CUdriverProcAddressQueryResult found;
  CUresult error = cuGetProcAddress(name, function, version, flags, &found);
  if (status) *status = error ? cudaDriverEntryPointSymbolNotFound : cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

RUNTIME_API cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int device) {
  CHECK_DEVICE(device);
  *pool = reinterpret_cast<cudaMemPool_t>(uintptr_t(device + 16));
  return cudaSuccess;
}

RUNTIME_API cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return cudaSuccess; }

RUNTIME_API cudaMemPoolGetAttribute(cudaMemPool_t, cudaMemPoolAttr, void* value) {
  *static_cast<uint64_t*>(value) = 0;
  return cudaSuccess;
}

RUNTIME_API cudaMemPoolSetAccess(cudaMemPool_t, const cudaMemAccessDesc*, size_t) { return cudaSuccess; }

RUNTIME_API cudaMemPoolTrimTo(cudaMemPool_t, size_t) { return cudaSuccess; }
RUNTIME_API cudaProfilerStart() { return cudaSuccess; }
RUNTIME_API cudaProfilerStop() { return cudaSuccess; }
