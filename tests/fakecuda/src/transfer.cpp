#include "transfer.h"

#include <algorithm>
#include <cstring>

#include "counters.h"
#include "guard.h"
#include "memory.h"
#include "state.h"
#include "timing.h"

namespace fk {

namespace {

constexpr size_t kPiece = 1 << 20;        // paced copies arrive piece by piece
constexpr double kTolerableLag = 200e-6;  // what a late wake-up explains

// --- Time. ---------------------------------------------------------------------------------------------

Direction direction_of(CopyKind kind) {
  return kind == kHostToDevice ? kH2D : kind == kDeviceToHost ? kD2H : kD2D;
}

double bandwidth_of(const Copy& c) {
  if (c.kind == kHostToHost) return 0;
  double bandwidth = config().bandwidth[direction_of(c.kind)];
  double cap = config().bandwidth_pageable;
  if ((c.pageable_to || c.pageable_from) && cap > 0)
    bandwidth = bandwidth > 0 ? std::min(bandwidth, cap) : cap;
  return bandwidth;
}

// A copy's turn on its engine.
struct Slot {
  TimePoint start;
  double bandwidth;  // 0: as fast as the host can
  bool paced() const { return bandwidth > 0; }
  TimePoint when(size_t bytes) const { return paced() ? start + duration(double(bytes) / bandwidth) : start; }
};

void count_busy(Direction d, Clock::duration time) {
  static const Counter kBusy[] = {Counter::h2d_busy_us, Counter::d2h_busy_us, Counter::d2d_busy_us};
  count(kBusy[d], microseconds(time));
}

TimePoint& engine_free_at(const Copy& c) {
  return state().devices[c.device].engine_free_at[direction_of(c.kind)];
}

// The caller holds the lock.
Slot take_slot(const Copy& c, TimePoint ready) {
  Slot slot{ready, bandwidth_of(c)};
  if (!slot.paced()) return slot;
  slot.start = std::max(ready, engine_free_at(c));
  engine_free_at(c) = slot.when(c.size);
  count_busy(direction_of(c.kind), engine_free_at(c) - slot.start);
  return slot;
}

// The modelled end, unless this host could not keep up with the model.
TimePoint end_of_slot(const Copy& c, const Slot& slot) {
  TimePoint end = slot.when(c.size), now = Clock::now();
  if (slot.paced() && seconds(now - end) < kTolerableLag) return end;
  if (!slot.paced() && !c.moves) return end;
  if (c.kind != kHostToHost) {
    Lock lock(state().mu);
    engine_free_at(c) = std::max(engine_free_at(c), now);
    if (!slot.paced()) count_busy(direction_of(c.kind), now - slot.start);
  }
  return now;
}

// --- Bytes. --------------------------------------------------------------------------------------------

bool move(char* to, bool to_bypass, const char* from, bool from_bypass, size_t n) {
  if (from_bypass && to_bypass) {
    std::vector<char> bounce(n);
    return bypass_read(bounce.data(), from, n) && bypass_write(to, bounce.data(), n);
  }
  if (from_bypass) return bypass_read(to, from, n);
  if (to_bypass) return bypass_write(to, from, n);
  memcpy(to, from, n);
  return true;
}

// Walks two lists of spans side by side, keeping to the slot's pace.
bool move_spans(const std::vector<Span>& to, const std::vector<Span>& from, size_t size, const Slot& slot) {
  size_t i = 0, i_done = 0, j = 0, j_done = 0;
  for (size_t done = 0; done < size;) {
    size_t n = std::min(to[i].size - i_done, from[j].size - j_done);
    if (slot.paced()) n = std::min(n, kPiece);
    if (!move(to[i].data + i_done, to[i].bypass, from[j].data + j_done, from[j].bypass, n)) return false;
    done += n;
    if ((i_done += n) == to[i].size) i++, i_done = 0;
    if ((j_done += n) == from[j].size) j++, j_done = 0;
    if (slot.paced()) sleep_until(slot.when(done));
  }
  return true;
}

// The caller holds the lock.
bool resolve_both(const Copy& c, std::vector<Span>* to, std::vector<Span>* from) {
  if (!resolve(c.to, c.size, to)) return false;
  if (!c.snapshot) return resolve(c.from, c.size, from);
  from->push_back({c.snapshot->data(), c.size, nullptr, false});
  return true;
}

// A copy engine costs the host nothing, but the driver's own staging of a pageable source does: it reads it
// all.
void read_pageable_source(const Copy& c) {
  thread_local std::vector<char> staging(kPiece);
  const char* from = reinterpret_cast<const char*>(c.from);
  for (size_t i = 0; i < c.size; i += kPiece) memcpy(staging.data(), from + i, std::min(kPiece, c.size - i));
}

}  // namespace

void fail_on_device(int device, int error, const char* what, uintptr_t address, size_t size) {
  count(Counter::illegal_accesses);
  kill_device(device, error);
  say("%s: %s [%#lx,+%zu) is freed, unmapped, out of bounds, or was made to fail; the context is now dead",
      error_text(error), what, address, size);
}

TimePoint pause_for_copy(const Copy& c, TimePoint ready) {
  if (fate_of(c.device)) return ready;
  std::vector<Span> to, from;
  if (resolve_both(c, &to, &from)) return take_slot(c, ready).when(c.size);
  fail_on_device(c.device, kIllegalAddress, "copy", c.to, c.size);
  return ready;
}

TimePoint run_copy(const Copy& c, TimePoint ready) {
  if (fate_of(c.device)) return ready;
  if (c.fault) {
    fail_on_device(c.device, c.fault, "copy", c.to, c.size);
    return ready;
  }
  Lock lock(state().mu);
  Slot slot = take_slot(c, ready);
  lock.unlock();
  if (!c.moves && c.kind == kHostToDevice && c.pageable_from && !c.snapshot) read_pageable_source(c);
  sleep_until(c.moves ? slot.start : slot.when(c.size));
  std::vector<Span> to, from;
  lock.lock();
  bool sound = resolve_both(c, &to, &from);
  lock.unlock();
  if (!sound || (c.moves && !move_spans(to, from, c.size, slot))) {
    fail_on_device(c.device, kIllegalAddress, "copy", c.to, c.size);
    return Clock::now();
  }
  return end_of_slot(c, slot);
}

}  // namespace fk
