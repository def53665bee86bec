// SPDX-License-Identifier: Apache-2.0
// The policy that a request asks for, with those of single pictures. No client names a file: specs whose options do are
// the server's own.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace espalier {
class PolicyPlugin;
class PruningPolicy;
}  // namespace espalier

namespace espalier::serve {

// What metrics call it: its name; "pipeline" for several, "mixed" where pictures have their own.
std::string policy_name(const std::string& spec);

// Thread-safe.
class Policies {
 public:
  using OfPictures = std::vector<std::pair<int64_t, std::string>>;  // specs of single pictures, by place in the request

  // `plugins`: shared objects with policies that specs may name beside those of the table. Throws Error where one is
  // not.
  explicit Policies(const std::vector<std::filesystem::path>& plugins);
  ~Policies();

  // Throw Error for a policy that does not exist; of a client's, also for one that would read a file.
  void check_client_spec(const std::string& spec) const;
  void check_own_spec(const std::string& spec) const;

  // What a request of these has to carry as its own; nothing where the spec says it all. The same for equal arguments
  // as long as it is recent, so that beginnings of prompts know each other under it.
  std::shared_ptr<const PruningPolicy> custom(const std::string& spec, const OfPictures& own);

 private:
  const std::vector<PolicyPlugin> plugins_;
  std::mutex mutex_;
  std::map<std::pair<std::string, OfPictures>, std::shared_ptr<const PruningPolicy>> recent_;
};

}  // namespace espalier::serve
