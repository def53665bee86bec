# SPDX-License-Identifier: Apache-2.0
# For sed -zE. Of a .cu, what a C++ compiler cannot read, as C++: launches, and shared memory whose size the launch says
# (host_device.h has the rest). Of an op's CUDA side: registered for the CPU, and without what the library has on CUDA alone:
# its flash kernel, products of 16-bit elements in float32.
s/([A-Za-z_][A-Za-z0-9_]*)(<[^;{}()=]*>)?[[:space:]]*<<<([^;]*)>>>\(/::espalier::host_device::launch(\3).call([](const auto\&... a) { \1\2(a...); }, /g
s/extern __shared__ (__align__\([0-9]+\) )?([a-z]+) ([a-z_]+)\[\];/\2* \3 = static_cast<\2*>(::espalier::host_device::shared_memory());/g
s/(TORCH_LIBRARY_IMPL\(espalier, )CUDA/\1CPU/g
s/at::mm\(x, y\.t\(\), at::kFloat\)/at::mm(x.to(at::kFloat), y.t().to(at::kFloat))/g
s/attention_takes_flash\(in\) \?/false ?/g
