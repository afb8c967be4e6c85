#include "capture.h"
#include "counters.h"
#include "state.h"
#include "streams.h"

namespace fk {

int event_create(int device, unsigned flags, Event** out) {
  auto* e = new Event{device, flags, nullptr};
  Lock lock(state().mu);
  add_handle(e);
  count(Counter::events_created);
  *out = e;
  return kOk;
}

int event_destroy(Event* e) {
  Lock lock(state().mu);
  if (!is_live_handle(e, "an event")) return kInvalidHandle;
  remove_handle(e);
  count(Counter::events_destroyed);
  delete e;
  return kOk;
}

// An event belongs to one device; it can be waited for from another, but not recorded there.
int event_record(Event* e, Stream* s) {
  Lock lock(state().mu);
  if (!is_live_handle(e, "an event")) return kInvalidHandle;
  if (e->device != s->device) {
    say("an event of device %d recorded on a stream of device %d", e->device, s->device);
    return kInvalidHandle;
  }
  count(Counter::event_records);
  e->capture = s->capture;
  if (s->capture) return capture_record(e, s);
  e->last = std::make_shared<Record>();
  enqueue(s, {Operation::record, nullptr, e->last});
  return fate_of(s->device);
}

int event_synchronize(Event* e) {
  Lock lock(state().mu);
  if (!is_live_handle(e, "an event")) return kInvalidHandle;
  count(Counter::event_syncs);
  if (e->capture)
    return break_capture(e->capture.get(), kCapturedEvent, "a wait for an event that is captured");
  RecordPtr point = e->last;
  return point ? wait_for(lock, point) : fate_of(e->device);
}

// LAZY: a program that polls must get on, but not at once.
int event_query(Event* e) {
  constexpr int kPollsUntilReleased = 3;
  Lock lock(state().mu);
  if (!is_live_handle(e, "an event")) return kInvalidHandle;
  if (e->capture)
    return break_capture(e->capture.get(), kCapturedEvent, "a query of an event that is captured");
  RecordPtr point = e->last;
  if (!point) return fate_of(e->device);
  if (point->done()) {
    host_observed(point->clock);
    return fate_of(e->device);
  }
  if (config().lazy && ++point->polls >= kPollsUntilReleased) release(point->stream, point->op);
  return kNotReady;
}

int event_elapsed(float* milliseconds, Event* from, Event* to) {
  Lock lock(state().mu);
  if (!is_live_handle(from, "an event") || !is_live_handle(to, "an event")) return kInvalidHandle;
  if (!from->last || !to->last || !from->timed() || !to->timed()) return kInvalidHandle;
  if (from->device != to->device) return kInvalidHandle;
  if (!from->last->done() || !to->last->done()) return kNotReady;
  *milliseconds = float(seconds(to->last->time - from->last->time) * 1e3);
  return kOk;
}

}  // namespace fk
