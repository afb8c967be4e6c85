// Error texts, and entry points by name.
#include <dlfcn.h>

#include <cstring>
#include <unordered_map>

#include "driver_api.h"

using namespace fk;

DRIVER_API cuGetErrorString(CUresult error, const char** text) {
  *text = error_text(error);
  return CUDA_SUCCESS;
}

DRIVER_API cuGetErrorName(CUresult error, const char** name) {
  static std::mutex mutex;
  static std::unordered_map<int, std::string> names;
  std::lock_guard<std::mutex> lock(mutex);
  std::string& text = names[error];
  if (text.empty()) text = std::string("CUDA_") + (error ? "ERROR_" : "") + error_name(error);
  *name = text.c_str();
  return CUDA_SUCCESS;
}

DRIVER_API cuGetExportTable(const void** table, const CUuuid*) {
  *table = nullptr;
  if (config().verbose) say("cuGetExportTable: undocumented tables are not emulated");
  return result(kNotFound);
}

// Pairs of a plain name and the name that it means today, from build.py.
extern const char* const fakecuda_aliases[][2];

static void* find_entry_point(const char* name) {
  for (int i = 0; fakecuda_aliases[i][0]; i++)
    if (!strcmp(fakecuda_aliases[i][0], name)) {
      name = fakecuda_aliases[i][1];
      break;
    }
  static void* self = [] {
    Dl_info info;
    dladdr(reinterpret_cast<void*>(&cuInit), &info);
    return dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD);
  }();
  return dlsym(self, name);
}

DRIVER_API cuGetProcAddress_v2(const char* name, void** function, int, cuuint64_t,
                               CUdriverProcAddressQueryResult* status) {
  *function = find_entry_point(name);
  if (status) *status = *function ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
  return result(*function ? kOk : kNotFound);
}

#undef cuGetProcAddress
DRIVER_API cuGetProcAddress(const char* name, void** function, int version, cuuint64_t flags) {
  return cuGetProcAddress_v2(name, function, version, flags, nullptr);
}
