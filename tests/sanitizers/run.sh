#!/usr/bin/env bash
# Builds the C++ core with AddressSanitizer and UndefinedBehaviorSanitizer, then with ThreadSanitizer, and runs
# drive.py against each. Needs CMake, a GCC with its sanitizer libraries, nanobind and NumPy. About five minutes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python=$(command -v python3)

check() {
  local name=$1 sanitizers=$2 library=$3
  shift 3
  cmake -S "$here/../.." -B "$work/$name" -DCMAKE_BUILD_TYPE=Release -DRWK_SANITIZE="$sanitizers" \
    -DPython_EXECUTABLE="$python" >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
  cmake --build "$work/$name" --parallel >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
  echo "== $name"
  # Python does not load the C++ library itself, and ASan looks for its __cxa_throw before the module is there.
  env LD_PRELOAD="$(g++ -print-file-name="$library") $(g++ -print-file-name=libstdc++.so)" PYTHONPATH="$work/$name" "$@" "$python" "$here/drive.py"
}

check address address,undefined libasan.so \
  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
check thread thread libtsan.so TSAN_OPTIONS=halt_on_error=1:report_thread_leaks=0
echo "No sanitizer complained."
