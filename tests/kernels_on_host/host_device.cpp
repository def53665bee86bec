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

// What the launchers ask the runtime for: nothing can fail here that does not throw, and the device's only property is
// how much shared memory a block gets. So little that the tests also meet images that need more.
extern "C" cudaError_t cudaGetLastError() {
  return cudaSuccess;
}
extern "C" cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
extern "C" cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int /*device*/) {
  if (attribute != cudaDevAttrMaxSharedMemoryPerBlockOptin) return cudaErrorInvalidValue;
  *value = 34 << 10;
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

enum class State : uint8_t { kReady, kAtBlockBarrier, kAtClusterBarrier, kAtWarpExchange, kDone };

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

struct Block {
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<char> shared;
  uint3 index{};
  bool has_begun = false;

  void* shared_memory() {
    void* begin = shared.data();
    size_t space = shared.size();
    return std::align(kSharedAlignment, space - kSharedAlignment, begin, space);
  }
  bool all(State state, State or_state) const {
    return std::ranges::all_of(threads, [=](const Thread& t) { return t.state == state || t.state == or_state; });
  }
  bool some(State state) const {
    return std::ranges::any_of(threads, [=](const Thread& t) { return t.state == state; });
  }
  bool is_over() const { return all(State::kDone, State::kDone); }
};

class Device {
 public:
  void run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel, unsigned cluster) {
    if (grid.x % cluster != 0) throw std::runtime_error("the grid is not a whole number of clusters");
    kernel_ = &kernel;
    gridDim = grid;
    blockDim = block;
    const size_t count = size_t{block.x} * block.y * block.z;
    blocks_.resize(cluster);
    turns_.resize(count);
    std::iota(turns_.begin(), turns_.end(), size_t{0});
    std::ranges::shuffle(turns_, random_);
    for (unsigned z = 0; z < grid.z; ++z)
      for (unsigned y = 0; y < grid.y; ++y)
        for (unsigned x = 0; x < grid.x; x += cluster) {
          for (unsigned rank = 0; rank < cluster; ++rank) start(blocks_[rank], {x + rank, y, z}, count, shared_bytes);
          run_cluster();
        }
  }

  void wait(State state, uint32_t mask = 0) {
    Thread& self = running_->threads[current_];
    self.state = state;
    self.mask = mask;
    espalier_host_device_switch(&self.stack_top, scheduler_);
  }

  const uint64_t* exchange(uint32_t mask, uint64_t value) {
    Thread& self = running_->threads[current_];
    auto& values = running_->warps[current_ / kWarp].values[static_cast<size_t>(self.parity)];
    self.parity ^= 1;
    values[current_ % kWarp] = value;
    wait(State::kAtWarpExchange, mask);
    return values.data();
  }

  int lane() const { return static_cast<int>(current_ % kWarp); }
  void* shared() { return running_->shared_memory(); }
  void* shared_of(unsigned rank, const void* at) {
    const auto offset = static_cast<const char*>(at) - static_cast<char*>(shared());
    if (offset < 0 || static_cast<size_t>(offset) >= running_->shared.size() - kSharedAlignment)
      throw std::runtime_error("not in the shared memory that the launch asked for");
    Block& other = blocks_.at(rank);
    if (!other.has_begun || other.is_over())
      throw std::runtime_error("shared memory of a block that has not begun, or is over");
    return static_cast<char*>(other.shared_memory()) + offset;
  }

 private:
  [[noreturn]] static void enter();

  static void start(Block& block, uint3 index, size_t count, size_t shared_bytes) {
    block.index = index;
    block.has_begun = false;
    block.shared.assign(shared_bytes + kSharedAlignment, static_cast<char>(0xa5));  // nobody may count on zeros
    block.warps.assign((count + kWarp - 1) / kWarp, {});
    block.threads.resize(count);
    for (size_t i = 0; i < count; ++i) start(block.threads[i], i);
  }

  static void start(Thread& t, size_t i) {
    if (!t.stack) t.stack = std::make_unique<char[]>(kStackBytes);
    const auto n = static_cast<unsigned>(i);
    t.index = {n % blockDim.x, n / blockDim.x % blockDim.y, n / blockDim.x / blockDim.y};
    t.state = State::kReady;
    t.parity = 0;
    // As if enter had been called by nobody: six registers, its address, and a frame aligned as the ABI wants it.
    auto top = reinterpret_cast<uintptr_t>(t.stack.get() + kStackBytes) & ~uintptr_t{15};
    auto* frame = reinterpret_cast<void**>(top) - 8;
    std::fill_n(frame, 8, nullptr);
    frame[6] = reinterpret_cast<void*>(&Device::enter);
    t.stack_top = frame;
  }

  // Each block goes on to the cluster's next barrier; in an order drawn anew, so that nobody counts on another.
  void run_cluster() {
    while (true) {
      std::vector<Block*> order;
      for (Block& block : blocks_) order.push_back(&block);
      std::ranges::shuffle(order, random_);
      for (Block* block : order)
        if (!block->is_over()) run_block(*block);
      bool is_over = true;
      for (Block& block : blocks_)
        for (Thread& t : block.threads)
          if (t.state == State::kAtClusterBarrier) t.state = State::kReady, is_over = false;
      if (is_over) return;
    }
  }

  // Until all its threads are over or at the cluster's barrier.
  void run_block(Block& block) {
    running_ = &block;
    block.has_begun = true;
    blockIdx = block.index;
    while (true) {
      const uint32_t asleep = random_() & random_();  // a bit a warp: a quarter of them fall behind the others
      for (const size_t i : turns_) {
        Thread& t = block.threads[i];
        if (t.state != State::kReady || (asleep >> (i / kWarp) & 1U) != 0) continue;
        current_ = i;
        threadIdx = t.index;
        espalier_host_device_switch(&scheduler_, t.stack_top);
      }
      if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
      if (block.all(State::kDone, State::kAtClusterBarrier)) return;
      if (!release(block)) throw std::runtime_error(who_waits(block));
    }
  }

  // Lets go on whoever has waited for all that it waits for; false where nobody can go on. Threads that have left count
  // at the block's barrier, as they do on a device, but not in an exchange.
  static bool release(Block& block) {
    std::vector<Thread>& threads = block.threads;
    for (size_t first = 0; first < threads.size(); first += kWarp) {
      const size_t lanes = std::min<size_t>(kWarp, threads.size() - first);
      for (size_t i = first; i < first + lanes; ++i) {
        if (threads[i].state != State::kAtWarpExchange) continue;
        const uint32_t mask = threads[i].mask;
        bool all = true;
        for (size_t j = 0; j < kWarp && all; ++j)
          if ((mask >> j & 1U) != 0)
            all = j < lanes && threads[first + j].state == State::kAtWarpExchange && threads[first + j].mask == mask;
        if (!all) continue;
        for (size_t j = 0; j < lanes; ++j)
          if ((mask >> j & 1U) != 0) threads[first + j].state = State::kReady;
      }
    }
    if (block.some(State::kReady)) return true;
    if (block.some(State::kAtWarpExchange) || block.some(State::kAtClusterBarrier)) return false;
    for (Thread& t : threads)
      if (t.state == State::kAtBlockBarrier) t.state = State::kReady;
    return true;
  }

  static std::string who_waits(const Block& block) {
    const std::vector<Thread>& threads = block.threads;
    std::string text =
        "threads wait in vain: block " + std::to_string(block.index.x) + "," + std::to_string(block.index.y);
    for (size_t i = 0; i < threads.size(); ++i) {
      const State state = threads[i].state;
      if (i > 0 && state == threads[i - 1].state) continue;
      text += "; from thread " + std::to_string(i) +
              (state == State::kDone               ? " left"
               : state == State::kAtBlockBarrier   ? " at the block's barrier"
               : state == State::kAtClusterBarrier ? " at the cluster's barrier"
                                                   : " in an exchange of its warp");
    }
    return text;
  }

  const std::function<void()>* kernel_ = nullptr;
  std::vector<Block> blocks_;  // of one cluster
  std::vector<size_t> turns_;
  Block* running_ = nullptr;
  void* scheduler_ = nullptr;  // the stack that run was called on
  std::exception_ptr failure_;
  size_t current_ = 0;
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

void run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel, unsigned cluster) {
  device().run(grid, block, shared_bytes, kernel, cluster);
}
void* shared_memory() {
  return device().shared();
}
void wait_for_block() {
  device().wait(State::kAtBlockBarrier);
}
void wait_for_cluster() {
  device().wait(State::kAtClusterBarrier);
}
void* shared_memory_of(unsigned rank, const void* at) {
  return device().shared_of(rank, at);
}
const uint64_t* exchange(uint32_t mask, uint64_t value) {
  return device().exchange(mask, value);
}
int lane() {
  return device().lane();
}

}  // namespace espalier::host_device
