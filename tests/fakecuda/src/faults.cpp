#include "faults.h"

#include <cstdlib>
#include <cstring>
#include <vector>

#include "counters.h"
#include "fakecuda.h"
#include "state.h"

namespace fk {

namespace {

// api:N[+][:error[:late]]  N counts calls from 1; "+" means that one and all later ones.
struct Rule {
  std::string api;
  uint64_t nth = 1;
  bool and_later = false;
  int error = kIllegalAddress;
  bool late = false;
  uint64_t seen = 0;
};

std::mutex rules_mutex;
std::vector<Rule>* rules;
std::atomic<bool> armed{false};
std::atomic<ApiSite*> sites{nullptr};
thread_local int late_fault = kOk;

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  size_t start = 0;
  for (;;) {
    size_t end = text.find(separator, start);
    parts.push_back(text.substr(start, end - start));
    if (end == std::string::npos) return parts;
    start = end + 1;
  }
}

int error_from_text(const std::string& text) {
  static const struct {
    const char* name;
    int error;
  } kErrors[] = {{"oom", kOutOfMemory},           {"illegal", kIllegalAddress},
                 {"notpermitted", kNotPermitted}, {"invalid", kInvalidValue},
                 {"launch", kLaunchFailure},      {"ecc", kEccUncorrectable},
                 {"notsupported", kNotSupported}};
  for (auto& e : kErrors)
    if (text == e.name) return e.error;
  return atoi(text.c_str());
}

// Allocations run out of memory; anything else meets an illegal address.
int default_error(const std::string& api) {
  for (const char* part : {"Alloc", "alloc", "MemCreate", "HostRegister"})
    if (api.find(part) != std::string::npos) return kOutOfMemory;
  return kIllegalAddress;
}

bool parse_rule(const std::string& text, Rule* rule) {
  auto parts = split(text, ':');
  if (parts.size() < 2 || parts.size() > 4 || parts[0].empty()) return false;
  rule->api = parts[0];
  rule->nth = strtoull(parts[1].c_str(), nullptr, 10);
  rule->and_later = !parts[1].empty() && parts[1].back() == '+';
  rule->error = parts.size() > 2 ? error_from_text(parts[2]) : default_error(parts[0]);
  rule->late = parts.size() > 3 && parts[3] == "late";
  return rule->nth > 0 && rule->error > 0 && (parts.size() < 4 || rule->late);
}

bool set_rules(const char* text) {
  auto* parsed = new std::vector<Rule>();
  bool good = true;
  if (*text)
    for (auto& part : split(text, ',')) {
      Rule rule;
      if (parse_rule(part, &rule))
        parsed->push_back(rule);
      else
        say("fault rule '%s' is not understood, ignored", part.c_str()), good = false;
    }
  std::lock_guard<std::mutex> lock(rules_mutex);
  delete rules;
  rules = parsed;
  armed = !parsed->empty();
  return good;
}

void read_environment_once() {
  static std::once_flag once;
  std::call_once(once, [] {
    if (const char* text = getenv("FAKECUDA_FAIL")) set_rules(text);
  });
}

int injected_fault(const char* api) {
  int error = kOk;
  bool late = false;
  {
    std::lock_guard<std::mutex> lock(rules_mutex);
    for (Rule& rule : *rules) {
      if (!same_api(rule.api, api)) continue;
      rule.seen++;
      if (rule.seen != rule.nth && !(rule.and_later && rule.seen > rule.nth)) continue;
      error = rule.error;
      late = rule.late;
    }
  }
  if (!error) return kOk;
  count(Counter::faults_injected);
  say("FAULT injected into %s: %s%s", api, error_text(error), late ? " (late)" : "");
  if (late) {
    late_fault = error;
    return kOk;
  }
  if (error_is_sticky(error)) kill_device(bound_device(), error);
  return error;
}

}  // namespace

bool same_api(const std::string& rule, const char* api) {
  size_t n = rule.size();
  if (strncmp(rule.c_str(), api, n)) return false;
  const char* rest = api + n;
  return !*rest || (rest[0] == '_' && rest[1] == 'v' && rest[2] >= '0' && rest[2] <= '9');
}

int take_late_fault() {
  int error = late_fault;
  late_fault = kOk;
  return error;
}

ApiSite::ApiSite(const char* name) : name_(name), next_(sites) {
  read_environment_once();
  while (!sites.compare_exchange_weak(next_, this)) {
  }
}

ApiSite* ApiSite::first() { return sites; }

ApiSite* ApiSite::find(const char* name) {
  for (ApiSite* s = sites; s; s = s->next_)
    if (same_api(name, s->name_)) return s;
  return nullptr;
}

int ApiSite::enter(bool needs_live_context) {
  calls_++;
  late_fault = kOk;
  if (int error = ready()) return error;
  if (needs_live_context)
    if (int error = sticky_error()) return error;
  return armed ? injected_fault(name_) : kOk;
}

int stub(const char* name) {
  count(Counter::stub_calls);
  if (config().verbose) say("%s is not emulated: not supported", name);
  return kNotSupported;
}

}  // namespace fk

extern "C" FK_API int fakecuda_fail(const char* rules) {
  fk::read_environment_once();
  return fk::set_rules(rules) ? 0 : 1;
}
