// SPDX-License-Identifier: Apache-2.0
// Memory that ends at every place where a request asks for some. Whichever of them it is: the request ends with
// OutOfMemory or is answered all the same, and the engine answers the next one as before.
#include <dlfcn.h>
#include <gtest/gtest.h>
#include <malloc.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "espalier/engine.h"
#include "espalier/error.h"
#include "espalier/scheduler.h"
#include "espalier/session.h"
#include "tests/support/folders.h"
#include "tests/support/sanitized.h"

namespace espalier {
namespace {

// Of this many more grants the last is the last for now: `refusals` follow. One place for both ways in which memory is
// asked for: operator new (the standard library, libtorch's own structures) and posix_memalign (tensors, oneDNN).
struct Memory {
  std::atomic<int64_t> granted = 0;
  std::atomic<int64_t> left = std::numeric_limits<int64_t>::max();
  std::atomic<int64_t> refusals = 0;

  bool is_granted() {
    ++granted;
    if (left.load(std::memory_order_relaxed) == std::numeric_limits<int64_t>::max()) return true;
    if (left.fetch_sub(1) > 0) return true;
    return refusals.fetch_sub(1) <= 0;
  }
  void ends_after(int64_t grants, int64_t refused) {
    refusals = refused;
    left = grants;
  }
  void is_there_again() { left = std::numeric_limits<int64_t>::max(); }
};

Memory small_memory, tensor_memory;
std::atomic<int64_t> live_blocks = 0;  // of operator new

}  // namespace
}  // namespace espalier

void* operator new(size_t bytes) {
  void* block = espalier::small_memory.is_granted() ? std::malloc(bytes == 0 ? 1 : bytes) : nullptr;
  if (!block) throw std::bad_alloc();
  ++espalier::live_blocks;
  return block;
}
void* operator new(size_t bytes, const std::nothrow_t&) noexcept try {
  return operator new(bytes);
} catch (const std::bad_alloc&) {
  return nullptr;
}
// Seen through, one half of a pair looks wrong to the compiler.
__attribute__((noinline)) void operator delete(void* block) noexcept {
  if (block) --espalier::live_blocks;
  std::free(block);
}
void operator delete(void* block, size_t) noexcept {
  operator delete(block);
}
void operator delete(void* block, const std::nothrow_t&) noexcept {
  operator delete(block);
}

namespace espalier {
namespace {

// The other one that asks is oneDNN: for buffers, and for small objects of its own, which it writes to without a look
// at whether it got them. Those it gets.
bool may_be_refused(const void* caller, size_t bytes) {
  constexpr size_t kObject = 4096;
  Dl_info library;
  return bytes > kObject || (::dladdr(caller, &library) != 0 && std::strstr(library.dli_fname, "libc10."));
}

}  // namespace
}  // namespace espalier

// Where it is hidden, libtorch does not find it.
extern "C" __attribute__((visibility("default"))) int posix_memalign(void** block, size_t alignment,
                                                                     size_t bytes) noexcept {
  const bool is_granted =
      !espalier::may_be_refused(__builtin_return_address(0), bytes) || espalier::tensor_memory.is_granted();
  *block = is_granted ? ::memalign(alignment, bytes) : nullptr;
  return *block ? 0 : ENOMEM;
}

namespace espalier {
namespace {

Engine load(int threads) {
  return Engine::load(test::golden_folder() / "llava15", {.dtype = ComputeDtype::kFloat32, .threads = threads});
}

ImagePart picture(int shade) {
  Image image{56, 56, std::vector<uint8_t>(size_t{3} * 56 * 56)};
  for (size_t i = 0; i < image.rgb.size(); ++i) image.rgb[i] = static_cast<uint8_t>(i * static_cast<size_t>(shade) / 7);
  return {.image = std::make_shared<const Image>(std::move(image))};
}

Request asks_in_words() {
  Request request;
  request.prompt = Chat{{{.role = "user", .content = {TextPart{"what is it?"}}}}};
  request.options.max_new_tokens = 2;
  request.options.ignore_eos = true;
  return request;
}

Request asks(const std::string& policy) {
  Request request;
  const std::vector<Example> examples = {{picture(1), "what is it?", "a fence"}};
  request.prompt = in_context_chat(examples, picture(3), "and this?");
  request.policy = policy;
  request.options.max_new_tokens = 3;
  request.options.ignore_eos = true;
  request.options.greedy = true;
  return request;
}

struct Tried {
  int64_t places = 0, ended = 0;  // ended: with OutOfMemory
};

// Of the places where a request with pictures asks for memory, as many as there is time for in a suite, far from each
// other; of a short request in words every place.
constexpr int64_t kSomePlaces = 4, kAllPlaces = std::numeric_limits<int64_t>::max();

// Refuses memory at one place after the other, once or from there on, and asks again with all of it. `ask` answers the
// ids of an answer.
Tried refuse_everywhere(Memory& memory, const std::function<std::vector<int32_t>()>& ask,
                        int64_t most_places = kSomePlaces) {
  const std::vector<int32_t> expected = ask();
  const int64_t before = memory.granted;
  EXPECT_EQ(ask(), expected);
  const int64_t places = memory.granted - before, stride = std::max<int64_t>(1, places / most_places);
  Tried tried;
  for (const int64_t refused : {int64_t{1}, std::numeric_limits<int64_t>::max()})
    for (int64_t place = 0; place < places; place += stride) {
      ++tried.places;
      std::string wrong;
      memory.ends_after(place, refused);
      try {
        const std::vector<int32_t> got = ask();
        memory.is_there_again();
        if (got != expected) wrong = "another answer";
      } catch (const OutOfMemory&) {
        memory.is_there_again();
        ++tried.ended;
      } catch (const std::exception& error) {
        memory.is_there_again();
        wrong = error.what();
      }
      EXPECT_EQ(wrong, "") << "place " << place << " of " << places << (refused == 1 ? "" : " and all after it");
      EXPECT_EQ(ask(), expected) << "after place " << place;
      if (testing::Test::HasFailure()) return tried;
    }
  return tried;
}

std::vector<int32_t> ask(Scheduler& scheduler, const Request& request, Memory& memory) {
  const Ticket ticket = scheduler.submit(request);
  const Result& result = ticket.result();
  memory.is_there_again();  // for the copy
  return result.token_ids;
}

class EndingMemory : public testing::Test {
 protected:
  void SetUp() override {
    if (test::kIsSanitized) GTEST_SKIP() << "sanitizers have their own memory";
  }
};

class EndingMemoryUnder : public EndingMemory, public testing::WithParamInterface<const char*> {};

TEST_P(EndingMemoryUnder, OfTensors) {
  const Request request = asks(GetParam());
  for (const int threads : {1, 2}) {
    const Engine engine = load(threads);
    const Tried tried = refuse_everywhere(tensor_memory, [&] { return engine.generate(request).token_ids; });
    EXPECT_GT(tried.ended, tried.places / 2) << "of " << tried.places;
  }
}

TEST_P(EndingMemoryUnder, OfEverythingElse) {
  const Request request = asks(GetParam());
  const Engine engine = load(1);
  const Tried tried = refuse_everywhere(small_memory, [&] { return engine.generate(request).token_ids; });
  EXPECT_GT(tried.ended, tried.places / 2) << "of " << tried.places;
}

TEST_P(EndingMemoryUnder, OfARequestInAQueue) {
  const Request request = asks(GetParam());
  const Engine engine = load(1);
  Scheduler scheduler(engine);
  for (Memory* memory : {&tensor_memory, &small_memory}) {
    EXPECT_GT(refuse_everywhere(*memory, [&] { return ask(scheduler, request, *memory); }).ended, 0);
  }
  const SchedulerLoad load = scheduler.load();
  EXPECT_EQ(load.waiting + load.running + load.kv_bytes_promised + load.kv_bytes_in_use, 0);
}

// A turn that failed was never asked.
TEST_F(EndingMemory, OfATurn) {
  const Engine engine = load(1);
  std::unique_ptr<Session> session;
  std::vector<Part> turn;  // made while there is memory
  const auto words = [] { return std::vector<Part>{TextPart{"what is it?"}}; };
  const auto begin = [&] {
    session = std::make_unique<Session>(engine, SessionOptions{.generation = asks_in_words().options});
    turn = words();
  };
  begin();
  for (Memory* memory : {&tensor_memory, &small_memory}) {
    const auto ask = [&]() -> std::vector<int32_t> {
      try {
        std::vector<int32_t> ids = session->ask(std::move(turn)).token_ids;
        memory->is_there_again();
        begin();
        return ids;
      } catch (...) {  // the session stays, and is asked the same again
        memory->is_there_again();
        turn = words();
        throw;
      }
    };
    EXPECT_GT(refuse_everywhere(*memory, ask, kAllPlaces).ended, 0);
  }
}

TEST_F(EndingMemory, AnywhereInAShortRequest) {
  const Engine engine = load(1);
  Scheduler scheduler(engine);
  const Request request = asks_in_words();
  for (Memory* memory : {&tensor_memory, &small_memory}) {
    EXPECT_GT(refuse_everywhere(
                  *memory, [&] { return ask(scheduler, request, *memory); }, kAllPlaces)
                  .ended,
              0);
  }
}

// The first to end leaves a hole between rows that are in use.
TEST_F(EndingMemory, OfTwoAtATime) {
  const Engine engine = load(1);
  Scheduler scheduler(engine);
  Request shorter = asks_in_words(), longer = shorter;
  shorter.options.max_new_tokens = 6;
  longer.options.max_new_tokens = 12;
  const auto ask = [&] {
    const Ticket first = scheduler.submit(shorter), second = scheduler.submit(longer);
    const Result &long_one = second.result(), &short_one = first.result();
    small_memory.is_there_again();
    std::vector<int32_t> ids = short_one.token_ids;
    ids.insert(ids.end(), long_one.token_ids.begin(), long_one.token_ids.end());
    return ids;
  };
  EXPECT_GT(refuse_everywhere(small_memory, ask, 40).ended, 0);
}

// What stays after the first round is what libtorch makes once in a process; no round after it leaves more.
TEST_F(EndingMemory, AllIsGivenBack) {
  const auto round = [] {
    const Request request = asks("catp:keep_ratio=1/3");
    const Engine engine = load(1);
    return refuse_everywhere(
               small_memory, [&] { return engine.generate(request).token_ids; }, 6)
        .ended;
  };
  round();
  const int64_t before = live_blocks;
  const int64_t ended = round();
  EXPECT_LT(live_blocks - before, ended);
}

INSTANTIATE_TEST_SUITE_P(Policies, EndingMemoryUnder,
                         testing::Values("none", "catp:keep_ratio=1/3", "sparsevlm:keep_ratio=1/2"),
                         [](const auto& of) {
                           const std::string spec = of.param;
                           return spec.substr(0, spec.find(':'));
                         });

}  // namespace
}  // namespace espalier
