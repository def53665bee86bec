// SPDX-License-Identifier: Apache-2.0
#include "base/safetensors.h"

#include <cstddef>

#include "tests/fuzz/scratch.h"
#include "tests/fuzz/targets.h"

namespace espalier::fuzz {

void run_safetensors(std::string_view input) {
  const std::filesystem::path file = write_scratch("input.safetensors", input);
  may_refuse([&] {
    const SafetensorsFile opened = SafetensorsFile::open(file);
    for (const auto& [name, view] : opened.tensors()) {
      int64_t bytes = size_of(view.dtype);
      for (const int64_t size : view.shape) bytes *= size;
      expect(static_cast<size_t>(bytes) == view.bytes.size(), "a tensor has the bytes of its shape");
      volatile std::byte last{};
      for (const std::byte byte : view.bytes) last = byte;
      static_cast<void>(last);
    }
  });
}

}  // namespace espalier::fuzz
