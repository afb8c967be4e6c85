#include "counters.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "fakecuda.h"
#include "faults.h"

namespace fk {

namespace {

constexpr int kCount = int(Counter::how_many);
std::atomic<uint64_t> values[kCount];

const char* const kNames[] = {
#define FK_NAME(name) #name,
    FK_COUNTERS(FK_NAME)
#undef FK_NAME
};

bool is_gauge(int i) { return i == int(Counter::device_bytes) || i == int(Counter::pinned_bytes); }

std::string to_json() {
  std::string text;
  auto add = [&](const std::string& name, uint64_t value) {
    if (value) text += (text.empty() ? "\"" : ", \"") + name + "\": " + std::to_string(value);
  };
  for (int i = 0; i < kCount; i++) add(kNames[i], values[i]);
  for (ApiSite* s = ApiSite::first(); s; s = s->next()) add(std::string("calls.") + s->name(), s->calls());
  return "{" + text + "}";
}

}  // namespace

void count(Counter counter, uint64_t n) { values[int(counter)] += n; }

void gauge_add(Counter gauge, int64_t delta) {
  uint64_t now = values[int(gauge)] += delta;
  auto& peak = values[int(gauge) + 1];
  uint64_t seen = peak;
  while (seen < now && !peak.compare_exchange_weak(seen, now)) {
  }
}

void write_stats() {
  const char* file = getenv("FAKECUDA_STATS");
  if (!file || !*file) return;
  FILE* out = strcmp(file, "-") ? fopen(file, "a") : stderr;
  if (!out) return;
  fprintf(out, "%s\n", to_json().c_str());
  if (out != stderr) fclose(out);
}

}  // namespace fk

extern "C" FK_API uint64_t fakecuda_counter(const char* name) {
  using namespace fk;
  if (!strncmp(name, "calls.", 6)) {
    ApiSite* site = ApiSite::find(name + 6);
    return site ? site->calls() : 0;
  }
  for (int i = 0; i < kCount; i++)
    if (!strcmp(name, kNames[i])) return values[i];
  return 0;
}

extern "C" FK_API int fakecuda_counters_json(char* text, size_t size) {
  return snprintf(text, size, "%s", fk::to_json().c_str());
}

extern "C" FK_API void fakecuda_reset() {
  using namespace fk;
  for (int i = 0; i < kCount; i++)
    if (!is_gauge(i)) values[i] = i > 0 && is_gauge(i - 1) ? values[i - 1].load() : 0;
  for (ApiSite* s = ApiSite::first(); s; s = s->next()) s->reset();
}
