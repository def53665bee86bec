// SPDX-License-Identifier: Apache-2.0
// A CUDA device played by the processor, thread by thread: what a kernel's source needs of the language, for a C++
// compiler. Every thread of a block is a fiber that runs until it waits for others, in an order that is drawn anew for
// each launch, and warps drift apart between barriers; blocks run one after the other. It shows what a kernel computes,
// that it leans on no order of threads between its barriers, and which threads wait where (a barrier that not all of
// them reach is an error, not a hang). It shows nothing of speed, of registers, of memory that a device cannot read, or
// of blocks that disturb each other. Included in front of a .cu by the build (cmake/KernelsOnHost.cmake), never by the
// library.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <type_traits>

namespace espalier::host_device {

// Runs all blocks; `cluster`: so many neighbours along x are one. Throws std::runtime_error where threads wait for each
// other in vain.
void run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel, unsigned cluster = 1);

void* shared_memory();  // of the running block
void wait_for_block();
void wait_for_cluster();
// The place in another block's shared_memory() that `at` is in the running one's. Throws where that block has not begun
// or is over.
void* shared_memory_of(unsigned rank, const void* at);
// The values of all lanes of the running thread's warp that `mask` names, when all of them have come here; index:
// lane. Other lanes' places hold what they had.
const uint64_t* exchange(uint32_t mask, uint64_t value);
int lane();

template <typename T>
uint64_t to_bits(T value) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}
template <typename T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// kernel<<<grid, block, bytes, stream>>>(arguments) is rewritten as
// launch(grid, block, bytes, stream).call(a function that calls the kernel, arguments).
struct Launch {
  dim3 grid, block;
  size_t shared_bytes;

  template <typename Kernel, typename... A>
  void call(const Kernel& kernel, const A&... arguments) const {
    run(grid, block, shared_bytes, [&] { kernel(arguments...); });
  }
};
inline Launch launch(dim3 grid, dim3 block, size_t shared_bytes = 0, cudaStream_t = nullptr) {
  return {grid, block, shared_bytes};
}

}  // namespace espalier::host_device

// ---- what CUDA's compiler declares by itself ----

inline dim3 gridDim, blockDim;
inline uint3 blockIdx, threadIdx;

#undef __shared__
#define __shared__ static  // one block at a time has it
#define __launch_bounds__(...)
#undef __grid_constant__
#define __grid_constant__

inline void __syncthreads() {
  espalier::host_device::wait_for_block();
}
inline void __syncwarp(uint32_t mask = 0xffffffffU) {
  espalier::host_device::exchange(mask, 0);
}
template <typename T>
T __shfl_sync(uint32_t mask, T value, int from) {
  namespace h = espalier::host_device;
  return h::from_bits<T>(h::exchange(mask, h::to_bits(value))[from % 32]);
}
template <typename T>
T __shfl_xor_sync(uint32_t mask, T value, int bits) {
  namespace h = espalier::host_device;
  return h::from_bits<T>(h::exchange(mask, h::to_bits(value))[h::lane() ^ bits]);
}
template <typename T>
T __shfl_up_sync(uint32_t mask, T value, unsigned delta) {
  namespace h = espalier::host_device;
  const uint64_t* values = h::exchange(mask, h::to_bits(value));
  const int from = h::lane() - static_cast<int>(delta);
  return from < 0 ? value : h::from_bits<T>(values[from]);
}
template <typename T>
uint32_t __match_any_sync(uint32_t mask, T value) {
  namespace h = espalier::host_device;
  const uint64_t own = h::to_bits(value);
  const uint64_t* values = h::exchange(mask, own);
  uint32_t peers = 0;
  for (int i = 0; i < 32; ++i) peers |= (mask >> i & 1U) != 0 && values[i] == own ? 1U << i : 0U;
  return peers;
}
inline int __popc(uint32_t bits) {
  return std::popcount(bits);
}
inline uint32_t __float_as_uint(float value) {
  return std::bit_cast<uint32_t>(value);
}
template <typename T, typename U>
T atomicAdd(T* to, U value) {  // a thread runs until it waits: nothing comes between
  const T before = *to;
  *to += static_cast<T>(value);
  return before;
}

template <typename A, typename B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  return b < a ? b : a;
}
template <typename A, typename B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  return a < b ? b : a;
}
inline float rsqrtf(float x) {
  return 1.0F / sqrtf(x);
}
using std::isnan;

// The matrix units: every lane has the whole tile of 16 x 16, and does with it what a device spreads over the warp.
namespace nvcuda::wmma {
struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
enum layout_t { mem_row_major, mem_col_major };

template <typename Use, int M, int N, int K, typename T, typename Layout = void>
struct fragment {
  static_assert(M == 16 && N == 16 && K == 16);
  float x[16][16];  // row, column
};
inline void check_alignment(const void* at) {
  if (reinterpret_cast<uintptr_t>(at) % 32 != 0) throw std::runtime_error("a fragment is not aligned to 32 bytes");
}
template <typename F>
void fill_fragment(F& f, float value) {
  for (auto& row : f.x)
    for (float& x : row) x = value;
}
template <typename Use, typename T, typename Layout>
void load_matrix_sync(fragment<Use, 16, 16, 16, T, Layout>& f, const T* from, unsigned stride) {
  check_alignment(from);
  __syncwarp();
  for (unsigned i = 0; i < 16; ++i)
    for (unsigned j = 0; j < 16; ++j)
      f.x[i][j] = static_cast<float>(std::is_same_v<Layout, row_major> ? from[i * stride + j] : from[j * stride + i]);
}
template <typename D, typename A, typename B, typename C>
void mma_sync(D& d, const A& a, const B& b, const C& c) {
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 16; ++j) {
      float sum = c.x[i][j];
      for (int k = 0; k < 16; ++k) sum += a.x[i][k] * b.x[k][j];
      d.x[i][j] = sum;
    }
}
template <typename F>
void store_matrix_sync(float* to, const F& f, unsigned stride, layout_t) {
  check_alignment(to);
  for (unsigned i = 0; i < 16; ++i)
    for (unsigned j = 0; j < 16; ++j) to[i * stride + j] = f.x[i][j];
}
}  // namespace nvcuda::wmma

template <typename F>
cudaError_t cudaFuncSetAttribute(F*, cudaFuncAttribute, int) {
  return cudaSuccess;
}
template <typename F>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, F*) {
  *attributes = {};
  attributes->ptxVersion = 90;
  return cudaSuccess;
}
template <typename... P, typename... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), const A&... arguments) {
  const unsigned cluster = config->numAttrs > 0 ? config->attrs[0].val.clusterDim.x : 1;
  espalier::host_device::run(
      config->gridDim, config->blockDim, config->dynamicSmemBytes, [&] { kernel(arguments...); }, cluster);
  return cudaSuccess;
}

#define __CUDA_ARCH__ 900
