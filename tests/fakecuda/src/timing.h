// Sleeping that is exact to a few microseconds without burning a core.
#pragma once
#include "common.h"

namespace fk {

// Once per thread that sleeps: asks the kernel not to round wake-ups (it may add 50 us).
void use_exact_timers();

// Sleeps, and busy-waits only the last few microseconds before `when`.
void sleep_until(TimePoint when);

}  // namespace fk
