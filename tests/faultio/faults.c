// Preloaded: fails, shortens, or acts before chosen calls of the C library that concern chosen files.
//
// faults_arm takes rules CALL:NTH:ACTION, separated by commas. A rule counts the calls of its name that
// concern a file whose path contains the text given, and acts on the NTH, counted from 1, or on all if NTH is
// 0. ACTION is
//   eN  fail with errno N          sN  transfer at most N bytes      k  die by SIGKILL
//   tN  truncate the file to N bytes first, then go on               r  rename another file over it first,
//   then go on
// CALL is open, reopen (of what a descriptor in /proc names), read, write, sync, mode, rename, unlink or map,
// or any: each of these. Hexadecimal digits after it are flags of open(2) that the file must have been opened
// with.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define MAX_RULES 16

static struct {
  char call[16];
  long nth;
  char action;
  long value;
  atomic_long seen;
} rules[MAX_RULES];
static int rule_count;
static atomic_long acts;
static char wanted[PATH_MAX], other[PATH_MAX];

// From now on `text` are the rules for files with `path` in theirs.
void faults_arm(const char* text, const char* path, const char* replacement) {
  rule_count = 0;
  snprintf(wanted, sizeof wanted, "%s", path);
  snprintf(other, sizeof other, "%s", replacement);
  while (text && *text && rule_count < MAX_RULES) {
    __typeof__(rules[0])* rule = &rules[rule_count++];
    if (sscanf(text, "%15[^:]:%ld:%c%ld", rule->call, &rule->nth, &rule->action, &rule->value) < 3) {
      abort();
    }
    atomic_store(&rule->seen, 0);
    text = strchr(text, ',');
    text = text ? text + 1 : NULL;
  }
  atomic_store(&acts, 0);
}

// Back to normal; returns how often the last rule acted.
long faults_disarm(void) {
  wanted[0] = 0;
  return atomic_load(&acts);
}

static int matches(const char* rule, const char* call, int flags) {
  if (strcmp(rule, "any") == 0) {
    return 1;
  }
  const size_t length = strlen(call);
  if (strncmp(rule, call, length) != 0) {
    return 0;
  }
  const long needed = strtol(rule + length, NULL, 16);
  return (flags & needed) == needed;
}

// Does what the rules ask for. Returns 0 to go on, with *bytes lowered if asked for, or -1 to fail with
// errno.
static int act(const char* call, const char* path, int flags, size_t* bytes) {
  if (!wanted[0] || strstr(path, wanted) == NULL) {
    return 0;
  }
  for (int i = 0; i < rule_count; i++) {
    if (!matches(rules[i].call, call, flags)) {
      continue;
    }
    const long seen = atomic_fetch_add(&rules[i].seen, 1) + 1;
    if (rules[i].nth != 0 && rules[i].nth != seen) {
      continue;
    }
    const long value = rules[i].value;
    if (i == rule_count - 1) {
      atomic_fetch_add(&acts, 1);
    }
    switch (rules[i].action) {
      case 'e':
        errno = (int)value;
        return -1;
      case 's':
        if (bytes && *bytes > (size_t)value) {
          *bytes = (size_t)value;
        }
        break;
      case 'k':
        raise(SIGKILL);
        break;
      case 't':
        if (truncate(path, value) != 0) {
          _exit(98);
        }
        break;
      case 'r':
        if (REAL(rename)(other, path) != 0) {
          _exit(97);
        }
        break;
    }
  }
  return 0;
}

static int act_on(const char* call, int fd, size_t* bytes) {
  if (!wanted[0]) {
    return 0;
  }
  char link[32], path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  const ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) {
    return 0;
  }
  path[length] = 0;
  return act(call, path, fcntl(fd, F_GETFL), bytes);
}

int open64(const char* path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  const mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0;
  va_end(rest);
  char target[PATH_MAX];
  const ssize_t length = strncmp(path, "/proc/self/fd/", 14) ? -1 : readlink(path, target, sizeof target - 1);
  if (length >= 0) {
    target[length] = 0;
  }
  const int failed = length < 0 ? act("open", path, flags, NULL) : act("reopen", target, flags, NULL);
  return failed ? -1 : REAL(open64)(path, flags, mode);
}

ssize_t pread64(int fd, void* buffer, size_t bytes, off64_t offset) {
  return act_on("read", fd, &bytes) ? -1 : REAL(pread64)(fd, buffer, bytes, offset);
}

ssize_t write(int fd, const void* buffer, size_t bytes) {
  return act_on("write", fd, &bytes) ? -1 : REAL(write)(fd, buffer, bytes);
}

ssize_t pwrite64(int fd, const void* buffer, size_t bytes, off64_t offset) {
  return act_on("write", fd, &bytes) ? -1 : REAL(pwrite64)(fd, buffer, bytes, offset);
}

int fsync(int fd) { return act_on("sync", fd, NULL) ? -1 : REAL(fsync)(fd); }

int fchmod(int fd, mode_t mode) { return act_on("mode", fd, NULL) ? -1 : REAL(fchmod)(fd, mode); }

int chmod(const char* path, mode_t mode) { return act("mode", path, 0, NULL) ? -1 : REAL(chmod)(path, mode); }

int rename(const char* from, const char* to) {
  return act("rename", to, 0, NULL) ? -1 : REAL(rename)(from, to);
}

int unlink(const char* path) { return act("unlink", path, 0, NULL) ? -1 : REAL(unlink)(path); }

void* mmap64(void* address, size_t bytes, int protection, int flags, int fd, off64_t offset) {
  if (fd >= 0 && act_on("map", fd, NULL)) {
    return MAP_FAILED;
  }
  return REAL(mmap64)(address, bytes, protection, flags, fd, offset);
}
