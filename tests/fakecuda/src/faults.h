// Entry points: each has one ApiSite, which counts its calls and can make them fail.
#pragma once
#include <atomic>

#include "common.h"

namespace fk {

class ApiSite {
 public:
  FK_API explicit ApiSite(const char* name);

  // What an entry point does first. Returns an error if the process has been forked,
  // if there is no device, if this is a host function, if a fault rule says so, or, with
  // `needs_live_context`, if an earlier error has killed the context.
  FK_API int enter(bool needs_live_context = true);

  const char* name() const { return name_; }
  uint64_t calls() const { return calls_; }
  void reset() { calls_ = 0; }
  ApiSite* next() const { return next_; }
  static ApiSite* first();
  static ApiSite* find(const char* name);

 private:
  const char* name_;
  std::atomic<uint64_t> calls_{0};
  ApiSite* next_;
};

// True if `rule` names the entry point `api`; a rule may leave out "_v2" and the like.
bool same_api(const std::string& rule, const char* api);

FK_API int stub(const char* name);  // an entry point that is not emulated

// The error of a rule with ":late", once: the call that armed it returned success, and
// the work it queues shall fail when the device reaches it.
int take_late_fault();

}  // namespace fk
