// Streams and events.
//
// CUDA promises that the operations of one stream run one after another in the order in which they were
// queued, that the host goes on at once, and nothing about different streams except what events and the
// legacy default stream order. Each stream is one thread here that works off a queue. With DATA=0 what only
// takes time gets its end when it is queued, and then costs no thread a wake-up that the program's own
// threads would pay for.
#pragma once
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>

#include "common.h"
#include "races.h"

namespace fk {

// A point in a stream: what an event records, and what a wait waits for.
struct Record {
  Stream* stream = nullptr;
  uint64_t op = 0;
  VectorClock clock;  // everything that is ordered before this point
  TimePoint time;     // when the device got there or will get there, once `timed`
  bool timed = false;
  int polls = 0;  // event queries so far (LAZY)
  bool done() const;
};
using RecordPtr = std::shared_ptr<Record>;

// Work gets the time at which it may start and returns the time at which it ended, or, if it only takes time,
// will end. Both are modelled times: a late wake-up of this process's threads does not add up.
using Work = std::function<TimePoint(TimePoint)>;

struct Operation {
  // `pause` only takes time: its `run` does not block, and is called under the lock.
  enum Type { work, pause, wait, record } type = work;
  Work run = nullptr;
  RecordPtr point = nullptr;
  uint64_t number = 0;
  TimePoint queued_at = {};
};

// When an operation ends whose end was known when it was queued.
struct Deadline {
  uint64_t op;
  TimePoint at;
};

struct Context;
struct Capture;
using CapturePtr = std::shared_ptr<Capture>;

struct Stream {
  int id, device, priority;
  Context* context;
  CapturePtr capture;        // that it takes part in
  bool joined_back = false;  // the capture's first stream waits for what it captured
  unsigned flags;
  bool legacy = false;
  bool started = false;  // has a thread
  bool destroyed = false;
  std::deque<Deadline> deadlines;  // all before the queue's operations
  std::deque<Operation> queue;
  uint64_t enqueued = 0, completed = 0;
  uint64_t released = 0;  // LAZY: may run up to here
  uint64_t random;
  TimePoint time;     // when its last operation before the queue's ended or will end
  VectorClock clock;  // what its next operation is ordered after
  std::condition_variable wake;
  bool non_blocking() const { return flags & 1; }
  bool idle() { return reached(enqueued); }
  bool reached(uint64_t op);  // whether the device is past it
};

struct Event {
  int device;  // of the context that was current when it was created
  unsigned flags;
  RecordPtr last;
  CapturePtr capture = nullptr;  // in which it was last recorded
  bool timed() const { return !(flags & 2); }
};

// --- What the entry points call. -----------------------------------------------------------------------

FK_API int stream_create(Context* context, unsigned flags, int priority, Stream** out);
FK_API int stream_destroy(Stream* stream);
// The handles 0 and 1 mean the legacy default stream of the current context, 2 the calling thread's own
// there.
FK_API int stream_resolve(void* handle, Stream** out);
FK_API int stream_synchronize(Stream* stream);
FK_API int stream_query(Stream* stream);
FK_API int stream_wait_event(Stream* stream, Event* event);
FK_API int device_synchronize(int device);
FK_API int launch_host_function(Stream* stream, std::function<void()> function);

FK_API int event_create(int device, unsigned flags, Event** out);
FK_API int event_destroy(Event* event);
FK_API int event_record(Event* event, Stream* stream);
FK_API int event_synchronize(Event* event);
FK_API int event_query(Event* event);
FK_API int event_elapsed(float* milliseconds, Event* from, Event* to);

// --- Inside the emulator; the caller holds the lock. ---------------------------------------------------

const std::vector<Stream*>& all_streams();            // all that ever were, by id
bool is_live_handle(void* handle, const char* what);  // of a stream or an event; says so if not
void add_handle(void* handle);
void remove_handle(void* handle);

void enqueue(Stream* stream, Operation operation);
void enqueue_work(Stream* stream, Work work);
void enqueue_pause(Stream* stream, Work pause);
RecordPtr end_of(Stream* stream);  // as queued now

// Blocks until the device got there; gives up the lock meanwhile.
void await(Lock& lock, const Record& point);
// The same for the host, which is then ordered after it.
int wait_for(Lock& lock, const RecordPtr& point);
int wait_for_stream(Lock& lock, Stream* stream);
void release(Stream* stream, uint64_t up_to);  // LAZY: lets work run
void wake_all_streams();

}  // namespace fk
