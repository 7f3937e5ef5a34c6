#include "openmp.hpp"

#ifdef __linux__

#include <dlfcn.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <optional>

namespace rwk {
namespace {

// Whether this process is a child of fork() that has not called exec() since: the module may be loaded in one, long
// after its parent used OpenMP, and only the kernel remembers (PF_FORKNOEXEC among the flags of proc_pid_stat(5)).
// Where it tells no flags, as sandboxes do, the answer is yes, for nothing but speed is lost by it.
bool forked_before() {
  constexpr unsigned fork_no_exec = 0x40;
  char line[512] = "";
  if (std::FILE* file = std::fopen("/proc/self/stat", "r")) {
    if (!std::fgets(line, sizeof line, file)) line[0] = 0;
    std::fclose(file);
  }
  unsigned flags = 0;
  const char* name_ends = std::strrchr(line, ')');  // a name may hold anything, spaces and brackets too
  return !name_ends || std::sscanf(name_ends + 1, " %*c %*d %*d %*d %*d %*d %u", &flags) != 1 || flags == 0 ||
         (flags & fork_no_exec) != 0;
}

bool forked = forked_before();
const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });

template <class Function>
bool find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  return function != nullptr;
}

// The runtime that a name leads to from `library`, if it is the one that torch uses. There can be several in a process
// (every package brings its own), so torch is asked: what is set in its runtime shows in its answer.
std::optional<OpenMP> runtime_of_torch(void* library, int (*torch_threads)()) {
  OpenMP found;
  if (!find(library, "GOMP_parallel", found.parallel) || !find(library, "omp_get_thread_num", found.thread_number) ||
      !find(library, "omp_get_max_threads", found.most_threads) ||
      !find(library, "omp_set_num_threads", found.set_threads) ||
      !find(library, "omp_get_level", found.surrounding_teams))
    return std::nullopt;
  const int threads = torch_threads(), before = found.most_threads();
  found.set_threads(threads + 1);
  const bool same = torch_threads() == threads + 1;
  found.set_threads(before);
  return same ? std::optional(found) : std::nullopt;
}

std::optional<OpenMP> look_up() {
  void* torch = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
  int (*torch_threads)();
  if (!torch || !find(torch, "_ZN2at15get_num_threadsEv", torch_threads)) return std::nullopt;  // at::get_num_threads()
  // Where a runtime was preloaded, torch takes that one and not the one that it was linked with.
  if (const auto preloaded = runtime_of_torch(RTLD_DEFAULT, torch_threads)) return preloaded;
  return runtime_of_torch(torch, torch_threads);
}

bool is_main_thread() { return syscall(SYS_gettid) == getpid(); }

// The one place beside the main thread.
std::atomic<bool> place_is_taken{false};

struct Place {
  bool mine = false;
  ~Place() {
    if (mine) place_is_taken = false;
  }
};

thread_local Place place;

}  // namespace

const OpenMP* torch_openmp() {
  if (forked) return nullptr;
  static const std::optional<OpenMP> found = look_up();
  return found ? &*found : nullptr;
}

bool runs_torch() {
  thread_local const bool main = is_main_thread();
  return main || place.mine;
}

void say_it_runs_torch() {
  if (!runs_torch()) place.mine = !place_is_taken.exchange(true);
}

void Worker::is_the_calling_thread() { known_ = pthread_getcpuclockid(pthread_self(), &clock_) == 0; }

bool Worker::is_awake() const {
  timespec before, after;
  if (!known_ || clock_gettime(clock_, &before) != 0 || clock_gettime(clock_, &after) != 0) return true;
  return before.tv_nsec != after.tv_nsec;  // it went on meanwhile
}

}  // namespace rwk

#else

namespace rwk {

const OpenMP* torch_openmp() { return nullptr; }
bool runs_torch() { return false; }
void say_it_runs_torch() {}
void Worker::is_the_calling_thread() {}
bool Worker::is_awake() const { return true; }

}  // namespace rwk

#endif
