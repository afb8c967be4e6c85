#include "state.h"

#include <pthread.h>

#include <cstdlib>

#include "arena.h"
#include "counters.h"
#include "fakecuda.h"
#include "guard.h"
#include "streams.h"

namespace fk {

namespace {

thread_local int thread_device = -1;
thread_local bool in_callback = false;
State* the_state;

void mark_forked() {
  if (the_state->used) the_state->forked = true;
}

void stats_at_exit() {
  if (!the_state->forked) write_stats();
}

}  // namespace

// Never destroyed: worker threads may still run while the process exits.
State& state() {
  static std::once_flag once;
  std::call_once(once, [] {
    the_state = new State();
    the_state->devices.resize(config().devices);
    atexit(stats_at_exit);
    pthread_atfork(nullptr, nullptr, mark_forked);
    install_fault_handler();
  });
  return *the_state;
}

int ready() {
  State& s = state();
  if (s.forked) return kNotInitialized;
  if (s.devices.empty()) return kNoDevice;
  if (in_callback) {
    say("CUDA call from inside a host function or callback: not permitted");
    return kNotPermitted;
  }
  s.used = true;
  return kOk;
}

int sticky_error() { return state().sticky_error; }

void kill_context(int error) {
  int none = kOk;
  state().sticky_error.compare_exchange_strong(none, error);
}

int current_device(bool bind) {
  if (thread_device >= 0) return thread_device;
  if (bind) bind_device(0);
  return 0;
}

int bound_device() { return thread_device; }

void bind_device(int device) {
  thread_device = device;
  if (device >= 0) activate_device(device);
}

// Where real CUDA makes the primary context; the arenas are faulted in at the same point.
void activate_device(int device) {
  init_arenas_once();
  state().devices[device].active = true;
}

bool device_active(int device) { return state().devices[device].active; }

HostCallbackScope::HostCallbackScope() { in_callback = true; }
HostCallbackScope::~HostCallbackScope() { in_callback = false; }

}  // namespace fk

extern "C" FK_API int fakecuda_set(const char* knob, double value) {
  fk::Lock lock(fk::state().mu);
  if (!fk::set_knob(knob, value)) return 1;
  fk::wake_all_streams();  // LAZY may have been turned off
  return 0;
}

extern "C" FK_API int fakecuda_get(const char* knob, double* value) {
  fk::Lock lock(fk::state().mu);
  return fk::get_knob(knob, value) ? 0 : 1;
}
