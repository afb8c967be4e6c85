/* Control interface of the emulator, exported by libcuda.so.1.
 *
 * A test reaches these by dlopen/dlsym (python/fakecuda.py does it with ctypes).
 * None of them exists in real CUDA: code under test must not call them.
 */
#ifndef FAKECUDA_H
#define FAKECUDA_H
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

/* One counter by name ("h2d_bytes", "races", ..., see counters.h), or the number of
 * calls of one entry point ("calls.cudaMalloc"). Unknown names give 0. */
uint64_t fakecuda_counter(const char* name);

/* All counters that are not zero, as one JSON object. Returns the length that the
 * whole text needs, like snprintf. */
int fakecuda_counters_json(char* text, size_t size);

/* Counters back to zero. Peaks restart from the memory that is in use now. */
void fakecuda_reset(void);

/* Change a knob while running: the name of the environment variable without
 * "FAKECUDA_", in either case. Returns 0, or 1 for a knob that does not exist or that
 * only counts at start (DEVICES, ARENA, PIN_ARENA, GUARD). */
int fakecuda_set(const char* knob, double value);

/* The present value of any knob. Returns 0, or 1 if there is none of that name. */
int fakecuda_get(const char* knob, double* value);

/* Replace the fault rules; the grammar is that of FAKECUDA_FAIL, "" disarms.
 * Calls are counted from here on. Returns 0, or 1 if the text makes no sense. */
int fakecuda_fail(const char* rules);

#ifdef __cplusplus
}
#endif
#endif
