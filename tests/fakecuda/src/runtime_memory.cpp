// Memory and copies.
#include <algorithm>
#include <cstring>

#include "capture.h"
#include "runtime_api.h"

using namespace fk;

// --- Memory. -------------------------------------------------------------------------

RUNTIME_API cudaMemGetInfo(size_t* free, size_t* total) {
  ENTER();
  device_memory_info(current_device(), free, total);
  return cudaSuccess;
}

RUNTIME_API cudaMalloc(void** out, size_t size) {
  ENTER();
  UNSAFE_IN_CAPTURES();
  return result(device_alloc(current_device(), size, out));
}

RUNTIME_API cudaFree(void* p) {
  ENTER();
  UNSAFE_IN_CAPTURES();
  current_device();  // cudaFree(0) is how programs make the context
  return result(device_free(p));
}

RUNTIME_API cudaMallocAsync(void** out, size_t size, cudaStream_t handle) {
  ENTER();
  RESOLVE(stream, handle);
  return result(device_alloc(stream->device, size, out));
}

RUNTIME_API cudaFreeAsync(void* p, cudaStream_t handle) {
  ENTER();
  RESOLVE(stream, handle);
  return result(device_free_async(p, stream));
}

RUNTIME_API cudaHostAlloc(void** out, size_t size, unsigned) {
  ENTER();
  UNSAFE_IN_CAPTURES();
  current_device();
  return result(host_alloc(size, out));
}

RUNTIME_API cudaMallocHost(void** out, size_t size) {
  ENTER();
  UNSAFE_IN_CAPTURES();
  current_device();
  return result(host_alloc(size, out));
}

RUNTIME_API cudaFreeHost(void* p) {
  ENTER();
  UNSAFE_IN_CAPTURES();
  return result(host_free(p));
}

RUNTIME_API cudaHostRegister(void* p, size_t size, unsigned) {
  ENTER();
  UNSAFE_IN_CAPTURES();
  current_device();
  return result(host_register(p, size));
}

RUNTIME_API cudaHostUnregister(void* p) {
  ENTER();
  UNSAFE_IN_CAPTURES();
  return result(host_unregister(p));
}

RUNTIME_API cudaHostGetDevicePointer(void** device, void* p, unsigned) {
  ENTER();
  if (pointer_info(p).kind != Kind::pinned) return result(kInvalidValue);
  *device = p;
  return cudaSuccess;
}

static cudaMemoryType memory_type(Kind kind) {
  switch (kind) {
    case Kind::pinned:
      return cudaMemoryTypeHost;
    case Kind::device:
      return cudaMemoryTypeDevice;
    default:
      return cudaMemoryTypeUnregistered;
  }
}

RUNTIME_API cudaPointerGetAttributes(cudaPointerAttributes* a, const void* p) {
  ENTER();
  PointerInfo info = pointer_info(p);
  memset(a, 0, sizeof *a);
  a->type = memory_type(info.kind);
  a->device = -2;  // cudaInvalidDeviceId
  if (a->type == cudaMemoryTypeUnregistered) return cudaSuccess;
  a->device = std::max(info.device, 0);
  a->devicePointer = const_cast<void*>(p);
  if (info.kind != Kind::device) a->hostPointer = const_cast<void*>(p);
  return cudaSuccess;
}

// --- Copies. -------------------------------------------------------------------------

RUNTIME_API cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind kind,
                            cudaStream_t handle) {
  ENTER();
  RESOLVE(stream, handle);
  return result(copy(to, from, size, kind, stream, false));
}

RUNTIME_API cudaMemcpy(void* to, const void* from, size_t size, cudaMemcpyKind kind) {
  ENTER();
  UNSAFE_IN_CAPTURES();
  RESOLVE(stream, nullptr);
  return result(copy(to, from, size, kind, stream, true));
}

RUNTIME_API cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t size, cudaStream_t handle) {
  ENTER();
  RESOLVE(stream, handle);
  return result(copy(to, from, size, kDeviceToDevice, stream, false));
}

RUNTIME_API cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind kind, cudaStream_t handle) {
  ENTER();
  RESOLVE(stream, handle);
  Rows rows{to_pitch, from_pitch, width, height};
  return result(copy_rows(to, from, rows, kind, stream));
}

RUNTIME_API cudaMemset(void* p, int value, size_t size) {
  ENTER();
  RESOLVE(stream, nullptr);
  auto byte = static_cast<unsigned char>(value);
  return result(fill(p, &byte, 1, size, stream, false));
}

RUNTIME_API cudaMemsetAsync(void* p, int value, size_t size, cudaStream_t handle) {
  ENTER();
  RESOLVE(stream, handle);
  auto byte = static_cast<unsigned char>(value);
  return result(fill(p, &byte, 1, size, stream, false));
}
