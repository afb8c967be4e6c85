// Streams and events.
#include "capture.h"
#include "runtime_api.h"

using namespace fk;

// --- Streams. ------------------------------------------------------------------------

RUNTIME_API cudaStreamCreate(cudaStream_t* out) {
  ENTER();
  UNSAFE_IN_CAPTURES();
  return result(stream_create(current_context(), 0, 0, reinterpret_cast<Stream**>(out)));
}

RUNTIME_API cudaStreamCreateWithFlags(cudaStream_t* out, unsigned flags) {
  ENTER();
  UNSAFE_IN_CAPTURES();
  return result(stream_create(current_context(), flags, 0, reinterpret_cast<Stream**>(out)));
}

RUNTIME_API cudaStreamCreateWithPriority(cudaStream_t* out, unsigned flags, int priority) {
  ENTER();
  UNSAFE_IN_CAPTURES();
  return result(stream_create(current_context(), flags, priority, reinterpret_cast<Stream**>(out)));
}

RUNTIME_API cudaStreamDestroy(cudaStream_t handle) {
  ENTER();
  UNSAFE_IN_CAPTURES();
  return result(stream_destroy(stream_of(handle)));
}

RUNTIME_API cudaStreamSynchronize(cudaStream_t handle) {
  ENTER();
  UNSAFE_IN_CAPTURES();
  RESOLVE(stream, handle);
  return result(stream_synchronize(stream));
}

RUNTIME_API cudaStreamQuery(cudaStream_t handle) {
  ENTER();
  UNSAFE_IN_CAPTURES();
  RESOLVE(stream, handle);
  return result(stream_query(stream));
}

RUNTIME_API cudaStreamGetPriority(cudaStream_t handle, int* priority) {
  ENTER();
  RESOLVE(stream, handle);
  *priority = stream->priority;
  return cudaSuccess;
}

RUNTIME_API cudaStreamGetFlags(cudaStream_t handle, unsigned* flags) {
  ENTER();
  RESOLVE(stream, handle);
  *flags = stream->flags;
  return cudaSuccess;
}

RUNTIME_API cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned) {
  ENTER();
  RESOLVE(stream, handle);
  return result(stream_wait_event(stream, event_of(event)));
}

RUNTIME_API cudaStreamAddCallback(cudaStream_t handle, cudaStreamCallback_t callback, void* data, unsigned) {
  ENTER();
  RESOLVE(stream, handle);
  return result(launch_host_function(
      stream, [=] { callback(handle, static_cast<cudaError_t>(fate_of(stream->device)), data); }));
}

RUNTIME_API cudaLaunchHostFunc(cudaStream_t handle, cudaHostFn_t function, void* data) {
  ENTER();
  RESOLVE(stream, handle);
  return result(launch_host_function(stream, [=] { function(data); }));
}

RUNTIME_API cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
  return static_cast<cudaError_t>(
      cuStreamIsCapturing(handle, reinterpret_cast<CUstreamCaptureStatus*>(status)));
}

RUNTIME_API cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  ENTER();
  RESOLVE(stream, handle);
  return result(capture_begin(stream, mode));
}

RUNTIME_API cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  return static_cast<cudaError_t>(cuStreamEndCapture(handle, graph));
}

RUNTIME_API cudaGraphDestroy(cudaGraph_t) { return cudaSuccess; }

#if CUDART_VERSION >= 13000
RUNTIME_API cudaStreamGetCaptureInfo(cudaStream_t handle, cudaStreamCaptureStatus* status,
                                     unsigned long long* id, cudaGraph_t*, const cudaGraphNode_t**,
                                     const cudaGraphEdgeData**, size_t*) {
  if (id) *id = 0;
  return cudaStreamIsCapturing(handle, status);
}
#endif

RUNTIME_API cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  capture_exchange_mode(reinterpret_cast<int*>(mode));
  return cudaSuccess;
}

// --- Events. -------------------------------------------------------------------------

RUNTIME_API cudaEventCreate(cudaEvent_t* out) {
  ENTER();
  return result(event_create(current_device(), 0, reinterpret_cast<Event**>(out)));
}

RUNTIME_API cudaEventCreateWithFlags(cudaEvent_t* out, unsigned flags) {
  ENTER();
  return result(event_create(current_device(), flags, reinterpret_cast<Event**>(out)));
}

RUNTIME_API cudaEventDestroy(cudaEvent_t event) {
  ENTER();
  return result(event_destroy(event_of(event)));
}

RUNTIME_API cudaEventRecord(cudaEvent_t event, cudaStream_t handle) {
  ENTER();
  RESOLVE(stream, handle);
  return result(event_record(event_of(event), stream));
}

RUNTIME_API cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t handle, unsigned) {
  ENTER();
  RESOLVE(stream, handle);
  return result(event_record(event_of(event), stream));
}

RUNTIME_API cudaEventSynchronize(cudaEvent_t event) {
  ENTER();
  UNSAFE_IN_CAPTURES();
  return result(event_synchronize(event_of(event)));
}

RUNTIME_API cudaEventQuery(cudaEvent_t event) {
  ENTER();
  UNSAFE_IN_CAPTURES();
  return result(event_query(event_of(event)));
}

RUNTIME_API cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
  ENTER();
  return result(event_elapsed(milliseconds, event_of(from), event_of(to)));
}
