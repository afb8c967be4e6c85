// Copies, memset, and the one kernel that is imitated.
#pragma once
#include "common.h"

namespace fk {

struct Stream;

enum CopyKind { kHostToHost, kHostToDevice, kDeviceToHost, kDeviceToDevice, kDefault };

// `blocking`: the call returns after the copy, as cudaMemcpy does. A copy that is not blocking still is when
// one side is pageable, save for small sources, which CUDA stages.
FK_API int copy(void* to, const void* from, size_t size, int kind, Stream* stream, bool blocking);

struct Rows {
  size_t to_pitch, from_pitch, width, height;
};
FK_API int copy_rows(void* to, const void* from, Rows rows, int kind, Stream* stream);

// Writes `times` copies of a pattern of `unit` bytes.
FK_API int fill(void* to, const void* pattern, size_t unit, size_t times, Stream* stream, bool blocking);

// A kernel launch, by the mangled name that nvcc registered.
FK_API int launch_kernel(const char* mangled_name, void** arguments, Stream* stream);

FK_API int device_attribute(int attribute, int device, int* value);

}  // namespace fk
