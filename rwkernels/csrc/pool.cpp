#include "pool.hpp"

#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <thread>

#include "memory.hpp"
#include "openmp.hpp"

namespace rwk {
namespace {

thread_local bool inside_a_body = false;

struct Job {
  const std::function<void(std::int64_t)>* body = nullptr;
  std::int64_t n = 0;
  std::atomic<std::int64_t> next{0};
  std::mutex error_mutex;
  std::exception_ptr error;

  void run() noexcept {
    const bool nested = inside_a_body;
    inside_a_body = true;
    for (std::int64_t i = next.fetch_add(1); i < n; i = next.fetch_add(1)) {
      try {
        (*body)(i);
      } catch (...) {
        std::lock_guard<std::mutex> lock(error_mutex);
        if (!error) error = std::current_exception();
        next.store(n);
      }
    }
    inside_a_body = nested;
  }
};

class Pool {
 public:
  void run(Job& job, int threads) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      for (; workers_ < threads - 1; ++workers_) std::thread(&Pool::work, this, workers_).detach();
      job_ = &job;
      wanted_ = threads - 1;
      ++generation_;
    }
    wake_.notify_all();
    job.run();
    std::unique_lock<std::mutex> lock(mutex_);
    job_ = nullptr;  // a worker that wakes only now finds nothing to join, and nobody waits for it
    done_.wait(lock, [this] { return running_ == 0; });
  }

 private:
  void work(int index) {
    std::uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return generation_ != seen; });
      seen = generation_;
      if (job_ == nullptr || index >= wanted_) continue;
      Job* job = job_;
      ++running_;
      lock.unlock();
      job->run();
      lock.lock();
      if (--running_ == 0) done_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  Job* job_ = nullptr;
  int workers_ = 0, wanted_ = 0, running_ = 0;
  std::uint64_t generation_ = 0;
};

// A team of OpenMP has always as many threads as torch gives it: the runtime ends the workers that a smaller one leaves
// over, and the next operator of torch would have to start them again. So some of the team may find nothing to do.
void run_on_team(const OpenMP& openmp, Job& job, int threads, Worker& first) {
  struct Work {
    const OpenMP& openmp;
    Job& job;
    int threads;
    Worker& first;
  } work{openmp, job, threads, first};
  openmp.parallel(
      [](void* argument) {
        const Work& work = *static_cast<Work*>(argument);
        const int number = work.openmp.thread_number();
        if (number == 1) work.first.is_the_calling_thread();
        if (number < work.threads) work.job.run();
      },
      &work, 0, 0);
}

// One caller at a time has several threads.
struct Threads {
  std::mutex caller;
  Pool pool;
};

// Never destroyed: the threads of the pool may outlive static destructors. They do not survive fork(), and a lock may
// be held by one that is gone: the child starts afresh and leaks what its parent had, on purpose.
Threads* all_threads = new Threads;
const int registered = pthread_atfork(nullptr, nullptr, [] {
  all_threads = new Threads;
  inside_a_body = false;
});

// False where the calling thread has to do it alone.
bool run_on_several(Job& job, int threads) {
  const OpenMP* openmp = torch_openmp();
  if (openmp && openmp->surrounding_teams() > 0) return false;  // the others of the team have the cores
  Threads& all = *all_threads;
  std::unique_lock<std::mutex> only_one(all.caller, std::try_to_lock);
  if (!only_one) return false;
  thread_local Worker first;  // all of a team fall asleep at the same time
  if (openmp && runs_torch() && threads <= openmp->most_threads() && first.is_awake()) {
    run_on_team(*openmp, job, threads, first);
  } else {
    all.pool.run(job, threads);
  }
  return true;
}

}  // namespace

void parallel_for(std::int64_t n, int threads, const std::function<void(std::int64_t)>& body) {
  if (n <= 0) return;
  if (threads > n) threads = static_cast<int>(n);
  Job job;
  job.body = &body;
  job.n = n;
  if (threads <= 1 || inside_a_body || !run_on_several(job, threads)) job.run();
  if (job.error) std::rethrow_exception(job.error);
}

void* thread_scratch(std::size_t bytes) {
  thread_local std::unique_ptr<void, Free> memory;
  thread_local std::size_t size = 0;
  if (bytes > size) {
    memory.reset();
    size = 0;
    const std::size_t rounded = (bytes + 63) / 64 * 64;
    memory.reset(std::aligned_alloc(64, rounded));
    if (!memory) throw std::bad_alloc();
    size = rounded;
  }
  return memory.get();
}

}  // namespace rwk
