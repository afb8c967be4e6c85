// Every knob. README.md says what each one models; the environment variable is the
// name in config.cpp's table with FAKECUDA_ in front.
#pragma once
#include "common.h"

namespace fk {

enum Direction { kH2D = 0, kD2H = 1, kD2D = 2 };

struct Config {
  // The machine.
  int devices = 1;
  uint64_t memory = 8ull << 30;  // bytes per device
  uint64_t arena = 0;            // bytes of pre-faulted device memory, 0: map on demand
  uint64_t pin_arena = 0;        // the same for pinned memory
  // Time.
  double bandwidth[3] = {0, 0, 0};  // bytes per second by Direction, 0: no cap
  double bandwidth_pageable = 0;    // further cap when one side is pageable
  double latency_us = 0;            // before each copy, memset or host function
  double jitter_us = 0;             // plus a seeded amount up to this
  double pin_cost = 0;              // seconds per GiB of pinned memory
  bool pin_busy = false;            // burn that time instead of sleeping
  bool data = true;                 // false: copies take time but move no bytes
  // Order.
  uint64_t seed = 1;
  bool lazy = false;         // work runs only when something forces it
  double lazy_max_ms = 200;  // ... or after this long
  // Checks.
  int race = 0;  // 1: report, 2: report and abort
  bool guard = false;
  bool strict_free = false;
  bool poison = false;
  // Kernels and messages.
  bool skip_kernels = false;  // instead of refusing them
  int verbose = 0;
};

FK_API Config& config();

// For fakecuda_set() and fakecuda_get(). False if there is no such knob, or if it shall be set and only
// counts at start.
bool set_knob(const char* name, double value);
bool get_knob(const char* name, double* value);

}  // namespace fk
