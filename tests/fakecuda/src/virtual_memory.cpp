// cuMemCreate, cuMemMap and the like: PyTorch's expandable segments. A block of torch's may then lie in
// several regions, and a copy into it in several spans.
#include <sys/mman.h>

#include <algorithm>

#include "memory.h"
#include "state.h"

namespace fk {

namespace {

struct Physical {
  BackingPtr backing;
  size_t size;
  int device;
  CUmemAllocationProp prop;
};

std::map<uintptr_t, size_t> reservations;

Physical* physical(CUmemGenericAllocationHandle handle) { return reinterpret_cast<Physical*>(handle); }

}  // namespace

int vmm_reserve(size_t size, size_t alignment, CUdeviceptr* out) {
  Lock lock(state().mu);
  uintptr_t at = reserve_addresses(size, std::max(alignment, kHugePage));
  if (!at) return kOutOfMemory;
  reservations[at] = size;
  *out = at;
  return kOk;
}

int vmm_unreserve(CUdeviceptr address, size_t size) {
  Lock lock(state().mu);
  if (!reservations.erase(address)) return kInvalidValue;
  munmap(reinterpret_cast<void*>(address), size);
  return kOk;
}

int vmm_create(size_t size, const CUmemAllocationProp* prop, CUmemGenericAllocationHandle* out) {
  Lock lock(state().mu);
  int device = prop->location.id;
  if (!valid_device(device)) return kInvalidDevice;
  if (!device_has_room(device, size)) return kOutOfMemory;
  BackingPtr backing = new_backing(size);
  if (!backing) return kOutOfMemory;
  account_device(device, int64_t(size));
  *out = reinterpret_cast<CUmemGenericAllocationHandle>(new Physical{backing, size, device, *prop});
  return kOk;
}

// The bytes stay for as long as a mapping of them does.
int vmm_release(CUmemGenericAllocationHandle handle) {
  Lock lock(state().mu);
  account_device(physical(handle)->device, -int64_t(physical(handle)->size));
  delete physical(handle);
  return kOk;
}

int vmm_map(CUdeviceptr at, size_t size, size_t offset, CUmemGenericAllocationHandle handle) {
  Lock lock(state().mu);
  Region region;
  region.base = at;
  region.size = size;
  region.kind = Kind::device;
  region.device = physical(handle)->device;
  region.backing = physical(handle)->backing;
  region.backing_offset = offset;
  regions()[at] = region;
  return kOk;
}

int vmm_unmap(CUdeviceptr address, size_t size) {
  Lock lock(state().mu);
  for (auto it = regions().lower_bound(address); it != regions().end() && it->first < address + size;)
    forget_region((it++)->first);
  return kOk;
}

int vmm_properties(CUmemGenericAllocationHandle handle, CUmemAllocationProp* out) {
  *out = physical(handle)->prop;
  return kOk;
}

}  // namespace fk
