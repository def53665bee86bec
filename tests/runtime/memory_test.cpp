// SPDX-License-Identifier: Apache-2.0
// keep_freed_memory: large blocks come again without new pages of the system, as the system itself counts them.
#include "espalier/memory.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstddef>
#include <cstdlib>
#include <thread>

namespace espalier {
namespace {

constexpr size_t kBytes = size_t{96} << 20, kPage = 4096;

// Pages that the system had to hand out for a block of kBytes that is written to and freed.
long new_pages_of_a_block() {
  rusage before, after;
  getrusage(RUSAGE_SELF, &before);
  auto* block = static_cast<volatile char*>(std::malloc(kBytes));
  for (size_t i = 0; i < kBytes; i += kPage) block[i] = 1;
  std::free(const_cast<char*>(block));
  getrusage(RUSAGE_SELF, &after);
  return after.ru_minflt - before.ru_minflt;
}

// The other test's process: nothing else has run in it, and its status says what came.
TEST(KeepFreedMemory, DISABLED_InAProcessOfItsOwn) {
  constexpr long kAll = kBytes / kPage, kFew = kAll / 20;
  new_pages_of_a_block();
  if (new_pages_of_a_block() < kAll - kFew) _exit(3);  // without it: all of them, again and again
  if (!keep_freed_memory()) _exit(4);
  new_pages_of_a_block();
  if (new_pages_of_a_block() > kFew) _exit(5);
  long of_a_thread = kAll;
  std::thread([&of_a_thread] { of_a_thread = new_pages_of_a_block(); }).join();
  _exit(of_a_thread > kFew ? 6 : 0);
}

TEST(KeepFreedMemory, LargeBlocksComeAgainWithoutNewPages) {
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const char* nothing[] = {nullptr};  // the tests' shards among it
    execle("/proc/self/exe", "memory", "--gtest_filter=*DISABLED_InAProcessOfItsOwn", "--gtest_also_run_disabled_tests",
           nullptr, nothing);
    _exit(7);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  if (WEXITSTATUS(status) == 4) GTEST_SKIP() << "this C library cannot";
  EXPECT_NE(WEXITSTATUS(status), 3) << "the blocks cost no pages before";
  EXPECT_NE(WEXITSTATUS(status), 6) << "a thread's block came from the system";
  EXPECT_EQ(WEXITSTATUS(status), 0) << "the block's pages were handed out anew";
}

}  // namespace
}  // namespace espalier
