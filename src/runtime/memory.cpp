// SPDX-License-Identifier: Apache-2.0
#include "espalier/memory.h"

#include <cstdlib>
#ifdef __GLIBC__
#include <malloc.h>

#include <climits>
#endif

namespace espalier {

bool keep_freed_memory() {
#ifdef __GLIBC__
  // Either of the first two also stops glibc from adapting the other. One arena for all threads: those of other threads
  // cannot hold blocks above 64 MiB, and engines compute in a thread of their own.
  return mallopt(M_MMAP_THRESHOLD, 1 << 30) == 1 && mallopt(M_TRIM_THRESHOLD, INT_MAX) == 1 &&
         mallopt(M_ARENA_MAX, 1) == 1;
#else
  return false;
#endif
}

}  // namespace espalier
