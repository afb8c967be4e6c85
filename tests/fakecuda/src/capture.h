// Stream capture: what may be called while a stream is captured into a graph, and by whom. What is captured
// is counted and forgotten; graphs are empty.
#pragma once
#include "streams.h"

namespace fk {

enum CaptureMode { kCaptureGlobal = 0, kCaptureThreadLocal = 1, kCaptureRelaxed = 2 };
enum CaptureStatus { kNotCapturing = 0, kCapturing = 1, kInvalidated = 2 };

FK_API int capture_begin(Stream* stream, int mode);
FK_API int capture_end(Stream* stream);
// kCaptureImplicit, and the capture stays sound, for a legacy stream that may not be used now.
FK_API int capture_status(Stream* stream, int* status);
FK_API void capture_exchange_mode(int* mode);

// For calls that are potentially unsafe: allocations, frees, pinning, host waits and queries. If the calling
// thread is prohibited from them now, the captures that prohibit them are invalidated, and an error is
// returned.
FK_API int refuse_unsafe(const char* call);

// --- Inside the emulator; the caller holds the lock. ---------------------------------------------------

// Of a legacy stream while a stream of its context is captured that was not created non-blocking.
int refuse_legacy(Context* context);
void capture_operation(Stream* stream);
int capture_record(Event* event, Stream* stream);
int capture_wait(Stream* stream, Event* event);
int break_capture(Capture* capture, int error, const char* what);

}  // namespace fk

// The second line of entry points that are potentially unsafe.
#define UNSAFE_IN_CAPTURES() \
  if (int error_ = fk::refuse_unsafe(site_.name())) return result(error_)
