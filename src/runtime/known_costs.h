// SPDX-License-Identifier: Apache-2.0
// What an engine knows of its costs: read once, with the model, and complained about only by requests that need it.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>

namespace espalier {

struct CostModel;

struct KnownCosts {
  std::string dtype, device;  // f32, bf16 or f16, with "+int8" for such weights; cpu or cuda
  std::map<int, std::shared_ptr<const CostModel>> by_threads;  // of this machine, model, dtype and device
  std::string missing;                                         // why there is none: opens a message

  // Throws Error, naming the command that measures them.
  const CostModel& with_threads(int threads) const;
};

// `file`: in place of those beside the model and in the user's cache folder.
KnownCosts find_costs(const std::filesystem::path& folder, const std::filesystem::path& file, const std::string& dtype,
                      const std::string& device);

}  // namespace espalier
