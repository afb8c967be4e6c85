// Pinned memory: cudaHostAlloc, cudaHostRegister and what they cost.
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "arena.h"
#include "counters.h"
#include "guard.h"
#include "memory.h"
#include "races.h"
#include "state.h"
#include "streams.h"
#include "timing.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

namespace fk {

namespace {

constexpr int kPoison = 0xCB;
std::mutex pin_mutex;  // the driver pins for one thread at a time

void wait_out(TimePoint until) {
  if (!config().pin_busy) return sleep_until(until);
  while (Clock::now() < until) {
  }
}

// Runs `work` (which makes the pages resident) and stretches it to FAKECUDA_PIN_COST.
template <typename Work>
void with_pin_cost(size_t size, Work work) {
  std::unique_lock<std::mutex> lock(pin_mutex, std::defer_lock);
  double cost = config().pin_cost * double(size) / double(1 << 30);
  if (cost > 0) lock.lock();
  TimePoint start = Clock::now();
  work();
  if (cost > 0) wait_out(start + duration(cost));
  count(Counter::pin_us, microseconds(Clock::now() - start));
}

// Page-locked memory is resident: CUDA faults it in when it pins it.
void make_resident(void* p, size_t size) {
  uintptr_t lo = reinterpret_cast<uintptr_t>(p) & ~uintptr_t(kHostPage - 1);
  size_t length = whole_pages(reinterpret_cast<uintptr_t>(p) + size) - lo;
  void* at = reinterpret_cast<void*>(lo);
  if (madvise(at, length, MADV_POPULATE_WRITE)) madvise(at, length, MADV_POPULATE_READ);
}

// Under GUARD pinned memory is mapped twice: the user's view can be taken away while the engine still reads
// or writes through the other.
bool map_twice(size_t size, void** view, BackingPtr* backing) {
  int fd = memfd_create("fakecuda-pinned", MFD_CLOEXEC);
  if (fd < 0 || ftruncate(fd, off_t(size))) return false;
  void* user = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  void* engine = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  if (user == MAP_FAILED || engine == MAP_FAILED) return false;
  *view = user;
  *backing = std::make_shared<Backing>();
  (*backing)->data = static_cast<char*>(engine);
  (*backing)->size = size;
  return true;
}

void* map_pinned(size_t size, Region* region) {
  void* view = nullptr;
  region->guard_reads = region->guard_writes = config().guard;
  region->in_arena = !config().guard && pinned_arena().enabled();
  with_pin_cost(size, [&] {
    if (config().guard)
      map_twice(size, &view, &region->backing);
    else if (region->in_arena)
      view = pinned_arena().alloc(size);
    else
      view = map_anonymous(size);
    if (view && !region->in_arena) make_resident(view, size);
  });
  if (!view && region->in_arena)
    say("the pinned arena is full: %zu more bytes asked (FAKECUDA_PIN_ARENA)", size);
  return view;
}

void add_pinned(const Region& region, Counter counter) {
  regions()[region.base] = region;
  count(counter);
  gauge_add(Counter::pinned_bytes, int64_t(region.size));
}

void remove_pinned(const Region& region) {
  gauge_add(Counter::pinned_bytes, -int64_t(region.size));
  forget_region(region.base);
}

bool overlaps_region(uintptr_t base, size_t size) {
  auto next = regions().lower_bound(base);
  return find_region(base) || (next != regions().end() && next->first < base + size);
}

int synchronize_all_devices() {
  int error = kOk;
  for (int device = 0; device < config().devices; device++)
    if (int e = device_synchronize(device)) error = e;
  return error;
}

// Freeing and unregistering wait for the work that uses the memory. Returns false if `p` is no such memory.
bool wait_before_release(void* p, bool registered, const char* what, int* error) {
  {
    Lock lock(state().mu);
    Region* region = region_at(p);
    if (!region || region->kind != Kind::pinned || region->registered != registered) return false;
    check_free(region->base, region->end(), what);
  }
  *error = synchronize_all_devices();
  return true;
}

}  // namespace

int host_alloc(size_t size, void** out) {
  *out = nullptr;
  if (!size) return kOk;
  size = whole_pages(size);
  Region region;
  void* view = map_pinned(size, &region);
  if (!view) return kOutOfMemory;
  if (config().poison) memset(view, kPoison, size);
  region.base = reinterpret_cast<uintptr_t>(view);
  region.size = size;
  region.kind = Kind::pinned;
  Lock lock(state().mu);
  add_pinned(region, Counter::pinned_allocs);
  *out = view;
  return kOk;
}

int host_free(void* p) {
  int error = kOk;
  if (!p) return kOk;
  if (!wait_before_release(p, false, "cudaFreeHost", &error)) return kInvalidValue;
  Lock lock(state().mu);
  Region* region = region_at(p);
  if (!region) return kInvalidValue;
  Region gone = *region;
  remove_pinned(gone);
  count(Counter::pinned_frees);
  if (gone.in_arena)
    pinned_arena().free(static_cast<char*>(p), gone.size);
  else
    munmap(p, gone.size);
  return error;
}

int host_register(void* p, size_t size) {
  if (!p || !size) return kInvalidValue;
  Region region;
  region.base = reinterpret_cast<uintptr_t>(p);
  region.size = size;
  region.kind = Kind::pinned;
  region.registered = true;
  {
    Lock lock(state().mu);
    if (overlaps_region(region.base, size)) return kHostAlreadyRegistered;
  }
  with_pin_cost(size, [&] {
    if (config().pin_cost > 0) make_resident(p, size);
  });
  if (config().guard) allow_guards_on_registered(&region);
  Lock lock(state().mu);
  if (overlaps_region(region.base, size)) return kHostAlreadyRegistered;
  add_pinned(region, Counter::pinned_registers);
  return kOk;
}

int host_unregister(void* p) {
  int error = kOk;
  if (!wait_before_release(p, true, "cudaHostUnregister", &error)) return kHostNotRegistered;
  Lock lock(state().mu);
  Region* region = region_at(p);
  if (!region) return kHostNotRegistered;
  remove_pinned(Region(*region));
  count(Counter::pinned_unregisters);
  return error;
}

}  // namespace fk
