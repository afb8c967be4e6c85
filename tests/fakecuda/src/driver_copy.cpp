// Copies and memset.
#include "capture.h"
#include "driver_api.h"

using namespace fk;

DRIVER_API cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t size, CUstream handle) {
  ENTER_CONTEXT();
  RESOLVE(stream, handle);
  return result(copy(pointer(to), from, size, kHostToDevice, stream, false));
}

DRIVER_API cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t size, CUstream handle) {
  ENTER_CONTEXT();
  RESOLVE(stream, handle);
  return result(copy(to, pointer(from), size, kDeviceToHost, stream, false));
}

DRIVER_API cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t size, CUstream handle) {
  ENTER_CONTEXT();
  RESOLVE(stream, handle);
  return result(copy(pointer(to), pointer(from), size, kDeviceToDevice, stream, false));
}

DRIVER_API cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t size, CUstream handle) {
  ENTER_CONTEXT();
  RESOLVE(stream, handle);
  return result(copy(pointer(to), pointer(from), size, kDefault, stream, false));
}

DRIVER_API cuMemcpyPeerAsync(CUdeviceptr to, CUcontext, CUdeviceptr from, CUcontext, size_t size,
                             CUstream handle) {
  ENTER_CONTEXT();
  RESOLVE(stream, handle);
  return result(copy(pointer(to), pointer(from), size, kDeviceToDevice, stream, false));
}

DRIVER_API cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t size) {
  ENTER_CONTEXT();
  UNSAFE_IN_CAPTURES();
  RESOLVE(stream, nullptr);
  return result(copy(pointer(to), from, size, kHostToDevice, stream, true));
}

DRIVER_API cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t size) {
  ENTER_CONTEXT();
  UNSAFE_IN_CAPTURES();
  RESOLVE(stream, nullptr);
  return result(copy(to, pointer(from), size, kDeviceToHost, stream, true));
}

DRIVER_API cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t size) {
  ENTER_CONTEXT();
  UNSAFE_IN_CAPTURES();
  RESOLVE(stream, nullptr);
  return result(copy(pointer(to), pointer(from), size, kDeviceToDevice, stream, true));
}

DRIVER_API cuMemcpy(CUdeviceptr to, CUdeviceptr from, size_t size) {
  ENTER_CONTEXT();
  UNSAFE_IN_CAPTURES();
  RESOLVE(stream, nullptr);
  return result(copy(pointer(to), pointer(from), size, kDefault, stream, true));
}

DRIVER_API cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t times, CUstream handle) {
  ENTER_CONTEXT();
  RESOLVE(stream, handle);
  return result(fill(pointer(to), &value, sizeof value, times, stream, false));
}

DRIVER_API cuMemsetD32Async(CUdeviceptr to, unsigned value, size_t times, CUstream handle) {
  ENTER_CONTEXT();
  RESOLVE(stream, handle);
  return result(fill(pointer(to), &value, sizeof value, times, stream, false));
}

DRIVER_API cuMemsetD8_v2(CUdeviceptr to, unsigned char value, size_t times) {
  ENTER_CONTEXT();
  UNSAFE_IN_CAPTURES();
  RESOLVE(stream, nullptr);
  return result(fill(pointer(to), &value, sizeof value, times, stream, true));
}

DRIVER_API cuMemsetD32_v2(CUdeviceptr to, unsigned value, size_t times) {
  ENTER_CONTEXT();
  UNSAFE_IN_CAPTURES();
  RESOLVE(stream, nullptr);
  return result(fill(pointer(to), &value, sizeof value, times, stream, true));
}
