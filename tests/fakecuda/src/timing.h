// Sleeping that is exact to a few microseconds without burning a core.
#pragma once
#include "common.h"

namespace fk {

// Sleeps, and busy-waits only the last few microseconds before `when`.
void sleep_until(TimePoint when);

}  // namespace fk
