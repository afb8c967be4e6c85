// cudaMalloc, cudaFree and their asynchronous forms.
#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "arena.h"
#include "counters.h"
#include "memory.h"
#include "races.h"
#include "state.h"
#include "streams.h"

namespace fk {

namespace {

constexpr size_t kDeviceAlign = 512;
constexpr int kPoison = 0xDB;

void release(const Region& region) {
  uintptr_t base = region.base;
  size_t size = region.size;
  account_device(region.device, -int64_t(size));
  forget_region(base);
  munmap(reinterpret_cast<void*>(base), whole_pages(size));
  count(Counter::device_frees);
}

}  // namespace

Backing::~Backing() {
  if (!data) return;
  if (in_arena)
    device_arena().free(data, size);
  else
    munmap(data, size);
}

BackingPtr new_backing(size_t size) {
  auto backing = std::make_shared<Backing>();
  backing->size = size;
  backing->in_arena = device_arena().enabled();
  if (backing->in_arena) {
    backing->data = device_arena().alloc(size);
    if (!backing->data) say("the arena is full: %zu more bytes asked (FAKECUDA_ARENA)", size);
  } else {
    backing->data = static_cast<char*>(map_anonymous(size, MAP_NORESERVE));
  }
  if (!backing->data) return nullptr;
  if (config().poison) memset(backing->data, kPoison, size);
  return backing;
}

void account_device(int device, int64_t delta) {
  state().devices[device].bytes_used += delta;
  gauge_add(Counter::device_bytes, delta);
}

bool device_has_room(int device, size_t size) {
  return state().devices[device].bytes_used + size <= config().memory;
}

int device_alloc(int device, size_t size, void** out) {
  *out = nullptr;
  if (!size) return kOk;
  size = round_up(size, kDeviceAlign);
  Lock lock(state().mu);
  if (!device_has_room(device, size)) return kOutOfMemory;
  Region region;
  region.backing = new_backing(whole_pages(size));
  region.base = region.backing ? reserve_addresses(whole_pages(size), kHugePage) : 0;
  if (!region.base) return kOutOfMemory;
  region.size = size;
  region.kind = Kind::device;
  region.device = device;
  regions()[region.base] = region;
  account_device(device, int64_t(size));
  count(Counter::device_allocs);
  *out = reinterpret_cast<void*>(region.base);
  return kOk;
}

// cudaFree waits for the device, so it is never wrong in itself; the counter frees_in_flight tells that the
// program left the waiting to it.
int device_free(void* p) {
  if (!p) return kOk;
  int device;
  {
    Lock lock(state().mu);
    Region* region = region_at(p);
    if (!region || region->kind != Kind::device) {
      say("cudaFree(%p): not a live device allocation", p);
      return kInvalidValue;
    }
    device = region->device;
    check_free(region->base, region->end(), "cudaFree");
  }
  int error = device_synchronize(device);
  Lock lock(state().mu);
  Region* region = region_at(p);
  if (!region) return kInvalidValue;
  release(*region);
  return error;
}

// cudaFreeAsync: the memory goes when the stream gets there.
int device_free_async(void* p, Stream* stream) {
  Lock lock(state().mu);
  Region* region = region_at(p);
  if (!region || region->kind != Kind::device) return kInvalidValue;
  uintptr_t base = region->base;
  size_t size = region->size;
  enqueue_work(stream, [p](TimePoint ready) {
    Lock inner(state().mu);
    if (Region* gone = region_at(p)) release(*gone);
    return ready;
  });
  record_access(stream, base, size, true, "cudaFreeAsync");
  return kOk;
}

void device_memory_info(int device, size_t* free, size_t* total) {
  Lock lock(state().mu);
  uint64_t used = std::min(config().memory, state().devices[device].bytes_used);
  *total = config().memory;
  *free = config().memory - used;
}

}  // namespace fk
