// SPDX-License-Identifier: Apache-2.0
// Copying rows chosen by an index that only the device knows. Used by .cu only.
#pragma once

#include <cassert>
#include <cstdint>

#ifdef NDEBUG  // then <cassert> leaves the device's assertion undeclared
extern "C" __host__ __device__ void __assert_fail(const char* assertion, const char* file, unsigned line,
                                                  const char* function) noexcept __attribute__((__noreturn__));
#endif

namespace espalier::kernels {

// An index outside the tensor ends the kernel with a device-side assertion, which the next call on the device reports:
// reading on would hand out foreign memory, and asking the host would make it wait. Also where NDEBUG is set.
__device__ inline void require_row(int64_t row, int64_t n) {
  if (row < 0 || row >= n) __assert_fail("row index within the tensor", __FILE__, __LINE__, "require_row");
}

// Calls f with a null pointer of the widest unit that divides all addresses and byte extents, which come or-ed
// together.
template <typename F>
auto visit_copy_unit(uint64_t alignment_bits, F&& f) {
  if (alignment_bits % 16 == 0) return f(static_cast<uint4*>(nullptr));
  if (alignment_bits % 8 == 0) return f(static_cast<uint2*>(nullptr));
  if (alignment_bits % 4 == 0) return f(static_cast<uint32_t*>(nullptr));
  if (alignment_bits % 2 == 0) return f(static_cast<uint16_t*>(nullptr));
  return f(static_cast<uint8_t*>(nullptr));
}

}  // namespace espalier::kernels
