#include "capture.h"

#include <algorithm>
#include <thread>

#include "counters.h"
#include "state.h"

namespace fk {

struct Capture {
  int mode;
  std::thread::id owner;
  Stream* origin;
  CaptureStatus status = kCapturing;
  bool ended = false;
};

namespace {

thread_local int thread_mode = kCaptureGlobal;

std::vector<CapturePtr>& captures() {  // those that have not ended
  static auto* all = new std::vector<CapturePtr>();
  return *all;
}

// What a thread must not do while `capture` goes on.
bool prohibits(const Capture& capture) {
  bool own = capture.owner == std::this_thread::get_id();
  if (thread_mode == kCaptureRelaxed || capture.mode == kCaptureRelaxed) return false;
  return own || (thread_mode == kCaptureGlobal && capture.mode == kCaptureGlobal);
}

// A stream that joined must be waited for by the origin before the end; only how many there are is looked at.
bool has_unjoined(const CapturePtr& capture) {
  for (Stream* s : all_streams())
    if (s->capture == capture && s != capture->origin && !s->joined_back) return true;
  return false;
}

}  // namespace

int capture_begin(Stream* s, int mode) {
  Lock lock(state().mu);
  if (s->legacy) return kCaptureUnsupported;
  if (s->capture) return kIllegalState;
  s->capture = std::make_shared<Capture>(Capture{mode, std::this_thread::get_id(), s});
  captures().push_back(s->capture);
  count(Counter::captures);
  return kOk;
}

int capture_end(Stream* s) {
  Lock lock(state().mu);
  CapturePtr capture = s->capture;
  if (!capture) return kIllegalState;
  if (s != capture->origin)
    return break_capture(capture.get(), kCaptureUnmatched, "an end on another stream");
  if (capture->mode != kCaptureRelaxed && capture->owner != std::this_thread::get_id())
    return break_capture(capture.get(), kCaptureWrongThread, "an end on another thread");
  bool unjoined = has_unjoined(capture);
  capture->ended = true;
  captures().erase(std::remove(captures().begin(), captures().end(), capture), captures().end());
  for (Stream* t : all_streams())
    if (t->capture == capture) t->capture = nullptr;
  if (capture->status == kInvalidated) return kCaptureInvalidated;
  return unjoined ? kCaptureUnjoined : kOk;
}

int capture_status(Stream* s, int* status) {
  Lock lock(state().mu);
  *status = s->capture ? s->capture->status : kNotCapturing;
  if (!s->legacy) return kOk;
  for (const CapturePtr& capture : captures())
    if (capture->origin->context == s->context && !capture->origin->non_blocking()) return kCaptureImplicit;
  return kOk;
}

void capture_exchange_mode(int* mode) { std::swap(*mode, thread_mode); }

int refuse_unsafe(const char* call) {
  Lock lock(state().mu);
  int error = kOk;
  for (const CapturePtr& capture : captures())
    if (prohibits(*capture)) error = break_capture(capture.get(), kCaptureUnsupported, call);
  return error;
}

int refuse_legacy(Context* context) {
  for (const CapturePtr& capture : captures())
    if (capture->origin->context == context && !capture->origin->non_blocking())
      return break_capture(capture.get(), kCaptureImplicit, "use of the legacy stream");
  return kOk;
}

void capture_operation(Stream*) { count(Counter::captured_operations); }

int capture_record(Event* e, Stream* s) {
  e->last = nullptr;
  s->joined_back = false;
  return s->capture->status == kInvalidated ? kCaptureInvalidated : kOk;
}

int capture_wait(Stream* s, Event* e) {
  if (!e->capture) {
    if (!e->last) return kOk;
    return break_capture(s->capture.get(), kCaptureIsolation, "a wait for work that is not captured");
  }
  if (e->capture->ended) return kCapturedEvent;
  if (s->legacy) return break_capture(e->capture.get(), kCaptureImplicit, "a wait of the legacy stream");
  if (s->capture && s->capture != e->capture) {
    break_capture(s->capture.get(), kCaptureMerge, "a wait for an event of another capture");
    return break_capture(e->capture.get(), kCaptureMerge, "a wait for an event of another capture");
  }
  bool origin = s == e->capture->origin;
  for (Stream* t : all_streams())
    if (origin && t->capture == e->capture) t->joined_back = true;
  if (!s->capture) s->joined_back = false;
  s->capture = e->capture;
  return kOk;
}

int break_capture(Capture* capture, int error, const char* what) {
  if (capture->ended || capture->status == kInvalidated) return error;
  say("CAPTURE invalidated by %s: %s", what, error_text(error));
  capture->status = kInvalidated;
  count(Counter::captures_invalidated);
  return error;
}

}  // namespace fk
