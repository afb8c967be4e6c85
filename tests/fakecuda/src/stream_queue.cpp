// The queue of a stream and the thread that works it off.
#include <pthread.h>

#include <algorithm>
#include <thread>

#include "capture.h"
#include "state.h"
#include "streams.h"
#include "timing.h"

namespace fk {

namespace {

// LAZY: real work may start arbitrarily late. It starts here when something waits for it, or after
// LAZY_MAX_MS.
void hold_back(Lock& lock, Stream* s, const Operation& op) {
  TimePoint limit = op.queued_at + duration(config().lazy_max_ms * 1e-3);
  while (config().lazy && s->released < op.number && Clock::now() < limit) s->wake.wait_until(lock, limit);
}

void sleep_unlocked(Lock& lock, TimePoint until) {
  if (Clock::now() >= until) return;
  lock.unlock();
  sleep_until(until);
  lock.lock();
}

Clock::duration start_delay(Stream* s) {
  double us = config().latency_us;
  if (config().jitter_us > 0) us += config().jitter_us * double(next_random(s->random) >> 11) * 0x1p-53;
  return duration(us * 1e-6);
}

TimePoint run_work(Lock& lock, Stream* s, Operation& op, TimePoint ready) {
  Work work = std::move(op.run);
  auto delay = start_delay(s);
  lock.unlock();
  if (delay.count() > 0) sleep_until(ready += delay);
  TimePoint end = work(ready);
  work = nullptr;
  lock.lock();
  return end;
}

// When an operation ends that is no work, and whose wait is for a point that is timed or done.
TimePoint reckon(Stream* s, Operation& op, TimePoint ready) {
  switch (op.type) {
    case Operation::pause:
      return op.run(ready + start_delay(s));
    case Operation::wait:
      return std::max(ready, op.point->timed ? op.point->time : Clock::now());
    default:
      op.point->time = ready;
      op.point->timed = true;
      return ready;
  }
}

TimePoint run(Lock& lock, Stream* s, Operation& op) {
  hold_back(lock, s, op);
  TimePoint ready = std::max(op.queued_at, s->time);
  if (config().lazy) ready = std::max(ready, Clock::now());
  if (op.type == Operation::work) return run_work(lock, s, op, ready);
  if (op.type == Operation::wait) {
    release(op.point->stream, op.point->op);
    await(lock, *op.point);
  }
  TimePoint end = reckon(s, op, ready);
  sleep_unlocked(lock, end);
  return end;
}

// Sets a deadline for an operation whose end is known already: it only takes time, and so does all before it.
bool set_deadline(Stream* s, Operation& op) {
  if (config().data || config().lazy || !s->queue.empty() || op.type == Operation::work) return false;
  if (op.type == Operation::wait && !op.point->timed && !op.point->done()) return false;
  s->time = reckon(s, op, std::max(op.queued_at, s->time));
  s->deadlines.push_back({op.number, s->time});
  return true;
}

void stream_thread(Stream* s) {
  pthread_setname_np(pthread_self(), ("fkstream" + std::to_string(s->id)).c_str());
  Lock lock(state().mu);
  for (;;) {
    while (s->queue.empty()) {
      if (s->destroyed) return;
      s->wake.wait(lock);
    }
    Operation& op = s->queue.front();
    sleep_unlocked(lock, s->time);
    s->reached(op.number - 1);
    s->time = run(lock, s, op);
    s->completed = op.number;
    s->queue.pop_front();
    state().progress.notify_all();
  }
}

void advance_clock(Stream* s, const Operation& op) {
  join_clock(&s->clock, host_clock());
  if (s->clock.size() <= size_t(s->id)) s->clock.resize(s->id + 1);
  s->clock[s->id] = op.number;
  if (op.type == Operation::wait) join_clock(&s->clock, op.point->clock);
}

void push(Stream* s, Operation op) {
  op.number = ++s->enqueued;
  op.queued_at = Clock::now();
  advance_clock(s, op);
  if (op.type == Operation::record) {
    op.point->stream = s;
    op.point->op = op.number;
    op.point->clock = s->clock;
  }
  if (set_deadline(s, op)) return;
  if (!s->started) {
    s->started = true;
    std::thread(stream_thread, s).detach();
  }
  s->queue.push_back(std::move(op));
  s->wake.notify_all();
}

// The legacy default stream waits for, and is waited for by, every stream of its device that was not created
// non-blocking.
void order_with_legacy_stream(Stream* s) {
  if (!s->legacy) {
    Stream* legacy = s->context->legacy_stream;
    if (!s->non_blocking() && legacy && !legacy->idle()) push(s, {Operation::wait, nullptr, end_of(legacy)});
    return;
  }
  for (Stream* t : all_streams())
    if (t != s && t->context == s->context && !t->non_blocking() && !t->idle())
      push(s, {Operation::wait, nullptr, end_of(t)});
}

}  // namespace

bool Stream::reached(uint64_t op) {
  if (completed >= op) return true;
  for (TimePoint now = Clock::now(); !deadlines.empty() && deadlines.front().at <= now; deadlines.pop_front())
    completed = deadlines.front().op;
  return completed >= op;
}

bool Record::done() const { return stream->reached(op); }

void await(Lock& lock, const Record& point) {
  while (!point.done()) {
    const std::deque<Deadline>& deadlines = point.stream->deadlines;
    if (deadlines.empty() || deadlines.back().op < point.op)
      state().progress.wait(lock);
    else  // they are of one operation after the other
      sleep_unlocked(lock, deadlines[point.op - deadlines.front().op].at);
  }
}

RecordPtr end_of(Stream* s) {
  auto r = std::make_shared<Record>();
  r->stream = s;
  r->op = s->enqueued;
  r->clock = s->clock;
  return r;
}

void enqueue(Stream* s, Operation op) {
  if (s->capture) return capture_operation(s);
  order_with_legacy_stream(s);
  push(s, std::move(op));
}

void enqueue_work(Stream* stream, Work work) { enqueue(stream, {Operation::work, std::move(work), nullptr}); }
void enqueue_pause(Stream* stream, Work pause) {
  enqueue(stream, {Operation::pause, std::move(pause), nullptr});
}

void release(Stream* s, uint64_t up_to) {
  if (s->released >= up_to) return;
  s->released = up_to;
  s->wake.notify_all();
}

}  // namespace fk
