// What every entry point of libcuda.so.1 begins with. driver_*.cpp are thin: they check handles and contexts
// and call the emulator.
//
// cuda.h renames many entry points by macro (cuMemAlloc is cuMemAlloc_v2), so the names in the sources are
// not always those of the symbols.
#pragma once
#include <cuda.h>

#include "config.h"
#include "engine.h"
#include "faults.h"
#include "memory.h"
#include "state.h"
#include "streams.h"

#define DRIVER_API extern "C" FK_API CUresult CUDAAPI

// First line of an entry point. Most of the driver API wants a current context; ENTER_ALWAYS works without
// one, and in a dead one.
#define ENTER_(live)                  \
  static fk::ApiSite site_(__func__); \
  if (int error_ = site_.enter(live)) return result(error_)
#define ENTER_ALWAYS() ENTER_(false)
#define ENTER() ENTER_(true)
#define ENTER_CONTEXT() \
  ENTER();              \
  if (fk::bound_device() < 0) return result(fk::kInvalidContext)
#define CHECK_DEVICE(device) \
  if (!fk::valid_device(device)) return result(fk::kInvalidDevice)
#define RESOLVE(stream, handle) \
  fk::Stream* stream;           \
  if (int error_ = fk::stream_resolve(handle, &stream)) return result(error_)

inline CUresult result(int error) { return static_cast<CUresult>(error); }
inline void* pointer(CUdeviceptr p) { return reinterpret_cast<void*>(p); }
inline fk::Event* event_of(CUevent e) { return reinterpret_cast<fk::Event*>(e); }
inline fk::Stream* stream_of(CUstream s) { return reinterpret_cast<fk::Stream*>(s); }

CUcontext handle_of(fk::Context* context);
CUcontext context_of(int device);  // its primary context; null for -1
