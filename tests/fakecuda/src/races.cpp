#include "races.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "config.h"
#include "counters.h"
#include "guard.h"
#include "streams.h"

namespace fk {

namespace {

struct Access {
  uintptr_t lo, hi;
  bool writes;
  int stream;
  uint64_t op;
  const char* what;
};

std::vector<Access> history;  // what the host has not waited for yet
VectorClock host;

void report(const std::string& text) {
  say("HAZARD %s", text.c_str());
  if (config().race < 2) return;
  print_backtrace();
  abort();
}

std::string describe(const Access& a) {
  char text[160];
  snprintf(text, sizeof text, "%s %s [%#lx,%#lx) on stream #%d op %lu", a.what,
           a.writes ? "writing" : "reading", a.lo, a.hi, a.stream, a.op);
  return text;
}

bool conflict(const Access& earlier, const Access& later, const VectorClock& ordered) {
  return earlier.lo < later.hi && later.lo < earlier.hi && (earlier.writes || later.writes) &&
         earlier.op > clock_at(ordered, earlier.stream);
}

template <typename Predicate>
void erase_history(Predicate gone) {
  history.erase(std::remove_if(history.begin(), history.end(), gone), history.end());
}

}  // namespace

void join_clock(VectorClock* into, const VectorClock& other) {
  if (into->size() < other.size()) into->resize(other.size());
  for (size_t i = 0; i < other.size(); i++) (*into)[i] = std::max((*into)[i], other[i]);
}

void record_access(Stream* stream, uintptr_t address, size_t size, bool writes, const char* what) {
  if (!config().race && !config().strict_free) return;
  Access now{address, address + size, writes, stream->id, stream->enqueued, what};
  if (config().race)
    for (const Access& earlier : history) {
      if (!conflict(earlier, now, stream->clock)) continue;
      count(Counter::races);
      report("race: " + describe(now) + " is not ordered after " + describe(earlier) +
             " (missing event wait, synchronization or record_stream)");
      break;
    }
  history.push_back(now);
}

void host_observed(const VectorClock& clock) {
  join_clock(&host, clock);
  erase_history([](const Access& a) { return a.op <= clock_at(host, a.stream); });
  release_guards(host);
}

const VectorClock& host_clock() { return host; }

void check_free(uintptr_t lo, uintptr_t hi, const char* what) {
  for (const Access& a : history) {
    if (a.lo >= hi || lo >= a.hi) continue;
    count(Counter::frees_in_flight);
    if (config().strict_free)
      report(std::string("free in flight: ") + what + " while " + describe(a) + " was never waited for");
    return;
  }
}

void forget_accesses(uintptr_t lo, uintptr_t hi) {
  erase_history([&](const Access& a) { return a.lo >= lo && a.hi <= hi; });
}

}  // namespace fk
