// Device, pinned and registered memory.
//
// A device pointer is an address in a window that is mapped PROT_NONE: CUDA promises that it means something
// to the device only, so host code that touches one must crash. The bytes live in a Backing elsewhere, which
// only the copy engines use. Device addresses are never handed out twice, so a stale pointer is recognised
// for ever.
#pragma once
#include <cuda.h>

#include <map>
#include <memory>
#include <vector>

#include "common.h"

namespace fk {

struct Stream;

enum class Kind { unknown_device, pageable, pinned, device };

// The bytes behind a region, alive for as long as a copy still uses them.
struct Backing {
  char* data = nullptr;
  size_t size = 0;
  bool in_arena = false;
  ~Backing();
};
using BackingPtr = std::shared_ptr<Backing>;

struct Region {
  uintptr_t base = 0;
  size_t size = 0;
  Kind kind = Kind::pageable;
  int device = -1;
  BackingPtr backing;  // null: the bytes are at `base` itself
  size_t backing_offset = 0;
  bool registered = false;    // cudaHostRegister: the user owns the memory
  bool in_arena = false;      // pinned memory out of FAKECUDA_PIN_ARENA
  bool guard_reads = false;   // GUARD can take write access away
  bool guard_writes = false;  // GUARD can take all access away
  uintptr_t end() const { return base + size; }
};

// A run of host memory that holds device or host bytes.
struct Span {
  char* data;
  size_t size;
  BackingPtr keep;
  bool bypass;  // the user's view may be protected: go through /proc/self/mem
};

struct PointerInfo {
  Kind kind;
  int device;
  uintptr_t base;
  size_t size;
};

// --- What the entry points call. -----------------------------------------------------------------------

FK_API int device_alloc(int device, size_t size, void** out);
FK_API int device_free(void* p);
FK_API int device_free_async(void* p, Stream* stream);
FK_API void device_memory_info(int device, size_t* free, size_t* total);

FK_API int host_alloc(size_t size, void** out);
FK_API int host_free(void* p);
FK_API int host_register(void* p, size_t size);
FK_API int host_unregister(void* p);

FK_API PointerInfo pointer_info(const void* p);

// Virtual memory management, as far as PyTorch's expandable segments go.
int vmm_reserve(size_t size, size_t alignment, CUdeviceptr* out);
int vmm_unreserve(CUdeviceptr address, size_t size);
int vmm_create(size_t size, const CUmemAllocationProp* prop, CUmemGenericAllocationHandle* out);
int vmm_release(CUmemGenericAllocationHandle handle);
int vmm_map(CUdeviceptr at, size_t size, size_t offset, CUmemGenericAllocationHandle handle);
int vmm_unmap(CUdeviceptr address, size_t size);
int vmm_properties(CUmemGenericAllocationHandle handle, CUmemAllocationProp* out);

// --- Inside the emulator; the caller holds the lock. ---------------------------------------------------

constexpr size_t kHostPage = 4096;
constexpr size_t kHugePage = size_t(2) << 20;
constexpr size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }
constexpr size_t whole_pages(size_t n) { return round_up(n, kHostPage); }

std::map<uintptr_t, Region>& regions();  // by base; they never overlap
Region* find_region(uintptr_t address);
Region* region_at(const void* base);  // only if `base` is where it starts
bool in_device_window(uintptr_t address);
// The memory that holds [address, address + size). False if a part of it is a device address that is not
// allocated.
bool resolve(uintptr_t address, size_t size, std::vector<Span>* spans);
// Takes a region out of the books, with what RACE and GUARD know of it; the caller unmaps its addresses.
void forget_region(uintptr_t base);

void* map_anonymous(size_t size, int extra_flags = 0);  // nullptr: no memory
uintptr_t reserve_addresses(size_t size, size_t alignment);
BackingPtr new_backing(size_t size);
bool device_has_room(int device, size_t size);
void account_device(int device, int64_t delta);

}  // namespace fk
