// SPDX-License-Identifier: Apache-2.0
#include "tests/kernels_on_host/host_device.h"

#include <algorithm>
#include <array>
#include <exception>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

// The launchers' only call of the runtime: nothing can fail here that does not throw.
extern "C" cudaError_t cudaGetLastError() {
  return cudaSuccess;
}

namespace espalier::host_device {

namespace {

// Saves the callee's registers on the running stack, leaves its top in *from, and goes on with the stack at `to`.
// swapcontext would ask the kernel for the signal mask each time, which takes longer than all the rest here.
#ifndef __x86_64__
#error "fibers are switched by x86-64 instructions here"
#endif
asm(R"(
.text
.type espalier_host_device_switch, @function
espalier_host_device_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size espalier_host_device_switch, .-espalier_host_device_switch
)");
extern "C" void espalier_host_device_switch(void** from, void* to);

constexpr size_t kStackBytes = 128 << 10;
constexpr size_t kSharedAlignment = 128;
constexpr unsigned kWarp = 32;

enum class State : uint8_t { kReady, kAtBlockBarrier, kAtWarpExchange, kDone };

struct Thread {
  void* stack_top = nullptr;
  std::unique_ptr<char[]> stack;
  State state = State::kDone;
  uint32_t mask = 0;  // of the exchange it waits for
  int parity = 0;     // of its next exchange
  uint3 index{};
};

struct Warp {
  // Two sets of values in turn: a lane that is fast to the next exchange must not write over what a slow one reads.
  std::array<std::array<uint64_t, kWarp>, 2> values;
};

class Device {
 public:
  void run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel) {
    kernel_ = &kernel;
    gridDim = grid;
    blockDim = block;
    const size_t count = size_t{block.x} * block.y * block.z;
    threads_.resize(std::max(threads_.size(), count));
    warps_.assign((count + kWarp - 1) / kWarp, {});
    turns_.resize(count);
    std::iota(turns_.begin(), turns_.end(), size_t{0});
    std::ranges::shuffle(turns_, random_);
    count_ = count;
    for (unsigned z = 0; z < grid.z; ++z)
      for (unsigned y = 0; y < grid.y; ++y)
        for (unsigned x = 0; x < grid.x; ++x) {
          blockIdx = {x, y, z};
          shared_.assign(shared_bytes + kSharedAlignment, static_cast<char>(0xa5));  // nobody may count on zeros
          run_block(block);
        }
  }

  void wait(State state, uint32_t mask = 0) {
    Thread& self = threads_[current_];
    self.state = state;
    self.mask = mask;
    espalier_host_device_switch(&self.stack_top, scheduler_);
  }

  const uint64_t* exchange(uint32_t mask, uint64_t value) {
    Thread& self = threads_[current_];
    auto& values = warps_[current_ / kWarp].values[static_cast<size_t>(self.parity)];
    self.parity ^= 1;
    values[current_ % kWarp] = value;
    wait(State::kAtWarpExchange, mask);
    return values.data();
  }

  int lane() const { return static_cast<int>(current_ % kWarp); }
  void* shared() {
    void* begin = shared_.data();
    size_t space = shared_.size();
    return std::align(kSharedAlignment, space - kSharedAlignment, begin, space);
  }

 private:
  [[noreturn]] static void enter();

  void start(size_t i, dim3 block) {
    Thread& t = threads_[i];
    if (!t.stack) t.stack = std::make_unique<char[]>(kStackBytes);
    const auto n = static_cast<unsigned>(i);
    t.index = {n % block.x, n / block.x % block.y, n / block.x / block.y};
    t.state = State::kReady;
    t.parity = 0;
    // As if enter had been called by nobody: six registers, its address, and a frame aligned as the ABI wants it.
    auto top = reinterpret_cast<uintptr_t>(t.stack.get() + kStackBytes) & ~uintptr_t{15};
    auto* frame = reinterpret_cast<void**>(top) - 8;
    std::fill_n(frame, 8, nullptr);
    frame[6] = reinterpret_cast<void*>(&Device::enter);
    t.stack_top = frame;
  }

  void run_block(dim3 block) {
    for (size_t i = 0; i < count_; ++i) start(i, block);
    while (true) {
      const uint32_t asleep = random_() & random_();  // a bit a warp: a quarter of them fall behind the others
      for (const size_t i : turns_) {
        if (threads_[i].state != State::kReady || (asleep >> (i / kWarp) & 1U) != 0) continue;
        current_ = i;
        threadIdx = threads_[i].index;
        espalier_host_device_switch(&scheduler_, threads_[i].stack_top);
      }
      if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
      if (is_over()) return;
      if (!release()) throw std::runtime_error(who_waits());
    }
  }

  bool is_over() const {
    return std::all_of(threads_.begin(), threads_.begin() + static_cast<int64_t>(count_),
                       [](const Thread& t) { return t.state == State::kDone; });
  }

  // Lets go on whoever has waited for all that it waits for; false where nobody can go on. Threads that have left count
  // at the block's barrier, as they do on a device, but not in an exchange.
  bool release() {
    for (size_t first = 0; first < count_; first += kWarp) {
      const size_t lanes = std::min<size_t>(kWarp, count_ - first);
      for (size_t i = first; i < first + lanes; ++i) {
        if (threads_[i].state != State::kAtWarpExchange) continue;
        const uint32_t mask = threads_[i].mask;
        bool all = true;
        for (size_t j = 0; j < kWarp && all; ++j)
          if ((mask >> j & 1U) != 0)
            all = j < lanes && threads_[first + j].state == State::kAtWarpExchange && threads_[first + j].mask == mask;
        if (!all) continue;
        for (size_t j = 0; j < lanes; ++j)
          if ((mask >> j & 1U) != 0) threads_[first + j].state = State::kReady;
      }
    }
    const auto some = [&](State state) {
      return std::any_of(threads_.begin(), threads_.begin() + static_cast<int64_t>(count_),
                         [&](const Thread& t) { return t.state == state; });
    };
    if (some(State::kReady)) return true;
    if (some(State::kAtWarpExchange)) return false;
    for (size_t i = 0; i < count_; ++i)
      if (threads_[i].state == State::kAtBlockBarrier) threads_[i].state = State::kReady;
    return true;
  }

  std::string who_waits() const {
    std::string text = "threads wait in vain: block " + std::to_string(blockIdx.x) + "," + std::to_string(blockIdx.y);
    for (size_t i = 0; i < count_; ++i) {
      const State state = threads_[i].state;
      if (i > 0 && state == threads_[i - 1].state) continue;
      text += "; from thread " + std::to_string(i) +
              (state == State::kDone             ? " left"
               : state == State::kAtBlockBarrier ? " at the block's barrier"
                                                 : " in an exchange of its warp");
    }
    return text;
  }

  const std::function<void()>* kernel_ = nullptr;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<size_t> turns_;
  std::vector<char> shared_;
  void* scheduler_ = nullptr;  // the stack that run was called on
  std::exception_ptr failure_;
  size_t count_ = 0, current_ = 0;
  std::mt19937 random_{1};
};

Device& device() {
  static Device device;
  return device;
}

void Device::enter() {
  Device& d = device();
  try {
    (*d.kernel_)();
  } catch (...) {
    d.failure_ = std::current_exception();
  }
  d.wait(State::kDone);
  std::terminate();  // nobody calls a thread that is done
}

}  // namespace

void run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel) {
  device().run(grid, block, shared_bytes, kernel);
}
void* shared_memory() {
  return device().shared();
}
void wait_for_block() {
  device().wait(State::kAtBlockBarrier);
}
const uint64_t* exchange(uint32_t mask, uint64_t value) {
  return device().exchange(mask, value);
}
int lane() {
  return device().lane();
}

}  // namespace espalier::host_device
