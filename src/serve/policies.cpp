// SPDX-License-Identifier: Apache-2.0
#include "serve/policies.h"

#include <map>
#include <mutex>

#include "espalier/error.h"
#include "espalier/policies/atp.h"
#include "espalier/policies/fitprune.h"
#include "espalier/policies/keepmask.h"
#include "espalier/policies/per_image.h"
#include "espalier/policies/vtw.h"
#include "espalier/pruning.h"

namespace espalier::serve {

namespace {

class NoFiles final : public PolicyFiles {
 public:
  AtpWeights atp_weights(const std::string&) const override { refuse(); }
  FitpruneRecipe fitprune_recipe(const std::string&) const override { refuse(); }
  KeptSets kept_sets(const std::string&) const override { refuse(); }
  VtwRecipe vtw_recipe(const std::string&) const override { refuse(); }

 private:
  [[noreturn]] static void refuse() {
    throw Error("policy: a request cannot name a file; the server's own --policy can");
  }
};

}  // namespace

void check_client_spec(const std::string& spec) {
  make_policy(spec, NoFiles());
}

void check_own_spec(const std::string& spec) {
  make_policy(spec);
}

std::string policy_name(const std::string& spec) {
  if (spec.find(" + ") != std::string::npos) return "pipeline";
  return spec.substr(0, spec.find(':'));
}

PolicyPtr mixed_policy(const std::string& spec, const std::vector<std::pair<int64_t, std::string>>& own) {
  constexpr size_t kRecent = 256;
  static std::mutex mutex;
  static std::map<std::pair<std::string, std::vector<std::pair<int64_t, std::string>>>, PolicyPtr> recent;
  const std::scoped_lock lock(mutex);
  if (const auto found = recent.find({spec, own}); found != recent.end()) return found->second;
  std::map<std::string, std::vector<int64_t>> images;
  for (const auto& [image, of] : own) images[of].push_back(image);
  std::vector<std::pair<PolicyPtr, std::vector<int64_t>>> policies;
  for (auto& [of, list] : images) policies.emplace_back(make_policy(of), std::move(list));
  PolicyPtr made = per_image(make_policy(spec), std::move(policies));
  if (recent.size() >= kRecent) recent.clear();
  recent[{spec, own}] = made;
  return made;
}

}  // namespace espalier::serve
