// The host's side of a copy: checks it, counts it, queues it, and waits where CUDA would.
#include "counters.h"
#include "faults.h"
#include "guard.h"
#include "memory.h"
#include "races.h"
#include "state.h"
#include "streams.h"
#include "transfer.h"

namespace fk {

namespace {

constexpr size_t kStagedByCuda = 64 << 10;  // pageable sources up to this are not waited for

const char* name_of(CopyKind kind) {
  static const char* const kNames[] = {"H2H", "H2D", "D2H", "D2D"};
  return kNames[kind];
}

bool on_device(const Region* region) { return region && region->kind == Kind::device; }

bool is_allocated(uintptr_t address, size_t size) {
  std::vector<Span> spans;
  return resolve(address, size, &spans);
}

// Fills in what the addresses say of the copy.
int classify(Lock& lock, Copy* c, int stated_kind, Stream* stream) {
  for (uintptr_t address : {c->to, c->from})
    if (!is_allocated(address, c->size)) {
      lock.unlock();
      fail_on_device(stream->device, kIllegalAddress, "memcpy argument", address, c->size);
      return kInvalidValue;
    }
  Region *to = find_region(c->to), *from = find_region(c->from);
  c->kind = CopyKind((on_device(to) ? 1 : 0) + (on_device(from) ? 2 : 0));
  if (stated_kind != kDefault && stated_kind != c->kind) {
    say("memcpy says %s, the pointers say %s", name_of(CopyKind(stated_kind & 3)), name_of(c->kind));
    return kInvalidValue;
  }
  c->pageable_to = !to;
  c->pageable_from = !from;
  c->device = on_device(to) ? to->device : on_device(from) ? from->device : stream->device;
  return kOk;
}

void count_copy(const Copy& c, bool waits) {
  static const Counter kCopies[] = {Counter::h2h_copies, Counter::h2d_copies, Counter::d2h_copies,
                                    Counter::d2d_copies};
  static const Counter kBytes[] = {Counter::h2h_bytes, Counter::h2d_bytes, Counter::d2h_bytes,
                                   Counter::d2d_bytes};
  count(kCopies[c.kind]);
  count(kBytes[c.kind], c.size);
  if (c.pageable_to || c.pageable_from) {
    count(Counter::pageable_copies);
    count(Counter::pageable_bytes, c.size);
  } else if (!waits) {
    count(Counter::async_copies);
  }
}

void describe(const Copy& c, const Stream* stream, bool waits) {
  if (config().verbose < 2) return;
  say("%s %zu bytes %#lx <- %#lx stream #%d%s%s", name_of(c.kind), c.size, c.to, c.from, stream->id,
      waits ? " (blocks)" : "", c.pageable_to || c.pageable_from ? " PAGEABLE" : "");
}

}  // namespace

int copy(void* to, const void* from, size_t size, int kind, Stream* stream, bool blocking) {
  if (!size) return fate_of(stream->device);
  Lock lock(state().mu);
  if (int error = fate_of(stream->device)) return error;
  Copy c{};
  c.to = reinterpret_cast<uintptr_t>(to);
  c.from = reinterpret_cast<uintptr_t>(from);
  c.size = size;
  c.fault = take_late_fault();
  // Small copies move even with DATA=0, so that lengths, flags and scalars stay right.
  c.moves = config().data || size <= kAlwaysMoved;
  if (int error = classify(lock, &c, kind, stream)) return error;
  bool staged = !blocking && c.kind == kHostToDevice && c.pageable_from && size <= kStagedByCuda;
  bool waits = blocking || c.pageable_to || (c.pageable_from && !staged);
  if (staged) {
    auto* bytes = static_cast<const char*>(from);
    c.snapshot = std::make_shared<std::vector<char>>(bytes, bytes + size);
  }
  count_copy(c, waits);
  describe(c, stream, waits);
  if (!c.moves && !c.pageable_to && !c.pageable_from && !c.fault)
    enqueue_pause(stream, [c](TimePoint ready) { return pause_for_copy(c, ready); });
  else
    enqueue_work(stream, [c](TimePoint ready) { return run_copy(c, ready); });
  if (!c.pageable_to) record_access(stream, c.to, size, true, name_of(c.kind));
  if (!c.pageable_from) record_access(stream, c.from, size, false, name_of(c.kind));
  if (waits) return wait_for_stream(lock, stream);
  guard_source(c.from, size, stream);
  guard_destination(c.to, size, stream);
  return fate_of(stream->device);
}

int copy_rows(void* to, const void* from, Rows rows, int kind, Stream* stream) {
  for (size_t i = 0; i < rows.height; i++) {
    char* row_to = static_cast<char*>(to) + i * rows.to_pitch;
    const char* row_from = static_cast<const char*>(from) + i * rows.from_pitch;
    if (int error = copy(row_to, row_from, rows.width, kind, stream, false)) return error;
  }
  return kOk;
}

}  // namespace fk
