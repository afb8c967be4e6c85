#include "common.h"

#include <execinfo.h>

#include <cstdarg>
#include <cstdio>
#include <map>

namespace fk {

namespace {
struct ErrorWords {
  const char* name;
  const char* text;
};
const std::map<int, ErrorWords>& error_table() {
  static const auto* table = new std::map<int, ErrorWords>{
      {kOk, {"SUCCESS", "no error"}},
      {kInvalidValue, {"INVALID_VALUE", "invalid argument"}},
      {kOutOfMemory, {"OUT_OF_MEMORY", "out of memory"}},
      {kNotInitialized, {"NOT_INITIALIZED", "initialization error"}},
      {kNoDevice, {"NO_DEVICE", "no CUDA-capable device is detected"}},
      {kInvalidDevice, {"INVALID_DEVICE", "invalid device ordinal"}},
      {kInvalidContext, {"INVALID_CONTEXT", "invalid device context"}},
      {kEccUncorrectable, {"ECC_UNCORRECTABLE", "uncorrectable ECC error encountered"}},
      {kInvalidHandle, {"INVALID_HANDLE", "invalid resource handle"}},
      {kNotFound, {"NOT_FOUND", "named symbol not found"}},
      {kNotReady, {"NOT_READY", "device not ready"}},
      {kIllegalAddress, {"ILLEGAL_ADDRESS", "an illegal memory access was encountered"}},
      {kHostAlreadyRegistered,
       {"HOST_MEMORY_ALREADY_REGISTERED", "part or all of the requested memory range is already mapped"}},
      {kHostNotRegistered,
       {"HOST_MEMORY_NOT_REGISTERED", "pointer does not correspond to a registered memory region"}},
      {kLaunchFailure, {"LAUNCH_FAILED", "unspecified launch failure"}},
      {kNotPermitted, {"NOT_PERMITTED", "operation not permitted"}},
      {kNotSupported, {"NOT_SUPPORTED", "operation not supported (fakecuda)"}},
      {kIllegalState, {"ILLEGAL_STATE", "the operation cannot be performed in the present state"}},
      {kCaptureUnsupported,
       {"STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"}},
      {kCaptureInvalidated,
       {"STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"}},
      {kCaptureMerge, {"STREAM_CAPTURE_MERGE", "operation would result in a merge of separate captures"}},
      {kCaptureUnmatched,
       {"STREAM_CAPTURE_UNMATCHED", "capture was not ended in the same stream as it began"}},
      {kCaptureUnjoined, {"STREAM_CAPTURE_UNJOINED", "capturing stream has unjoined work"}},
      {kCaptureIsolation,
       {"STREAM_CAPTURE_ISOLATION", "dependency created on uncaptured work in another stream"}},
      {kCaptureImplicit,
       {"STREAM_CAPTURE_IMPLICIT",
        "operation would make the legacy stream depend on a capturing blocking stream"}},
      {kCapturedEvent,
       {"CAPTURED_EVENT", "operation not permitted on an event last recorded in a capturing stream"}},
      {kCaptureWrongThread,
       {"STREAM_CAPTURE_WRONG_THREAD",
        "attempt to terminate a thread-local capture sequence from another thread"}},
  };
  return *table;
}
}  // namespace

const char* error_name(int error) {
  auto it = error_table().find(error);
  return it == error_table().end() ? "UNKNOWN" : it->second.name;
}

const char* error_text(int error) {
  auto it = error_table().find(error);
  return it == error_table().end() ? "unknown error (fakecuda)" : it->second.text;
}

bool error_is_sticky(int error) {
  return error == kIllegalAddress || error == kLaunchFailure || error == kEccUncorrectable;
}

void say(const char* format, ...) {
  char text[2048];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  fprintf(stderr, "[fakecuda] %s\n", text);
  fflush(stderr);
}

void print_backtrace() {
  void* frames[48];
  int n = backtrace(frames, 48);
  backtrace_symbols_fd(frames, n, 2);
}

uint64_t next_random(uint64_t& state) {
  uint64_t z = state += 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

}  // namespace fk
