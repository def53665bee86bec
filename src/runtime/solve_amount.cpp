// SPDX-License-Identifier: Apache-2.0
#include "runtime/solve_amount.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "espalier/error.h"
#include "espalier/target.h"
#include "runtime/cost_model.h"
#include "runtime/kv_arena.h"

namespace espalier {

namespace {

// Amounts that are tried: so coarse that requests of about the same cost get the same one, and know each other's
// prefixes; of 576 tokens a part is 9.
constexpr int64_t kParts = 64;

struct Expected {
  PolicyPtr policy;
  int64_t kv_bytes = 0;
  bool is_reshaped = false;
  Work work = {};
  double by_costs_ms = 0;  // where costs are asked for
};

// Whether the policy wants pictures in another shape than the prompt was packed with.
bool is_reshaped(const LoadedModel& model, const PackedPrompt& packed, const PruningPolicy& policy) {
  return std::ranges::any_of(packed.plans, [&](const ImagePlan& plan) {
    const ImageShape wanted = policy.wanted_shape(model.facts, plan.shape);
    return wanted.grid != plan.shape.grid || wanted.tiling != plan.shape.tiling;
  });
}

class Solver {
 public:
  Solver(const UnsolvedRequest& unsolved, std::optional<double> allowed_ms)
      : unsolved_(unsolved),
        target_(*target_of(unsolved.policy)),
        allowed_ms_(allowed_ms),
        costs_(target_.ttft_ms ? &unsolved.model.costs.with_threads(at::get_num_threads()) : nullptr) {}

  SolvedPolicy solve() const {
    Expected whole = expected(make_policy("none"));
    std::vector<Expected> all = expected_amounts();
    if (costs_) {
      whole.by_costs_ms = costs_->milliseconds(whole.work);
      for (Expected& e : all) e.by_costs_ms = costs_->milliseconds(e.work);
    }
    const bool reshapes = std::ranges::any_of(all, &Expected::is_reshaped);
    const double least_ms = std::min(whole.by_costs_ms, std::ranges::min(all, {}, &Expected::by_costs_ms).by_costs_ms);
    const auto solution = [&](const Expected& e, bool fits) {
      SolvedAmount amount{.policy = e.policy->spec(), .fits = fits, .kv_bytes = e.kv_bytes};
      if (costs_) {
        amount.predicted_ms = unsolved_.pace * e.by_costs_ms;
        amount.allowed_ms = allowed_ms_;
      }
      return SolvedPolicy{e.policy, std::move(amount), e.by_costs_ms, least_ms, reshapes};
    };
    if (fits(whole)) return solution(whole, true);
    if (const auto most = std::ranges::find_if(all, [&](const Expected& e) { return fits(e); }); most != all.end())
      return solution(*most, true);
    std::vector<Expected> storable;
    if (fits_in_cache(whole)) storable.push_back(whole);  // where pruning takes longer than it saves
    std::ranges::copy_if(all, std::back_inserter(storable), [&](const Expected& e) { return fits_in_cache(e); });
    if (storable.empty()) refuse_cache(all);
    return solution(std::ranges::min(storable, {}, &Expected::by_costs_ms), false);
  }

 private:
  // From the most to the least.
  std::vector<Expected> expected_amounts() const {
    std::vector<Expected> all;
    std::string refusal;
    for (int64_t part = kParts; part > 0; --part) {
      try {
        all.push_back(expected(at_ratio(unsolved_.policy, {part, kParts})));
      } catch (const Error& error) {  // an amount that the policy cannot keep of this prompt
        refusal = error.what();
      }
    }
    if (all.empty()) throw Error(refusal);
    return all;
  }

  Expected expected(PolicyPtr policy) const {
    const LoadedModel& model = unsolved_.model;
    std::optional<PackedPrompt> own;
    const bool reshapes = is_reshaped(model, unsolved_.packed, *policy);
    if (reshapes)
      own = pack_prompt(model, unsolved_.request.prompt, unsolved_.request.options.max_new_tokens, policy.get());
    const PackedPrompt& packed = own ? *own : unsolved_.packed;
    const int layers = model.config.decoder.num_layers;
    Expected e{.policy = std::move(policy), .is_reshaped = reshapes};
    const std::vector<PlannedStep> steps = plan_steps(*e.policy, model.facts, *packed.layout);
    const auto rows = [&](Additions additions) {
      return planned_rows(steps, e.policy->row_breaks_compete(), *packed.layout, layers, additions);
    };
    e.kv_bytes = rows(Additions::kBounded).most_cached(unsolved_.request.options.max_new_tokens) *
                 bytes_per_kv_row(model.config.decoder, model.dtype);
    e.work = work_of(packed, rows(Additions::kLeftOut));
    return e;
  }

  bool fits_in_cache(const Expected& e) const { return !target_.kv_bytes || e.kv_bytes <= *target_.kv_bytes; }
  bool fits(const Expected& e) const {
    return fits_in_cache(e) && (!target_.ttft_ms || unsolved_.pace * e.by_costs_ms <= *allowed_ms_);
  }

  [[noreturn]] void refuse_cache(const std::vector<Expected>& all) const {
    const int64_t least = std::ranges::min_element(all, {}, &Expected::kv_bytes)->kv_bytes;
    throw Error(unsolved_.policy.spec() + ": keys and values of " +
                std::to_string(unsolved_.packed.layout->num_tokens) + " tokens with " +
                std::to_string(unsolved_.request.options.max_new_tokens) + " new ones take at least " +
                std::to_string(least) + " bytes");
  }

  const UnsolvedRequest& unsolved_;
  Target target_;
  std::optional<double> allowed_ms_;
  const CostModel* costs_;
};

}  // namespace

SolvedPolicy solve_amount(const UnsolvedRequest& unsolved, std::optional<double> allowed_ms) {
  return Solver(unsolved, allowed_ms).solve();
}

}  // namespace espalier
