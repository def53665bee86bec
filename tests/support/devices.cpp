// SPDX-License-Identifier: Apache-2.0
#include "tests/support/devices.h"

#include <ATen/Context.h>

namespace espalier::test {

// A rounding to bfloat16 is off by up to 2^-9 of the value, to float16 by 2^-12: two of them, and a little for the
// inside.
std::vector<DeviceDtype> all_device_dtypes() {
  std::vector<DeviceDtype> all;
  for (const at::DeviceType type : {at::kCPU, at::kCUDA})
    for (const auto& [dtype, tolerance] : {std::pair{at::kFloat, 1e-5}, {at::kBFloat16, 1e-2}, {at::kHalf, 1e-3}})
      all.push_back({at::Device(type), dtype, tolerance});
  return all;
}

std::vector<DeviceDtype> all_devices() {
  return {{at::Device(at::kCPU), at::kFloat, 1e-5}, {at::Device(at::kCUDA), at::kFloat, 1e-5}};
}

std::string device_dtype_name(const testing::TestParamInfo<DeviceDtype>& param) {
  return param.param.device.str() + "_" + c10::toString(param.param.dtype);
}

void PrintTo(const DeviceDtype& where, std::ostream* out) {
  *out << where.device << ' ' << where.dtype << ", tolerance " << where.tolerance;
}

void DeviceTest::SetUp() {
  if (device().is_cuda() && !at::hasCUDA()) GTEST_SKIP() << "no CUDA device";
}

}  // namespace espalier::test
