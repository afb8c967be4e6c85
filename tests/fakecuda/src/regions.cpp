// Which memory is whose: the table of regions and the window of device addresses.
#include <sys/mman.h>

#include <algorithm>
#include <atomic>

#include "guard.h"
#include "memory.h"
#include "races.h"
#include "state.h"

namespace fk {

namespace {

constexpr uintptr_t kWindow = 0x200000000000ull;
constexpr size_t kGap = 4096;  // an overrun never lands in a neighbour

std::atomic<uintptr_t> window_end{kWindow};

Span span_of(const Region& region, uintptr_t address, size_t size) {
  char* data = reinterpret_cast<char*>(address);
  if (region.backing) data = region.backing->data + region.backing_offset + (address - region.base);
  bool bypass = region.registered && (region.guard_reads || region.guard_writes);
  return {data, size, region.backing, bypass};
}

}  // namespace

// Never destroyed: worker threads may still run while the process exits.
std::map<uintptr_t, Region>& regions() {
  static auto* table = new std::map<uintptr_t, Region>();
  return *table;
}

Region* find_region(uintptr_t address) {
  auto it = regions().upper_bound(address);
  if (it == regions().begin()) return nullptr;
  Region& region = std::prev(it)->second;
  return address < region.end() ? &region : nullptr;
}

Region* region_at(const void* base) {
  auto it = regions().find(reinterpret_cast<uintptr_t>(base));
  return it == regions().end() ? nullptr : &it->second;
}

// Called from the signal handler too: reads nothing but the atomic.
bool in_device_window(uintptr_t address) { return address >= kWindow && address < window_end; }

bool resolve(uintptr_t address, size_t size, std::vector<Span>* spans) {
  while (size) {
    size_t n = size;
    if (Region* region = find_region(address)) {
      n = std::min(n, region->end() - address);
      spans->push_back(span_of(*region, address, n));
    } else {
      if (in_device_window(address)) return false;
      auto next = regions().lower_bound(address);
      if (next != regions().end()) n = std::min(n, next->first - address);
      spans->push_back({reinterpret_cast<char*>(address), n, nullptr, false});
    }
    address += n;
    size -= n;
  }
  return true;
}

void forget_region(uintptr_t base) {
  auto it = regions().find(base);
  if (it == regions().end()) return;
  uintptr_t end = it->second.end();
  regions().erase(it);
  forget_accesses(base, end);
  forget_guards(base, end);
}

PointerInfo pointer_info(const void* p) {
  Lock lock(state().mu);
  uintptr_t address = reinterpret_cast<uintptr_t>(p);
  if (Region* region = find_region(address))
    return {region->kind, region->device, region->base, region->size};
  return {in_device_window(address) ? Kind::unknown_device : Kind::pageable, -1, 0, 0};
}

// New addresses in the window. Never reused, not even after cudaFree.
uintptr_t reserve_addresses(size_t size, size_t alignment) {
  uintptr_t at = round_up(window_end, alignment);
  void* p = mmap(reinterpret_cast<void*>(at), size, PROT_NONE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
  if (p == MAP_FAILED) return 0;
  window_end = at + size + kGap;
  return at;
}

void* map_anonymous(size_t size, int extra_flags) {
  void* p = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | extra_flags, -1, 0);
  return p == MAP_FAILED ? nullptr : p;
}

}  // namespace fk
