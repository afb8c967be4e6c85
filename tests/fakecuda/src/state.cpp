#include "state.h"

#include <pthread.h>

#include <algorithm>
#include <cstdlib>

#include "arena.h"
#include "counters.h"
#include "fakecuda.h"
#include "guard.h"
#include "streams.h"

namespace fk {

namespace {

thread_local Context* thread_context = nullptr;
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
    for (int device = 0; device < config().devices; device++)
      the_state->devices[device].primary = new Context{device};
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

int fate_of(int device) { return valid_device(device) ? int(state().devices[device].fate) : kOk; }

int sticky_error() { return fate_of(std::max(bound_device(), 0)); }

void kill_device(int device, int error) {
  int none = kOk;
  state().devices[std::max(device, 0)].fate.compare_exchange_strong(none, error);
}

int current_device(bool bind) {
  if (bound_device() >= 0) return bound_device();
  if (bind) bind_device(0);
  return 0;
}

Context* bound_context() { return thread_context; }

Context* current_context() {
  current_device();
  return thread_context;
}

void bind_context(Context* context) {
  thread_context = context;
  if (context) activate_device(context->device);
}

int bound_device() { return thread_context ? thread_context->device : -1; }

void bind_device(int device) { bind_context(device < 0 ? nullptr : state().devices[device].primary); }

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
