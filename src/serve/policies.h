// SPDX-License-Identifier: Apache-2.0
// The policy that a request asks for, with those of single pictures. No client names a file: specs whose options do are
// the server's own.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace espalier {
class PruningPolicy;
}

namespace espalier::serve {

// Throw Error for a policy that does not exist; of a client's, also for one that would read a file.
void check_client_spec(const std::string& spec);
void check_own_spec(const std::string& spec);

// What metrics call it: its name; "pipeline" for several, "mixed" where pictures have their own.
std::string policy_name(const std::string& spec);

// `own`: specs of single pictures, by their place in the request. The same for equal arguments as long as it is
// recent, so that beginnings of prompts know each other under it.
std::shared_ptr<const PruningPolicy> mixed_policy(const std::string& spec,
                                                  const std::vector<std::pair<int64_t, std::string>>& own);

}  // namespace espalier::serve
