// SPDX-License-Identifier: Apache-2.0
// What `espalier calibrate` measured, as it lies beside a model or in the user's cache folder: docs/formats.md.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "runtime/cost_model.h"

namespace espalier {

// Costs hold for these alone.
struct CostSetup {
  std::string dtype, device;  // as in KnownCosts
  int threads = 0;
  bool operator==(const CostSetup&) const = default;
};

struct MeasuredCosts {
  CostSetup setup;
  int64_t passes = 0;
  double median_error = 0;  // of the passes it was fitted on, |predicted - measured| / measured
  CostModel model;
};

struct CostsFile {
  std::string model;    // digest of what tells checkpoints apart
  std::string machine;  // processors and their number, and graphics cards
  std::vector<MeasuredCosts> costs;
};

std::string digest_of_model(const std::filesystem::path& folder);
std::string name_of_machine();

// Throws Error naming file and field.
CostsFile read_costs(const std::filesystem::path& file);
std::string costs_json(const CostsFile& costs);

// Puts `measured` into the file, in place of what it had for the same setup; what it had for another model or machine
// goes. With an empty `file`: beside the model or, where nothing can be written there or another machine's lie there,
// in the user's cache folder. Returns where it was written.
std::filesystem::path save_costs(const std::filesystem::path& folder, const std::filesystem::path& file,
                                 MeasuredCosts measured);

}  // namespace espalier
