// SPDX-License-Identifier: Apache-2.0
#include "serve/policies.h"

#include "espalier/error.h"
#include "espalier/policies/atp.h"
#include "espalier/policies/fitprune.h"
#include "espalier/policies/keepmask.h"
#include "espalier/policies/per_image.h"
#include "espalier/policies/vtw.h"
#include "espalier/policy_plugin.h"
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

std::vector<PolicyPlugin> load(const std::vector<std::filesystem::path>& files) {
  std::vector<PolicyPlugin> plugins;
  for (const std::filesystem::path& file : files) plugins.push_back(PolicyPlugin::load(file));
  return plugins;
}

}  // namespace

std::string policy_name(const std::string& spec) {
  if (spec.find(" + ") != std::string::npos) return "pipeline";
  return spec.substr(0, spec.find(':'));
}

Policies::Policies(const std::vector<std::filesystem::path>& plugins) : plugins_(load(plugins)) {}

Policies::~Policies() = default;

void Policies::check_client_spec(const std::string& spec) const {
  make_policy(spec, NoFiles(), plugins_);
}

void Policies::check_own_spec(const std::string& spec) const {
  make_policy(spec, plugins_);
}

PolicyPtr Policies::custom(const std::string& spec, const OfPictures& own) {
  if (own.empty() && plugins_.empty()) return nullptr;
  constexpr size_t kRecent = 256;
  const std::scoped_lock lock(mutex_);
  if (const auto found = recent_.find({spec, own}); found != recent_.end()) return found->second;
  PolicyPtr made = make_policy(spec, plugins_);
  if (!own.empty()) {
    std::map<std::string, std::vector<int64_t>> images;
    for (const auto& [image, of] : own) images[of].push_back(image);
    std::vector<std::pair<PolicyPtr, std::vector<int64_t>>> policies;
    for (auto& [of, list] : images) policies.emplace_back(make_policy(of, plugins_), std::move(list));
    made = per_image(std::move(made), std::move(policies));
  }
  if (recent_.size() >= kRecent) recent_.clear();
  recent_[{spec, own}] = made;
  return made;
}

}  // namespace espalier::serve
