// SPDX-License-Identifier: Apache-2.0
// The files that policy specs name, on disk: trained ATP modules, recipes, kept sets. Reading checks everything that
// does not depend on a model or a request; those checks are the policies' own.
#pragma once

#include <filesystem>
#include <string>

#include "espalier/policies/atp.h"
#include "espalier/policies/fitprune.h"
#include "espalier/policies/keepmask.h"
#include "espalier/policies/vtw.h"

namespace espalier {

class PolicyFilesOnDisk final : public PolicyFiles {
 public:
  AtpWeights atp_weights(const std::string& file) const override;
  FitpruneRecipe fitprune_recipe(const std::string& file) const override;
  KeptSets kept_sets(const std::string& file) const override;
  VtwRecipe vtw_recipe(const std::string& file) const override;
};

// Writes FILE.safetensors and FILE.json beside it, as atp_weights reads them.
void write_atp_weights(const std::filesystem::path& file, const AtpWeights& weights);

}  // namespace espalier
