// Work on several threads: those of torch where that can be (openmp.hpp), else a small pool that survives fork().
//
// OpenMP's workers are the better ones while they are awake, but hang in a forked DataLoader worker once the parent has
// used them. The pool is thrown away in the child (pthread_atfork) and built again at first use.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace rwk {

// Calls body(i) once for every i in [0, n), on at most `threads` threads, the caller being one of them.
// Which thread runs which i is not fixed: for the same result on any number of threads, every i writes
// to a place of its own. The first exception of a body is thrown again in the caller. A call from inside
// a body or a parallel region of OpenMP, or while another caller has threads, runs on the calling thread alone.
void parallel_for(std::int64_t n, int threads, const std::function<void(std::int64_t)>& body);

// Working memory of the calling thread: at least `bytes`, aligned to 64, kept until the thread ends.
// A second call on the same thread takes the same memory again.
void* thread_scratch(std::size_t bytes);

}  // namespace rwk
