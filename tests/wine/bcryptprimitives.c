/* What Rust's std calls of bcryptprimitives.dll, which some wines lack. */
#include <windows.h>

BOOLEAN NTAPI SystemFunction036(PVOID data, ULONG bytes); /* RtlGenRandom, of advapi32 */

__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE data, SIZE_T bytes) {
  return SystemFunction036(data, (ULONG)bytes);
}
