// The host waits for the device; under LAZY this is what makes the device work at all.
#include <utility>

#include "counters.h"
#include "state.h"
#include "streams.h"

namespace fk {

namespace {

void run_one_operation(Lock& lock, Stream* s, TimePoint limit) {
  uint64_t n = s->completed + 1;
  release(s, n);
  while (!s->reached(n) && Clock::now() < limit) state().progress.wait_until(lock, limit);
}

std::vector<Stream*> busy_streams_but(const Stream* one) {
  std::vector<Stream*> busy;
  for (Stream* s : all_streams())
    if (s != one && !s->idle()) busy.push_back(s);
  return busy;
}

// LAZY: reaches the target one operation at a time, now and then letting another stream go first. Each SEED
// is another interleaving that CUDA allows.
void drive_lazily(Lock& lock, const RecordPtr& target) {
  static uint64_t random = config().seed * 7919;
  uint64_t others_in_5 = next_random(random) % 5;
  while (config().lazy && !target->done() && target->stream->deadlines.empty()) {
    std::vector<Stream*> others;
    if (next_random(random) % 5 < others_in_5) others = busy_streams_but(target->stream);
    if (others.empty()) {
      run_one_operation(lock, target->stream, Clock::now() + duration(0.050));
    } else {
      Stream* other = others[next_random(random) % others.size()];
      run_one_operation(lock, other, Clock::now() + duration(0.005));
    }
  }
}

// LAZY: one stream after another, in a seeded order.
void shuffle(std::vector<RecordPtr>* points) {
  static uint64_t random = config().seed;
  for (size_t i = points->size(); i > 1; i--) std::swap((*points)[i - 1], (*points)[next_random(random) % i]);
}

}  // namespace

int wait_for(Lock& lock, const RecordPtr& point) {
  if (!point->done()) {
    TimePoint start = Clock::now();
    if (config().lazy) drive_lazily(lock, point);
    release(point->stream, point->op);
    await(lock, *point);
    count(Counter::host_waits);
    count(Counter::host_wait_us, microseconds(Clock::now() - start));
  }
  host_observed(point->clock);
  return fate_of(point->stream->device);
}

int wait_for_stream(Lock& lock, Stream* stream) { return wait_for(lock, end_of(stream)); }

int device_synchronize(int device) {
  Lock lock(state().mu);
  count(Counter::device_syncs);
  std::vector<RecordPtr> ends;
  for (Stream* s : all_streams())
    if (s->device == device && s->enqueued) ends.push_back(end_of(s));
  if (config().lazy)
    shuffle(&ends);
  else
    for (auto& point : ends) release(point->stream, point->op);
  for (auto& point : ends) wait_for(lock, point);
  return fate_of(device);
}

}  // namespace fk
