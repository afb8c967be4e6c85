// Counters that tests assert on and that FAKECUDA_STATS writes at exit.
#pragma once
#include "common.h"

namespace fk {

// "pageable": one side of the copy was memory that CUDA does not know, so the call
// cannot overlap with the host. "async": returned before the copy had run, and no side
// was pageable. "host_waits": calls that really had to wait, with the time they took.
// clang-format off
#define FK_COUNTERS(X) \
  X(h2d_copies) X(h2d_bytes) X(h2d_busy_us) \
  X(d2h_copies) X(d2h_bytes) X(d2h_busy_us) \
  X(d2d_copies) X(d2d_bytes) X(d2d_busy_us) \
  X(h2h_copies) X(h2h_bytes) \
  X(async_copies) X(pageable_copies) X(pageable_bytes) X(memsets) \
  X(device_allocs) X(device_frees) X(device_bytes) X(device_bytes_peak) \
  X(pinned_allocs) X(pinned_frees) X(pinned_registers) X(pinned_unregisters) \
  X(pinned_bytes) X(pinned_bytes_peak) X(pin_us) \
  X(streams_created) X(streams_destroyed) X(events_created) X(events_destroyed) \
  X(event_records) X(stream_waits) X(stream_syncs) X(event_syncs) X(device_syncs) \
  X(host_waits) X(host_wait_us) X(host_functions) \
  X(kernels_launched) X(kernels_imitated) X(kernels_refused) X(stub_calls) \
  X(captures) X(captured_operations) X(captures_invalidated) \
  X(races) X(frees_in_flight) X(illegal_accesses) X(faults_injected)
// clang-format on

enum class Counter {
#define FK_ENUM(name) name,
  FK_COUNTERS(FK_ENUM)
#undef FK_ENUM
      how_many
};

FK_API void count(Counter counter, uint64_t n = 1);
// Adds to a gauge (device_bytes, pinned_bytes) and keeps its peak, the next counter.
void gauge_add(Counter gauge, int64_t delta);
// At exit: one JSON line to the file named by FAKECUDA_STATS ("-": standard error).
void write_stats();

}  // namespace fk
