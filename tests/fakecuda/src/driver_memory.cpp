// Memory of all kinds, and what a pointer is.
#include "capture.h"
#include "driver_api.h"

using namespace fk;

DRIVER_API cuMemGetInfo(size_t* free, size_t* total) {
  ENTER_CONTEXT();
  device_memory_info(bound_device(), free, total);
  return CUDA_SUCCESS;
}

DRIVER_API cuMemAlloc(CUdeviceptr* out, size_t size) {
  ENTER_CONTEXT();
  UNSAFE_IN_CAPTURES();
  if (!size) return result(kInvalidValue);
  return result(device_alloc(bound_device(), size, reinterpret_cast<void**>(out)));
}

DRIVER_API cuMemFree(CUdeviceptr p) {
  ENTER();
  UNSAFE_IN_CAPTURES();
  return result(device_free(pointer(p)));
}

DRIVER_API cuMemAllocAsync(CUdeviceptr* out, size_t size, CUstream handle) {
  ENTER_CONTEXT();
  RESOLVE(stream, handle);
  if (!size) return result(kInvalidValue);
  return result(device_alloc(stream->device, size, reinterpret_cast<void**>(out)));
}

DRIVER_API cuMemFreeAsync(CUdeviceptr p, CUstream handle) {
  ENTER();
  RESOLVE(stream, handle);
  return result(device_free_async(pointer(p), stream));
}

DRIVER_API cuMemHostAlloc(void** out, size_t size, unsigned) {
  ENTER_CONTEXT();
  UNSAFE_IN_CAPTURES();
  return result(host_alloc(size, out));
}

DRIVER_API cuMemAllocHost(void** out, size_t size) {
  ENTER_CONTEXT();
  UNSAFE_IN_CAPTURES();
  return result(host_alloc(size, out));
}

DRIVER_API cuMemFreeHost(void* p) {
  ENTER_CONTEXT();
  UNSAFE_IN_CAPTURES();
  return result(host_free(p));
}

DRIVER_API cuMemHostRegister(void* p, size_t size, unsigned) {
  ENTER_CONTEXT();
  UNSAFE_IN_CAPTURES();
  return result(host_register(p, size));
}

DRIVER_API cuMemHostUnregister(void* p) {
  ENTER_CONTEXT();
  UNSAFE_IN_CAPTURES();
  return result(host_unregister(p));
}

DRIVER_API cuMemHostGetDevicePointer(CUdeviceptr* device, void* p, unsigned) {
  ENTER();
  if (pointer_info(p).kind != Kind::pinned) return result(kInvalidValue);
  *device = reinterpret_cast<CUdeviceptr>(p);
  return CUDA_SUCCESS;
}

DRIVER_API cuMemHostGetFlags(unsigned* flags, void* p) {
  ENTER();
  if (pointer_info(p).kind != Kind::pinned) return result(kInvalidValue);
  *flags = 0;
  return CUDA_SUCCESS;
}

DRIVER_API cuMemGetAddressRange(CUdeviceptr* base, size_t* size, CUdeviceptr p) {
  PointerInfo info = pointer_info(pointer(p));
  if (info.kind != Kind::device) return result(kInvalidValue);
  if (base) *base = info.base;
  if (size) *size = info.size;
  return CUDA_SUCCESS;
}

// False for an attribute that is not emulated.
static bool attribute_of(const PointerInfo& info, CUdeviceptr p, CUpointer_attribute attribute, void* out) {
  int device = info.device < 0 ? 0 : info.device;
  switch (attribute) {
    case CU_POINTER_ATTRIBUTE_CONTEXT:
      *static_cast<CUcontext*>(out) = context_of(device);
      return true;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
      *static_cast<unsigned*>(out) = info.kind == Kind::pinned ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE;
      return true;
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
      *static_cast<CUdeviceptr*>(out) = p;
      return true;
    case CU_POINTER_ATTRIBUTE_BUFFER_ID:
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
      *static_cast<uint64_t*>(out) = info.base;
      return true;
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
      *static_cast<unsigned*>(out) = 0;
      return true;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
      *static_cast<int*>(out) = device;
      return true;
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
      *static_cast<size_t*>(out) = info.size;
      return true;
    default:
      return false;
  }
}

static bool known_to_cuda(const PointerInfo& info) {
  return info.kind == Kind::pinned || info.kind == Kind::device;
}

DRIVER_API cuPointerGetAttribute(void* out, CUpointer_attribute attribute, CUdeviceptr p) {
  ENTER_CONTEXT();
  PointerInfo info = pointer_info(pointer(p));
  if (!known_to_cuda(info)) return result(kInvalidValue);
  return result(attribute_of(info, p, attribute, out) ? kOk : kNotSupported);
}

// What the call for several attributes says of memory that CUDA does not know.
static void attribute_of_unknown(CUpointer_attribute attribute, void* out) {
  switch (attribute) {
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
      *static_cast<int*>(out) = -2;
      break;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
      *static_cast<unsigned*>(out) = 0;
      break;
    default:
      *static_cast<uint64_t*>(out) = 0;
  }
}

// Unlike the call for one attribute this one accepts any address.
DRIVER_API cuPointerGetAttributes(unsigned n, CUpointer_attribute* attributes, void** out, CUdeviceptr p) {
  ENTER_CONTEXT();
  PointerInfo info = pointer_info(pointer(p));
  for (unsigned i = 0; i < n; i++) {
    if (!known_to_cuda(info))
      attribute_of_unknown(attributes[i], out[i]);
    else if (!attribute_of(info, p, attributes[i], out[i]))
      return result(kNotSupported);
  }
  return CUDA_SUCCESS;
}

// --- Virtual memory management (PyTorch's expandable segments). ----------------------

DRIVER_API cuMemGetAllocationGranularity(size_t* granularity, const CUmemAllocationProp*,
                                         CUmemAllocationGranularity_flags) {
  *granularity = 2 << 20;
  return CUDA_SUCCESS;
}

DRIVER_API cuMemAddressReserve(CUdeviceptr* out, size_t size, size_t alignment, CUdeviceptr,
                               unsigned long long) {
  ENTER();
  return result(vmm_reserve(size, alignment, out));
}

DRIVER_API cuMemAddressFree(CUdeviceptr p, size_t size) {
  ENTER();
  return result(vmm_unreserve(p, size));
}

DRIVER_API cuMemCreate(CUmemGenericAllocationHandle* out, size_t size, const CUmemAllocationProp* properties,
                       unsigned long long) {
  ENTER();
  UNSAFE_IN_CAPTURES();
  return result(vmm_create(size, properties, out));
}

DRIVER_API cuMemRelease(CUmemGenericAllocationHandle handle) {
  ENTER();
  return result(vmm_release(handle));
}

DRIVER_API cuMemMap(CUdeviceptr at, size_t size, size_t offset, CUmemGenericAllocationHandle handle,
                    unsigned long long) {
  ENTER();
  UNSAFE_IN_CAPTURES();
  return result(vmm_map(at, size, offset, handle));
}

DRIVER_API cuMemUnmap(CUdeviceptr p, size_t size) {
  ENTER();
  UNSAFE_IN_CAPTURES();
  return result(vmm_unmap(p, size));
}

DRIVER_API cuMemSetAccess(CUdeviceptr, size_t, const CUmemAccessDesc*, size_t) { return CUDA_SUCCESS; }

DRIVER_API cuMemGetAllocationPropertiesFromHandle(CUmemAllocationProp* out,
                                                  CUmemGenericAllocationHandle handle) {
  return result(vmm_properties(handle, out));
}
