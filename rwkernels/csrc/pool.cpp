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

namespace rwk {
namespace {

struct Job {
  const std::function<void(std::int64_t)>* body = nullptr;
  std::int64_t n = 0;
  std::atomic<std::int64_t> next{0};
  std::mutex error_mutex;
  std::exception_ptr error;

  void run() {
    for (std::int64_t i = next.fetch_add(1); i < n; i = next.fetch_add(1)) {
      try {
        (*body)(i);
      } catch (...) {
        std::lock_guard<std::mutex> lock(error_mutex);
        if (!error) error = std::current_exception();
        next.store(n);
      }
    }
  }
};

thread_local bool inside_pool = false;

class Pool {
 public:
  // False if another caller holds the pool.
  bool run(Job& job, int threads) {
    std::unique_lock<std::mutex> only_one(caller_, std::try_to_lock);
    if (!only_one) return false;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      for (; workers_ < threads - 1; ++workers_) std::thread(&Pool::work, this, workers_).detach();
      job_ = &job;
      wanted_ = threads - 1;
      ++generation_;
    }
    wake_.notify_all();
    inside_pool = true;
    job.run();
    inside_pool = false;
    std::unique_lock<std::mutex> lock(mutex_);
    job_ = nullptr;  // a worker that wakes only now finds nothing to join, and nobody waits for it
    done_.wait(lock, [this] { return running_ == 0; });
    return true;
  }

 private:
  void work(int index) {
    inside_pool = true;
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

  std::mutex caller_, mutex_;
  std::condition_variable wake_, done_;
  Job* job_ = nullptr;
  int workers_ = 0, wanted_ = 0, running_ = 0;
  std::uint64_t generation_ = 0;
};

Pool* pool = nullptr;
std::mutex* pool_mutex = new std::mutex;

// Threads do not survive fork(), and a lock may be held by one that is gone: the child starts afresh and
// leaks the parent's pool on purpose.
void forget_pool() {
  pool = nullptr;
  pool_mutex = new std::mutex;
  inside_pool = false;
}

Pool& the_pool() {
  static const int registered = pthread_atfork(nullptr, nullptr, forget_pool);
  (void)registered;
  std::lock_guard<std::mutex> lock(*pool_mutex);
  if (pool == nullptr) pool = new Pool;  // never destroyed: its threads may outlive static destructors
  return *pool;
}

}  // namespace

void parallel_for(std::int64_t n, int threads, const std::function<void(std::int64_t)>& body) {
  if (n <= 0) return;
  if (threads > n) threads = static_cast<int>(n);
  Job job;
  job.body = &body;
  job.n = n;
  if (threads <= 1 || inside_pool || !the_pool().run(job, threads)) job.run();
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
