// SPDX-License-Identifier: Apache-2.0
// The devices and dtypes that kernel tests run over, and the fixture for it:
//   class RopeTest : public DeviceTest {};
//   TEST_P(RopeTest, MatchesTheFormula) { expect_close(ops::rope(…), oracle(…), tolerance()); }
//   INSTANTIATE_TEST_SUITE_P(Devices, RopeTest, testing::ValuesIn(all_device_dtypes()), device_dtype_name);
#pragma once

#include <ATen/core/Tensor.h>
#include <gtest/gtest.h>

#include <ostream>
#include <string>
#include <vector>

#include "tests/support/tensors.h"

namespace espalier::test {

// tolerance: |actual - expected| <= tolerance · (1 + |expected|) for results of order 1 that were rounded once or twice
// to dtype.
struct DeviceDtype {
  at::Device device;
  at::ScalarType dtype;
  double tolerance;
};

// CPU and CUDA in float32, bfloat16 and float16. CUDA is listed without a GPU too, so that a run says how many cases it
// skipped.
std::vector<DeviceDtype> all_device_dtypes();

// The same devices in float32 alone, for ops without a dtype of their own.
std::vector<DeviceDtype> all_devices();

// Such as "cpu_BFloat16".
std::string device_dtype_name(const testing::TestParamInfo<DeviceDtype>& param);
void PrintTo(const DeviceDtype& where, std::ostream* out);

class DeviceTest : public testing::TestWithParam<DeviceDtype> {
 protected:
  // Skips the case when it needs a GPU and the machine (or the build) has none.
  void SetUp() override;

  static at::Device device() { return GetParam().device; }
  static at::ScalarType dtype() { return GetParam().dtype; }
  static double tolerance() { return GetParam().tolerance; }
  static at::Tensor random(at::IntArrayRef sizes, uint64_t seed = 0) {
    return random_tensor(sizes, dtype(), seed).to(device());
  }
};

}  // namespace espalier::test
