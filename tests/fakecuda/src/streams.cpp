#include "streams.h"

#include <map>
#include <set>
#include <thread>
#include <utility>

#include "capture.h"
#include "counters.h"
#include "state.h"

namespace fk {

namespace {

// Never destroyed, like the State: worker threads may still run while the process exits.
struct Tables {
  std::vector<Stream*> streams;
  std::set<void*> handles;  // live streams and events
  std::map<std::pair<std::thread::id, Context*>, Stream*> per_thread;
};

Tables& tables() {
  static auto* t = new Tables();
  return *t;
}

Stream* new_stream(Context* context, unsigned flags, int priority) {
  auto* s = new Stream();
  s->id = int(tables().streams.size());
  s->context = context;
  s->device = context->device;
  s->flags = flags;
  s->priority = priority;
  s->random = config().seed * 1000003 + uint64_t(s->id);
  tables().streams.push_back(s);
  add_handle(s);
  return s;
}

Stream* legacy_stream(Context* context) {
  Stream*& s = context->legacy_stream;
  if (!s) {
    s = new_stream(context, 0, 0);
    s->legacy = true;
  }
  return s;
}

Stream* per_thread_stream(Context* context) {
  Stream*& s = tables().per_thread[{std::this_thread::get_id(), context}];
  if (!s) s = new_stream(context, 0, 0);
  return s;
}

}  // namespace

const std::vector<Stream*>& all_streams() { return tables().streams; }

bool is_live_handle(void* handle, const char* what) {
  if (tables().handles.count(handle)) return true;
  say("use of %s that was destroyed or never created (%p)", what, handle);
  return false;
}

void add_handle(void* handle) { tables().handles.insert(handle); }
void remove_handle(void* handle) { tables().handles.erase(handle); }

void wake_all_streams() {
  for (Stream* s : all_streams()) s->wake.notify_all();
}

int stream_create(Context* context, unsigned flags, int priority, Stream** out) {
  Lock lock(state().mu);
  *out = new_stream(context, flags, priority);
  count(Counter::streams_created);
  return kOk;
}

// Queued work still runs. The Stream itself is kept: records may point to it.
int stream_destroy(Stream* s) {
  Lock lock(state().mu);
  if (!is_live_handle(s, "a stream")) return kInvalidHandle;
  remove_handle(s);
  count(Counter::streams_destroyed);
  s->destroyed = true;
  release(s, s->enqueued);
  s->wake.notify_all();
  return kOk;
}

int stream_resolve(void* handle, Stream** out) {
  current_device();  // binds one
  Lock lock(state().mu);
  if (int error = sticky_error()) return error;
  uintptr_t value = reinterpret_cast<uintptr_t>(handle);
  if (value <= 1)
    *out = legacy_stream(bound_context());
  else if (value == 2)
    *out = per_thread_stream(bound_context());
  else if (is_live_handle(handle, "a stream"))
    *out = static_cast<Stream*>(handle);
  else
    return kInvalidHandle;
  return (*out)->legacy ? refuse_legacy(bound_context()) : kOk;
}

int stream_synchronize(Stream* s) {
  Lock lock(state().mu);
  count(Counter::stream_syncs);
  if (s->capture)
    return break_capture(s->capture.get(), kCaptureUnsupported, "a wait for a stream that is captured");
  return wait_for_stream(lock, s);
}

int stream_query(Stream* s) {
  Lock lock(state().mu);
  if (s->capture)
    return break_capture(s->capture.get(), kCaptureUnsupported, "a query of a stream that is captured");
  if (s->idle()) {
    host_observed(s->clock);
    return fate_of(s->device);
  }
  if (config().lazy) release(s, s->completed + 1);
  return kNotReady;
}

// The event may be of another device.
int stream_wait_event(Stream* s, Event* e) {
  Lock lock(state().mu);
  if (!is_live_handle(e, "an event")) return kInvalidHandle;
  count(Counter::stream_waits);
  if (s->capture || e->capture) return capture_wait(s, e);
  if (e->last) enqueue(s, {Operation::wait, nullptr, e->last});
  return fate_of(s->device);
}

int launch_host_function(Stream* s, std::function<void()> function) {
  Lock lock(state().mu);
  count(Counter::host_functions);
  enqueue_work(s, [function](TimePoint) {
    HostCallbackScope scope;
    function();
    return Clock::now();
  });
  return fate_of(s->device);
}

}  // namespace fk
