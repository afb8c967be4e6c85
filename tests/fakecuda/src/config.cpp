#include "config.h"

#include <strings.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace fk {

namespace {

struct Knob {
  const char* name;
  bool fixed_at_start;
  void (*set)(Config&, double);
  double (*get)(const Config&);
};

// A knob that is a number of the field's own type; flags are true for anything but 0.
#define FK_KNOB(name, fixed, field)                                           \
  Knob {                                                                      \
    name, fixed, [](Config& c, double v) { c.field = decltype(c.field)(v); }, \
        [](const Config& c) { return double(c.field); }                       \
  }

const Knob kKnobs[] = {
    FK_KNOB("DEVICES", true, devices),
    FK_KNOB("MEM", false, memory),
    FK_KNOB("ARENA", true, arena),
    FK_KNOB("PIN_ARENA", true, pin_arena),
    FK_KNOB("BW_H2D", false, bandwidth[kH2D]),
    FK_KNOB("BW_D2H", false, bandwidth[kD2H]),
    FK_KNOB("BW_D2D", false, bandwidth[kD2D]),
    FK_KNOB("BW_PAGEABLE", false, bandwidth_pageable),
    FK_KNOB("LATENCY_US", false, latency_us),
    FK_KNOB("JITTER_US", false, jitter_us),
    FK_KNOB("PIN_COST", false, pin_cost),
    FK_KNOB("PIN_BUSY", false, pin_busy),
    FK_KNOB("DATA", false, data),
    FK_KNOB("SEED", false, seed),
    FK_KNOB("LAZY", false, lazy),
    FK_KNOB("LAZY_MAX_MS", false, lazy_max_ms),
    FK_KNOB("RACE", false, race),
    FK_KNOB("GUARD", true, guard),
    FK_KNOB("STRICT_FREE", false, strict_free),
    FK_KNOB("POISON", false, poison),
    FK_KNOB("SKIP_KERNELS", false, skip_kernels),
    FK_KNOB("VERBOSE", false, verbose),
};
#undef FK_KNOB

const Knob* find_knob(const char* name) {
  for (const Knob& knob : kKnobs)
    if (!strcasecmp(name, knob.name)) return &knob;
  return nullptr;
}

// "25e9", "25g" (10^9) or "8Gi" (2^30).
bool parse_number(const char* text, double* value) {
  char* end;
  double v = strtod(text, &end);
  if (end == text) return false;
  static const char kUnits[] = "kmgt";
  if (const char* unit = *end ? strchr(kUnits, *end | 32) : nullptr) {
    double step = end[1] == 'i' ? 1024 : 1000;
    for (const char* u = kUnits; u <= unit; u++) v *= step;
    end += end[1] == 'i' ? 2 : 1;
  }
  *value = v;
  return !*end;
}

// CUDA_VISIBLE_DEVICES can only take devices away here: "1" hides all but one, and the
// list is counted up to the first entry that is no device, not re-ordered.
int visible_devices(int devices) {
  const char* v = getenv("CUDA_VISIBLE_DEVICES");
  if (!v) return devices;
  int n = 0;
  while (*v >= '0' && *v <= '9' && atoi(v) < devices) {
    n++;
    while (*v >= '0' && *v <= '9') v++;
    if (*v == ',') v++;
  }
  return n;
}

Config* from_environment() {
  auto* c = new Config();
  for (const Knob& knob : kKnobs) {
    std::string name = std::string("FAKECUDA_") + knob.name;
    const char* text = getenv(name.c_str());
    if (!text || !*text) continue;
    double value;
    if (parse_number(text, &value))
      knob.set(*c, value);
    else
      say("%s=%s is not understood, ignored", name.c_str(), text);
  }
  c->devices = visible_devices(std::max(c->devices, 0));
  return c;
}

}  // namespace

Config& config() {
  static Config* c = from_environment();
  return *c;
}

bool set_knob(const char* name, double value) {
  const Knob* knob = find_knob(name);
  if (!knob || knob->fixed_at_start) return false;
  knob->set(config(), value);
  return true;
}

bool get_knob(const char* name, double* value) {
  const Knob* knob = find_knob(name);
  if (knob) *value = knob->get(config());
  return knob;
}

}  // namespace fk
