// FAKECUDA_RACE: finds missing synchronization, whatever the timing happens to be.
//
// CUDA orders two pieces of work only if they are on one stream, or joined by an event
// (cudaStreamWaitEvent), or if the host waited for the first before it queued the second.
// Each stream carries a vector clock of the work that its next operation is ordered
// after. An access conflicts if it overlaps an earlier one, one of them writes, and the
// earlier one is not in that clock. This is decided when work is queued, so the report
// does not depend on how fast anything runs.
#pragma once
#include <vector>

#include "common.h"

namespace fk {

struct Stream;

using VectorClock = std::vector<uint64_t>;  // by stream id: number of its operations

inline uint64_t clock_at(const VectorClock& clock, size_t stream) {
  return stream < clock.size() ? clock[stream] : 0;
}
void join_clock(VectorClock* into, const VectorClock& other);

// The caller holds the lock for all of these.

// The operation just queued on `stream` reads or writes [address, address + size).
void record_access(Stream* stream, uintptr_t address, size_t size, bool writes, const char* what);
// The host has waited for everything in `clock`. There is one clock for the host: a wait
// in any thread counts for all of them.
void host_observed(const VectorClock& clock);
const VectorClock& host_clock();
// Memory is being freed: counts (STRICT_FREE: reports) work that was never waited for.
void check_free(uintptr_t lo, uintptr_t hi, const char* what);
void forget_accesses(uintptr_t lo, uintptr_t hi);

}  // namespace fk
