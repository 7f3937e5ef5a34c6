// The OpenMP runtime that torch computes with. The core links none: it is looked up in the process.
//
// A second set of workers is slow exactly where a loss is called: torch's stay awake for some milliseconds after every
// parallel operator, waiting for the next one, and keep the cores busy meanwhile. Handing work to the same runtime
// wakes nobody and shares its cores with nobody.
//
// While its workers sleep it is the other way round. A caller of OpenMP waits for all of them, spinning, and a worker
// that the kernel woke on the caller's core does not get to run meanwhile: after a rest of 20 ms, an operator of torch
// that takes one thread 0.5 ms took two threads 7. The pool here waits for nobody who has not begun.
#pragma once

#include <ctime>

namespace rwk {

struct OpenMP {
  void (*parallel)(void (*body)(void*), void* argument, unsigned threads, unsigned flags);
  int (*thread_number)();      // within the team, from 0
  int (*most_threads)();       // in the next team of the calling thread
  void (*set_threads)(int);    // for the next teams of the calling thread
  int (*surrounding_teams)();  // how many parallel regions the calling thread is in
};

// Null where torch is not loaded or computes with threads of another kind, and in a child of fork(): the workers of its
// parent are gone, and the runtime may wait for them forever.
const OpenMP* torch_openmp();

// Whether the calling thread is one that runs torch's operators, as far as is known: the runtime keeps workers of its
// own for every thread that asks it for some. True in the main thread, and in one more at a time that said so.
bool runs_torch();

// Says it of the calling thread, until it ends. Ignored while another one beside the main thread did.
void say_it_runs_torch();

// A worker of the runtime, of which it is to be known whether it waits for work awake.
class Worker {
 public:
  void is_the_calling_thread();
  // True where it is not known, or has ended: then asking the runtime for work is the way to get to know one.
  bool is_awake() const;

 private:
  clockid_t clock_{};  // of the time that it ran
  bool known_ = false;
};

}  // namespace rwk
