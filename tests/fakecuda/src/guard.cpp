#include "guard.h"

#include <execinfo.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <vector>

#include "config.h"
#include "state.h"
#include "streams.h"

namespace fk {

namespace {

struct Guard {
  uintptr_t lo, hi;
  int protection;
  int stream;
  uint64_t op;
};

std::vector<Guard> guards;
struct sigaction previous_handler;

const char* why_forbidden(uintptr_t address) {
  if (in_device_window(address)) return "host code touched a DEVICE address";
  for (const Guard& g : guards) {
    if (address < g.lo || address >= g.hi) continue;
    return g.protection == PROT_READ
               ? "host WROTE a pinned buffer that an unfinished H2D copy still reads"
               : "host touched a pinned buffer that an unfinished D2H copy still writes";
  }
  return nullptr;
}

// Names the hazard; returning with the default action set crashes at the same place.
void on_fault(int signal_number, siginfo_t* info, void* context) {
  if (const char* why = why_forbidden(reinterpret_cast<uintptr_t>(info->si_addr))) {
    say("HAZARD: %s (address %p). Backtrace:", why, info->si_addr);
    print_backtrace();
    signal(SIGSEGV, SIG_DFL);
    return;
  }
  if (previous_handler.sa_flags & SA_SIGINFO)
    previous_handler.sa_sigaction(signal_number, info, context);
  else if (previous_handler.sa_handler == SIG_DFL || previous_handler.sa_handler == SIG_IGN)
    signal(SIGSEGV, SIG_DFL);
  else
    previous_handler.sa_handler(signal_number);
}

// Gives [lo, hi) back and applies again what other copies still need.
void restore(uintptr_t lo, uintptr_t hi) {
  mprotect(reinterpret_cast<void*>(lo), hi - lo, PROT_READ | PROT_WRITE);
  for (const Guard& g : guards) {
    uintptr_t a = std::max(lo, g.lo), b = std::min(hi, g.hi);
    if (a < b) mprotect(reinterpret_cast<void*>(a), b - a, g.protection);
  }
}

void add_guard(uintptr_t address, size_t size, int protection, Stream* stream) {
  uintptr_t lo = (address + 4095) & ~uintptr_t(4095);
  uintptr_t hi = (address + size) & ~uintptr_t(4095);
  if (lo >= hi) return;
  guards.push_back({lo, hi, protection, stream->id, stream->enqueued});
  mprotect(reinterpret_cast<void*>(lo), hi - lo, protection);
}

int open_own_memory() {
  static int fd = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
  return fd;
}

}  // namespace

void install_fault_handler() {
  void* frame;
  backtrace(&frame, 1);  // loads what it needs now, not inside the handler
  struct sigaction action{};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGSEGV, &action, &previous_handler);
}

// Only memory that is readable and writable all over can be restored blindly. In a shared
// mapping the kernel refuses writes past the protection, so there D2H stays unguarded.
void allow_guards_on_registered(Region* region) {
  FILE* maps = fopen("/proc/self/maps", "r");
  if (!maps) return;
  uintptr_t next = region->base, end = region->base + region->size;
  bool writable = true, is_private = true;
  char line[4096];
  while (next < end && fgets(line, sizeof line, maps)) {
    unsigned long lo, hi;
    char mode[8];
    if (sscanf(line, "%lx-%lx %7s", &lo, &hi, mode) != 3 || hi <= next) continue;
    if (lo > next) break;
    writable = writable && mode[0] == 'r' && mode[1] == 'w';
    is_private = is_private && mode[3] == 'p';
    next = hi;
  }
  fclose(maps);
  if (next < end || !writable || open_own_memory() < 0) return;
  region->guard_reads = true;
  region->guard_writes = is_private;
}

void guard_source(uintptr_t address, size_t size, Stream* stream) {
  Region* r = find_region(address);
  if (config().guard && r && r->guard_reads) add_guard(address, size, PROT_READ, stream);
}

void guard_destination(uintptr_t address, size_t size, Stream* stream) {
  Region* r = find_region(address);
  if (config().guard && r && r->guard_writes) add_guard(address, size, PROT_NONE, stream);
}

void release_guards(const VectorClock& host) {
  for (size_t i = 0; i < guards.size();) {
    Guard g = guards[i];
    if (g.op > clock_at(host, g.stream)) {
      i++;
      continue;
    }
    guards.erase(guards.begin() + i);
    restore(g.lo, g.hi);
  }
}

// Memory that goes back to its owner must be usable again.
void forget_guards(uintptr_t lo, uintptr_t hi) {
  auto inside = [&](const Guard& g) { return g.lo >= lo && g.hi <= hi; };
  std::vector<Guard> gone;
  std::copy_if(guards.begin(), guards.end(), std::back_inserter(gone), inside);
  guards.erase(std::remove_if(guards.begin(), guards.end(), inside), guards.end());
  for (const Guard& g : gone) restore(g.lo, g.hi);
}

bool bypass_read(void* to, const char* from, size_t size) {
  char* p = static_cast<char*>(to);
  for (size_t done = 0; done < size;) {
    ssize_t n = pread(open_own_memory(), p + done, size - done, off_t(from) + done);
    if (n <= 0) return false;
    done += n;
  }
  return true;
}

bool bypass_write(char* to, const void* from, size_t size) {
  const char* p = static_cast<const char*>(from);
  for (size_t done = 0; done < size;) {
    ssize_t n = pwrite(open_own_memory(), p + done, size - done, off_t(to) + done);
    if (n <= 0) return false;
    done += n;
  }
  return true;
}

}  // namespace fk
