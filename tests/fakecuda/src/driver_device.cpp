// cuInit, devices, contexts.
#include <cstdio>
#include <cstring>
#include <vector>

#include "capture.h"
#include "driver_api.h"

using namespace fk;

static thread_local std::vector<Context*> context_stack;

CUcontext handle_of(Context* context) { return reinterpret_cast<CUcontext>(context); }
static Context* context_in(CUcontext handle) { return reinterpret_cast<Context*>(handle); }
CUcontext context_of(int device) { return device < 0 ? nullptr : handle_of(state().devices[device].primary); }

DRIVER_API cuInit(unsigned) {
  ENTER_ALWAYS();
  return CUDA_SUCCESS;
}

DRIVER_API cuDriverGetVersion(int* version) {
  *version = CUDA_VERSION;
  return CUDA_SUCCESS;
}

DRIVER_API cuDeviceGetCount(int* count) {
  *count = config().devices;
  return CUDA_SUCCESS;
}

DRIVER_API cuDeviceGet(CUdevice* device, int ordinal) {
  ENTER_ALWAYS();
  CHECK_DEVICE(ordinal);
  *device = ordinal;
  return CUDA_SUCCESS;
}

DRIVER_API cuDeviceGetName(char* text, int size, CUdevice device) {
  snprintf(text, size, "FakeCUDA emulated device %d", device);
  return CUDA_SUCCESS;
}

DRIVER_API cuDeviceGetUuid(CUuuid* uuid, CUdevice device) {
  memset(uuid, 0xFA, sizeof *uuid);
  uuid->bytes[15] = char(device);
  return CUDA_SUCCESS;
}

DRIVER_API cuDeviceTotalMem(size_t* size, CUdevice) {
  *size = config().memory;
  return CUDA_SUCCESS;
}

DRIVER_API cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  CHECK_DEVICE(device);
  return result(device_attribute(attribute, device, value));
}

DRIVER_API cuDeviceGetPCIBusId(char* text, int size, CUdevice device) {
  snprintf(text, size, "0000:%02x:00.0", device + 1);
  return CUDA_SUCCESS;
}

DRIVER_API cuDeviceCanAccessPeer(int* value, CUdevice device, CUdevice peer) {
  *value = device != peer;
  return CUDA_SUCCESS;
}

DRIVER_API cuDevicePrimaryCtxRetain(CUcontext* out, CUdevice device) {
  ENTER_ALWAYS();
  CHECK_DEVICE(device);
  activate_device(device);
  *out = context_of(device);
  return CUDA_SUCCESS;
}

DRIVER_API cuDevicePrimaryCtxRelease(CUdevice) { return CUDA_SUCCESS; }

DRIVER_API cuDevicePrimaryCtxGetState(CUdevice device, unsigned* flags, int* active) {
  CHECK_DEVICE(device);
  if (flags) *flags = 0;
  if (active) *active = device_active(device);
  return CUDA_SUCCESS;
}

DRIVER_API cuDevicePrimaryCtxSetFlags(CUdevice, unsigned) { return CUDA_SUCCESS; }

DRIVER_API cuCtxGetCurrent(CUcontext* context) {
  *context = handle_of(bound_context());
  return CUDA_SUCCESS;
}

DRIVER_API cuCtxSetCurrent(CUcontext context) {
  ENTER_ALWAYS();
  bind_context(context_in(context));
  return CUDA_SUCCESS;
}

DRIVER_API cuCtxPushCurrent(CUcontext context) {
  ENTER_ALWAYS();
  context_stack.push_back(bound_context());
  bind_context(context_in(context));
  return CUDA_SUCCESS;
}

DRIVER_API cuCtxPopCurrent(CUcontext* context) {
  if (bound_device() < 0 && context_stack.empty()) return result(kInvalidContext);
  if (context) *context = handle_of(bound_context());
  Context* below = nullptr;
  if (!context_stack.empty()) {
    below = context_stack.back();
    context_stack.pop_back();
  }
  bind_context(below);
  return CUDA_SUCCESS;
}

DRIVER_API cuCtxGetDevice(CUdevice* device) {
  ENTER_CONTEXT();
  *device = bound_device();
  return CUDA_SUCCESS;
}

DRIVER_API cuCtxSynchronize() {
  ENTER_CONTEXT();
  UNSAFE_IN_CAPTURES();
  return result(device_synchronize(bound_device()));
}

// --- Green contexts: parts of a device with default streams of their own. --------------------------------

DRIVER_API cuGreenCtxCreate(CUgreenCtx* out, CUdevResourceDesc, CUdevice device, unsigned) {
  ENTER();
  CHECK_DEVICE(device);
  *out = reinterpret_cast<CUgreenCtx>(new Context{device});
  return CUDA_SUCCESS;
}

DRIVER_API cuCtxFromGreenCtx(CUcontext* out, CUgreenCtx green) {
  *out = reinterpret_cast<CUcontext>(green);
  return CUDA_SUCCESS;
}

DRIVER_API cuGreenCtxStreamCreate(CUstream* out, CUgreenCtx green, unsigned flags, int priority) {
  ENTER();
  UNSAFE_IN_CAPTURES();
  return result(
      stream_create(reinterpret_cast<Context*>(green), flags, priority, reinterpret_cast<Stream**>(out)));
}

// It stays: streams may point to it.
DRIVER_API cuGreenCtxDestroy(CUgreenCtx) { return CUDA_SUCCESS; }

DRIVER_API cuCtxGetStreamPriorityRange(int* least, int* greatest) {
  if (least) *least = 0;
  if (greatest) *greatest = -5;
  return CUDA_SUCCESS;
}

DRIVER_API cuCtxEnablePeerAccess(CUcontext, unsigned) { return CUDA_SUCCESS; }
