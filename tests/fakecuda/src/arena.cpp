#include "arena.h"

#include <sys/mman.h>

#include "config.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace fk {

namespace {

constexpr size_t kHugePage = size_t(2) << 20;
constexpr size_t kUnit = size_t(64) << 10;  // blocks are multiples of this

size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

void fault_in(char* block, size_t size) {
  madvise(block, size, MADV_HUGEPAGE);
  if (!madvise(block, size, MADV_POPULATE_WRITE)) return;
  for (size_t i = 0; i < size; i += 4096) const_cast<volatile char*>(block)[i] = 0;
}

}  // namespace

void Arena::init(const char* knob, size_t size) {
  size = round_up(size, kHugePage);
  if (!size) return;
  TimePoint start = Clock::now();
  void* p = mmap(nullptr, size + kHugePage, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) {
    say("%s: cannot map %zu bytes, going on without", knob, size);
    return;
  }
  base_ = reinterpret_cast<char*>(round_up(reinterpret_cast<uintptr_t>(p), kHugePage));
  fault_in(base_, size);
  holes_[0] = size;
  if (config().verbose) say("%s: %zu bytes ready after %.3f s", knob, size, seconds(Clock::now() - start));
}

// First fit.
char* Arena::alloc(size_t size) {
  size = round_up(size, kUnit);
  std::lock_guard<std::mutex> lock(mutex_);
  for (auto it = holes_.begin(); it != holes_.end(); ++it) {
    auto [offset, length] = *it;
    if (length < size) continue;
    holes_.erase(it);
    if (length > size) holes_[offset + size] = length - size;
    return base_ + offset;
  }
  return nullptr;
}

void Arena::free(char* block, size_t size) {
  size_t offset = block - base_, length = round_up(size, kUnit);
  std::lock_guard<std::mutex> lock(mutex_);
  auto after = holes_.lower_bound(offset);
  if (after != holes_.end() && after->first == offset + length) {
    length += after->second;
    after = holes_.erase(after);
  }
  if (after != holes_.begin()) {
    auto before = std::prev(after);
    if (before->first + before->second == offset) {
      before->second += length;
      return;
    }
  }
  holes_[offset] = length;
}

Arena& device_arena() {
  static auto* arena = new Arena();
  return *arena;
}

Arena& pinned_arena() {
  static auto* arena = new Arena();
  return *arena;
}

void init_arenas_once() {
  static std::once_flag once;
  std::call_once(once, [] {
    device_arena().init("FAKECUDA_ARENA", config().arena);
    pinned_arena().init("FAKECUDA_PIN_ARENA", config().pin_arena);
  });
}

}  // namespace fk
