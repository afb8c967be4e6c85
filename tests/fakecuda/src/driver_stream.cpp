// Streams and events.
#include "capture.h"
#include "driver_api.h"

using namespace fk;

// --- Streams. ------------------------------------------------------------------------------------------

DRIVER_API cuStreamCreate(CUstream* out, unsigned flags) {
  ENTER_CONTEXT();
  UNSAFE_IN_CAPTURES();
  return result(stream_create(bound_context(), flags, 0, reinterpret_cast<Stream**>(out)));
}

DRIVER_API cuStreamCreateWithPriority(CUstream* out, unsigned flags, int priority) {
  ENTER_CONTEXT();
  UNSAFE_IN_CAPTURES();
  return result(stream_create(bound_context(), flags, priority, reinterpret_cast<Stream**>(out)));
}

DRIVER_API cuStreamDestroy(CUstream handle) {
  ENTER();
  UNSAFE_IN_CAPTURES();
  return result(stream_destroy(stream_of(handle)));
}

DRIVER_API cuStreamSynchronize(CUstream handle) {
  ENTER_CONTEXT();
  UNSAFE_IN_CAPTURES();
  RESOLVE(stream, handle);
  return result(stream_synchronize(stream));
}

DRIVER_API cuStreamQuery(CUstream handle) {
  ENTER_CONTEXT();
  UNSAFE_IN_CAPTURES();
  RESOLVE(stream, handle);
  return result(stream_query(stream));
}

DRIVER_API cuStreamGetFlags(CUstream handle, unsigned* flags) {
  ENTER_CONTEXT();
  RESOLVE(stream, handle);
  *flags = stream->flags;
  return CUDA_SUCCESS;
}

DRIVER_API cuStreamGetPriority(CUstream handle, int* priority) {
  ENTER_CONTEXT();
  RESOLVE(stream, handle);
  *priority = stream->priority;
  return CUDA_SUCCESS;
}

DRIVER_API cuStreamGetId(CUstream handle, unsigned long long* id) {
  ENTER_CONTEXT();
  RESOLVE(stream, handle);
  *id = stream->id;
  return CUDA_SUCCESS;
}

DRIVER_API cuStreamGetCtx(CUstream handle, CUcontext* context) {
  ENTER_CONTEXT();
  RESOLVE(stream, handle);
  *context = handle_of(stream->context);
  return CUDA_SUCCESS;
}

DRIVER_API cuStreamGetDevice(CUstream handle, CUdevice* device) {
  ENTER_CONTEXT();
  RESOLVE(stream, handle);
  *device = stream->device;
  return CUDA_SUCCESS;
}

// The legacy stream of no capture is resolved without harm to those of others.
DRIVER_API cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus* status) {
  ENTER();
  *status = CU_STREAM_CAPTURE_STATUS_NONE;
  if (reinterpret_cast<uintptr_t>(handle) <= 1) {
    Stream* legacy = bound_context() ? bound_context()->legacy_stream : nullptr;
    return result(legacy ? capture_status(legacy, reinterpret_cast<int*>(status)) : kOk);
  }
  RESOLVE(stream, handle);
  return result(capture_status(stream, reinterpret_cast<int*>(status)));
}

DRIVER_API cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode* mode) {
  ENTER_ALWAYS();
  capture_exchange_mode(reinterpret_cast<int*>(mode));
  return CUDA_SUCCESS;
}

DRIVER_API cuStreamBeginCapture(CUstream handle, CUstreamCaptureMode mode) {
  ENTER_CONTEXT();
  RESOLVE(stream, handle);
  return result(capture_begin(stream, mode));
}

DRIVER_API cuStreamEndCapture(CUstream handle, CUgraph* graph) {
  ENTER_CONTEXT();
  RESOLVE(stream, handle);
  static char empty_graph;
  int error = capture_end(stream);
  *graph = error ? nullptr : reinterpret_cast<CUgraph>(&empty_graph);
  return result(error);
}

DRIVER_API cuGraphDestroy(CUgraph) { return CUDA_SUCCESS; }

DRIVER_API cuStreamWaitEvent(CUstream handle, CUevent event, unsigned) {
  ENTER_CONTEXT();
  RESOLVE(stream, handle);
  return result(stream_wait_event(stream, event_of(event)));
}

DRIVER_API cuLaunchHostFunc(CUstream handle, CUhostFn function, void* data) {
  ENTER_CONTEXT();
  RESOLVE(stream, handle);
  return result(launch_host_function(stream, [=] { function(data); }));
}

// --- Events. -------------------------------------------------------------------------

DRIVER_API cuEventCreate(CUevent* out, unsigned flags) {
  ENTER_CONTEXT();
  return result(event_create(bound_device(), flags, reinterpret_cast<Event**>(out)));
}

DRIVER_API cuEventDestroy(CUevent event) {
  ENTER();
  return result(event_destroy(event_of(event)));
}

DRIVER_API cuEventRecord(CUevent event, CUstream handle) {
  ENTER_CONTEXT();
  RESOLVE(stream, handle);
  return result(event_record(event_of(event), stream));
}

DRIVER_API cuEventRecordWithFlags(CUevent event, CUstream handle, unsigned) {
  ENTER_CONTEXT();
  RESOLVE(stream, handle);
  return result(event_record(event_of(event), stream));
}

DRIVER_API cuEventSynchronize(CUevent event) {
  ENTER();
  UNSAFE_IN_CAPTURES();
  return result(event_synchronize(event_of(event)));
}

DRIVER_API cuEventQuery(CUevent event) {
  ENTER();
  UNSAFE_IN_CAPTURES();
  return result(event_query(event_of(event)));
}

// Under its new name (a macro since CUDA 12.8) and, below, under the plain one.
DRIVER_API cuEventElapsedTime(float* milliseconds, CUevent from, CUevent to) {
  ENTER();
  return result(event_elapsed(milliseconds, event_of(from), event_of(to)));
}

#ifdef cuEventElapsedTime
#undef cuEventElapsedTime
DRIVER_API cuEventElapsedTime(float* milliseconds, CUevent from, CUevent to) {
  ENTER();
  return result(event_elapsed(milliseconds, event_of(from), event_of(to)));
}
#endif
