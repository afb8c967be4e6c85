#include "timing.h"

#include <sys/prctl.h>

#include <ctime>

namespace fk {

static constexpr double kSpin = 8e-6;  // seconds: larger is more exact and takes more CPU

// Asks the kernel not to round this thread's wake-ups: it may add 50 us.
static void use_exact_timers() {
  thread_local bool done = false;
  if (!done) prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL);
  done = true;
}

void sleep_until(TimePoint when) {
  TimePoint wake = when - duration(kSpin);
  if (Clock::now() < wake) {
    use_exact_timers();
    auto ns = std::chrono::nanoseconds(wake.time_since_epoch()).count();
    timespec at{time_t(ns / 1000000000), long(ns % 1000000000)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, nullptr)) {
    }
  }
  while (Clock::now() < when) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
  }
}

}  // namespace fk
