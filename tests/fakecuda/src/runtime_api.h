// What every entry point of libcudart.so.N begins with. runtime_*.cpp are thin: they call the emulator, which
// is in libcuda.so.1.
#pragma once
#include <cuda.h>
#include <cuda_runtime_api.h>

#include "config.h"
#include "engine.h"
#include "faults.h"
#include "memory.h"
#include "state.h"
#include "streams.h"

#define RUNTIME_API extern "C" FK_API cudaError_t CUDARTAPI

// First line of an entry point. ENTER_ALWAYS also works in a dead context.
#define ENTER_(live)                  \
  static fk::ApiSite site_(__func__); \
  if (int error_ = site_.enter(live)) return result(error_)
#define ENTER() ENTER_(true)
#define ENTER_ALWAYS() ENTER_(false)
#define CHECK_DEVICE(device) \
  if (!fk::valid_device(device)) return result(fk::kInvalidDevice)
#define RESOLVE(stream, handle) \
  fk::Stream* stream;           \
  if (int error_ = fk::stream_resolve(handle, &stream)) return result(error_)

// The runtime remembers a thread's last error until cudaGetLastError. "Not ready" counts as one: code that
// polls events must clear it, as PyTorch does.
cudaError_t result(int error);

inline fk::Event* event_of(cudaEvent_t e) { return reinterpret_cast<fk::Event*>(e); }
inline fk::Stream* stream_of(cudaStream_t s) { return reinterpret_cast<fk::Stream*>(s); }
