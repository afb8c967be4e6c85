// memset.
#include <algorithm>
#include <cstring>

#include "counters.h"
#include "faults.h"
#include "memory.h"
#include "races.h"
#include "state.h"
#include "streams.h"
#include "transfer.h"

namespace fk {

namespace {

void fill_span(const Span& span, const std::string& pattern) {
  size_t unit = pattern.size();
  if (unit == 1) {
    memset(span.data, pattern[0], span.size);
    return;
  }
  for (size_t i = 0; i < span.size; i += unit)
    memcpy(span.data + i, pattern.data(), std::min(unit, span.size - i));
}

bool resolve_locked(uintptr_t address, size_t size, std::vector<Span>* spans) {
  Lock lock(state().mu);
  return resolve(address, size, spans);
}

TimePoint run_fill(int device, uintptr_t to, size_t size, const std::string& pattern, int fault) {
  if (fate_of(device)) return Clock::now();
  std::vector<Span> spans;
  if (!fault && !resolve_locked(to, size, &spans)) fault = kIllegalAddress;
  if (fault)
    fail_on_device(device, fault, "memset", to, size);
  else if (config().data || size <= kAlwaysMoved)
    for (const Span& span : spans) fill_span(span, pattern);
  return Clock::now();
}

}  // namespace

int fill(void* to, const void* pattern, size_t unit, size_t times, Stream* stream, bool blocking) {
  size_t size = unit * times;
  if (!size) return kOk;
  uintptr_t address = reinterpret_cast<uintptr_t>(to);
  Lock lock(state().mu);
  if (int error = fate_of(stream->device)) return error;
  int fault = take_late_fault();
  std::vector<Span> spans;
  if (!find_region(address) || !resolve(address, size, &spans)) {
    lock.unlock();
    fail_on_device(stream->device, kIllegalAddress, "memset argument", address, size);
    return kInvalidValue;
  }
  int device = stream->device;
  std::string bytes(static_cast<const char*>(pattern), unit);
  count(Counter::memsets);
  enqueue_work(stream, [=](TimePoint) { return run_fill(device, address, size, bytes, fault); });
  record_access(stream, address, size, true, "memset");
  return blocking ? wait_for_stream(lock, stream) : fate_of(stream->device);
}

}  // namespace fk
