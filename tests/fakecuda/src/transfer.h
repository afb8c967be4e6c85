// One copy as the device carries it out: how long it takes, and the bytes.
//
// A device has one copy engine per direction, as data-centre GPUs do for the host link: copies of one
// direction queue up behind each other even on different streams, copies of different directions overlap.
#pragma once
#include <memory>
#include <vector>

#include "engine.h"

namespace fk {

constexpr size_t kAlwaysMoved = 4096;  // bytes that move even with DATA=0

struct Copy {
  uintptr_t to, from;
  size_t size;
  CopyKind kind;  // never kDefault
  int device;     // whose engine moves it
  bool pageable_to, pageable_from;
  bool moves;                                   // bytes; else it only takes time (DATA=0)
  std::shared_ptr<std::vector<char>> snapshot;  // the source as it was when the call was made
  int fault = kOk;                              // injected: fails when the device gets here
};

// When a copy that moves nothing, from and to memory that costs the host nothing, will have ended. The caller
// holds the lock.
TimePoint pause_for_copy(const Copy& copy, TimePoint ready);

// Takes the copy's time and moves its bytes; called on the stream's thread. `ready`: when it may start.
// Returns when it ended.
TimePoint run_copy(const Copy& copy, TimePoint ready);

// The device met an error: the context dies.
void fail_on_device(int device, int error, const char* what, uintptr_t address, size_t size);

}  // namespace fk
