// SPDX-License-Identifier: Apache-2.0
#include "eval/evaluate.h"

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <span>
#include <string_view>
#include <tuple>

#include "base/spread.h"
#include "espalier/error.h"
#include "eval/oracle.h"
#include "pruning/policy_spec.h"
#include "runtime/engine_impl.h"
#include "runtime/generate.h"

namespace espalier::eval {

namespace {

using synth::Item;

constexpr int kRandomDraws = 5;
constexpr int64_t kTimedItems = 5;       // of each cell, asked alone
constexpr int64_t kTokensABatch = 4096;  // of prompts in one packed prefill: larger ones gain nothing on a CPU
constexpr int64_t kLongestAnswer = 8;    // tokens

std::string_view trimmed(std::string_view text) {
  const size_t first = text.find_first_not_of(" \n\t"), last = text.find_last_not_of(" \n\t");
  return first == std::string_view::npos ? std::string_view() : text.substr(first, last + 1 - first);
}

// An item with its pictures drawn once, for all policies.
struct Posed {
  std::shared_ptr<const Item> item;
  uint64_t index = 0;
  Chat chat;
};

Posed pose(Item item, uint64_t index, int side) {
  const auto picture = [&](const synth::Turn& turn) {
    return ImagePart{.image = std::make_shared<const Image>(picture_of(turn, side)), .pins = {}};
  };
  std::vector<Example> examples;
  for (size_t i = 0; i + 1 < item.turns.size(); ++i)
    examples.push_back({picture(item.turns[i]), item.turns[i].question, item.turns[i].answer});
  Chat chat = in_context_chat(examples, picture(item.query()), item.query().question);
  return {std::make_shared<const Item>(std::move(item)), index, std::move(chat)};
}

struct Reply {
  std::string text;
  bool is_correct = false;
  std::optional<bool> is_chosen_correctly;
  Stats stats;
};

double image_tokens_a_layer(const Stats& stats) {
  double sum = 0;
  for (const std::vector<int64_t>& layer : stats.image_tokens_per_layer)
    sum += static_cast<double>(std::accumulate(layer.begin(), layer.end(), int64_t{0}));
  return stats.image_tokens_per_layer.empty() ? 0 : sum / static_cast<double>(stats.image_tokens_per_layer.size());
}

// Whether the right candidate has the highest logit among the candidates' first tokens behind the prompt.
std::optional<bool> is_chosen(const Tokenizer& tokenizer, const std::string& prompt, const Item& item,
                              const at::Tensor& logits) {
  const size_t begin = tokenizer.encode(prompt).size();
  std::vector<int32_t> ids;
  std::vector<float> values;
  for (const std::string& choice : item.choices) {
    const std::vector<int32_t> with_choice = tokenizer.encode(prompt + " " + choice);
    if (with_choice.size() <= begin || std::ranges::count(ids, with_choice[begin])) return std::nullopt;
    ids.push_back(with_choice[begin]);
    values.push_back(logits[ids.back()].item<float>());
  }
  const auto best = std::ranges::max_element(values) - values.begin();
  return item.choices[static_cast<size_t>(best)] == item.query().answer;
}

// suite, cell, control, item, policy, draw
using AnswerKey = std::tuple<std::string, std::string, std::optional<synth::Control>, uint64_t, std::string, int>;

class Examiner {
 public:
  Examiner(const Engine& engine, const EvalOptions& options, const EvalProgress& progress)
      : engine_(engine), options_(options), progress_(progress) {
    policies_ = options.policies;
    std::erase_if(policies_, [](const EvalPolicy& p) { return p.spec == "none"; });
    policies_.insert(policies_.begin(), eval_policy("none", [](const std::string& spec) { return make_policy(spec); }));
    for (EvalPolicy& policy : policies_)  // rows say what ran
      if (const PolicyPtr set = policy.fixed ? policy.fixed->for_model(engine.facts()) : nullptr)
        policy.spec = set->spec();
    for (const EvalAnswer& answer : options.known) known_.emplace(key_of(answer), &answer);
    total_ = count_requests();
  }

  EvalResult run() {
    EvalResult result;
    try {
      ask_once();
      for (const synth::Cell& cell : options_.cells) {
        examine(cell, result);
        if (!options_.with_controls) continue;
        for (const synth::Control control : synth::kControls)
          if (applies(control, cell)) examine_control(cell, control, result);
      }
    } catch (const Cancelled&) {
      result.is_complete = false;
    }
    return result;
  }

 private:
  int64_t count_requests() const {
    int64_t of_item = 0, total = 0;
    for (const EvalPolicy& policy : policies_) of_item += policy.draws;
    for (const synth::Cell& cell : options_.cells) {
      total += options_.items * of_item;
      if (options_.with_controls)
        total += options_.items * std::ranges::count_if(synth::kControls, [&](auto c) { return applies(c, cell); });
    }
    return total;
  }

  Item item_of(const synth::Cell& cell, int64_t index) const {
    return make_item(cell, synth::Split::kTest, options_.seed, static_cast<uint64_t>(index), options_.difficulty);
  }

  // What a policy or the model cannot do shows before the work, not after hours of it.
  void ask_once() {
    for (const synth::Cell& cell : options_.cells) {
      const Posed example = pose(item_of(cell, 0), 0, options_.side);
      seen_.clear();
      for (const EvalPolicy& policy : policies_) ask({&example, 1}, policy, 0, &seen_);
    }
  }

  // All policies on the items of a cell. Cancelled, it leaves in `result` what all of them have answered.
  void examine(const synth::Cell& cell, EvalResult& result) {
    std::vector<Tally> tallies;
    for (const EvalPolicy& policy : policies_) tallies.emplace_back(policy, cell, std::nullopt);
    std::vector<Tally> answered_by_all = tallies;
    const auto add_rows = [&] {
      if (answered_by_all.front().row.n == 0) return;
      const CellResult unpruned = answered_by_all.front().finish(nullptr);
      result.cells.push_back(unpruned);
      for (size_t i = 1; i < answered_by_all.size(); ++i) result.cells.push_back(answered_by_all[i].finish(&unpruned));
    };
    synth::ItemDigest digest;
    const int64_t batch = batch_size(cell);
    try {
      for (int64_t begin = 0; begin < options_.items; begin += batch) {
        std::vector<Posed> posed;
        for (int64_t i = begin; i < std::min(begin + batch, options_.items); ++i) {
          Item item = item_of(cell, i);
          digest.add(item, cell.side);
          posed.push_back(pose(std::move(item), static_cast<uint64_t>(i), options_.side));
        }
        seen_.clear();
        if (begin == 0) time_alone(posed, tallies);
        for (Tally& tally : tallies) ask_all(posed, tally);
        answered_by_all = tallies;
        tell_answers();
      }
    } catch (const Cancelled&) {
      add_rows();
      throw;
    }
    result.digests.emplace_back(cell.full_name(), digest.finish());
    add_rows();
  }

  void examine_control(const synth::Cell& cell, synth::Control control, EvalResult& result) {
    Tally tally(policies_.front(), cell, control);
    const int64_t batch = batch_size(cell);
    try {
      for (int64_t begin = 0; begin < options_.items; begin += batch) {
        std::vector<Posed> posed;
        for (int64_t i = begin; i < std::min(begin + batch, options_.items); ++i) {
          const auto index = static_cast<uint64_t>(i);
          posed.push_back(pose(make_control(cell, item_of(cell, i), control, index), index, options_.side));
        }
        seen_.clear();
        ask_all(posed, tally);
        tell_answers();
      }
    } catch (const Cancelled&) {
      if (tally.row.n > 0) result.cells.push_back(tally.finish(nullptr));
      throw;
    }
    result.cells.push_back(tally.finish(nullptr));
  }

  // Sums over the items of one policy in one cell.
  struct Tally {
    Tally(const EvalPolicy& of, const synth::Cell& in, std::optional<synth::Control> with) : policy(&of) {
      row.policy = of.spec;
      row.suite = in.suite;
      row.cell = in.name;
      row.control = with;
      row.chance = with ? chance_of(in, *with) : in.chance;
      row.chosen_correctly = 0;
    }

    void add(const EvalAnswer& answer) {
      ++row.n;
      row.correct += answer.is_correct;
      if (!answer.is_chosen_correctly) row.chosen_correctly.reset();
      if (row.chosen_correctly) *row.chosen_correctly += *answer.is_chosen_correctly;
      row.tokens_mean += answer.tokens;
      row.flops += answer.flops;
      row.flops_unpruned += answer.flops_unpruned;
    }

    CellResult finish(const CellResult* unpruned) const {
      CellResult done = row;
      const double n = static_cast<double>(std::max<int64_t>(row.n, 1));
      for (double* mean : {&done.tokens_mean, &done.flops, &done.flops_unpruned}) *mean /= n;
      done.interval = wilson_interval(row.correct, row.n);
      if (!first_token.empty()) {
        done.first_token_ms = spread_of(first_token).median;
        done.select_prefill_ms = spread_of(select_prefill).median;
      }
      if (unpruned == nullptr) return done;
      done.flops_unpruned = unpruned->flops_unpruned;  // resize counts its own smaller prompt as unpruned
      if (unpruned->correct > 0) done.relative = done.accuracy() / unpruned->accuracy();
      done.difference = paired_difference(unpruned->scores, done.scores);
      if (policy->draws > 1) return done;
      int64_t only_unpruned = 0, only_pruned = 0;
      for (size_t i = 0; i < done.scores.size(); ++i) {
        only_unpruned += unpruned->scores[i] > done.scores[i];
        only_pruned += done.scores[i] > unpruned->scores[i];
      }
      done.mcnemar = mcnemar_p(only_unpruned, only_pruned);
      return done;
    }

    const EvalPolicy* policy;
    CellResult row;
    std::vector<double> first_token, select_prefill;  // milliseconds, of the timed items
  };

  int64_t batch_size(const synth::Cell& cell) const {
    const Posed example = pose(item_of(cell, 0), 0, options_.side);
    const int64_t tokens = engine_.count_tokens(example.chat).prompt_tokens;
    return std::max<int64_t>(1, kTokensABatch / std::max<int64_t>(tokens, 1));
  }

  // Policies in turn, so that a drift of the machine hits all of them alike; each looks at the pictures itself.
  void time_alone(const std::vector<Posed>& posed, std::vector<Tally>& tallies) {
    const size_t timed = std::min<size_t>(posed.size(), kTimedItems);
    for (size_t i = 0; i < timed; ++i)
      for (Tally& tally : tallies) {
        const Stats stats = ask({&posed[i], 1}, *tally.policy, 0, nullptr).front().stats;
        tally.select_prefill.push_back(stats.select_ms + stats.prefill_ms);
        tally.first_token.push_back(stats.encode_ms + tally.select_prefill.back());
      }
  }

  void ask_all(const std::vector<Posed>& posed, Tally& tally) {
    const int draws = tally.policy->draws;
    std::vector<double> scores(posed.size(), 0);
    for (int draw = 0; draw < draws; ++draw) {
      std::vector<const EvalAnswer*> known;
      for (const Posed& p : posed) known.push_back(known_answer(tally, p, draw));
      // Of a batch that lacks some all are asked again: so they come to the bits of a run that was never cut short.
      std::vector<Reply> replies;
      if (std::ranges::count(known, nullptr) > 0) replies = ask(posed, *tally.policy, draw, &seen_);
      for (size_t i = 0; i < posed.size(); ++i) {
        const EvalAnswer answer = known[i] ? *known[i] : answer_of(tally, posed[i], draw, replies[i]);
        tally.add(answer);
        scores[i] += answer.is_correct;
        if (progress_.on_answer && !known[i]) answers_.push_back(answer);
      }
      done_ += std::ssize(posed);
      if (progress_.show) progress_.show(done_, total_);
    }
    for (const double score : scores) tally.row.scores.push_back(score / draws);
  }

  static EvalAnswer answer_of(const Tally& tally, const Posed& posed, int draw, const Reply& reply) {
    return {.suite = tally.row.suite,
            .cell = tally.row.cell,
            .control = tally.row.control,
            .item = posed.index,
            .policy = tally.row.policy,
            .draw = draw,
            .answer = reply.text,
            .expected = posed.item->query().answer,
            .is_correct = reply.is_correct,
            .is_chosen_correctly = reply.is_chosen_correctly,
            .tokens = image_tokens_a_layer(reply.stats),
            .flops = reply.stats.prefill_flops + reply.stats.probe_flops,
            .flops_unpruned = reply.stats.prefill_flops_unpruned};
  }

  static AnswerKey key_of(const EvalAnswer& answer) {
    return {answer.suite, answer.cell, answer.control, answer.item, answer.policy, answer.draw};
  }

  // nullptr: it has to be asked.
  const EvalAnswer* known_answer(const Tally& tally, const Posed& posed, int draw) const {
    const CellResult& row = tally.row;
    const auto found = known_.find({row.suite, row.cell, row.control, posed.index, row.policy, draw});
    if (found == known_.end()) return nullptr;
    const std::string& expected = posed.item->query().answer;
    if (found->second->expected != expected)
      throw Error("the answer to item " + std::to_string(posed.index) + " of " + row.suite + "/" + row.cell +
                  " that was kept expects \"" + found->second->expected + "\", the item \"" + expected +
                  "\": it is of another benchmark");
    return found->second;
  }

  // Those of a batch that every policy has answered.
  void tell_answers() {
    for (const EvalAnswer& answer : answers_) progress_.on_answer(answer);
    answers_.clear();
  }

  // One packed batch. `seen`: pictures that policies share; none: each request encodes its own.
  std::vector<Reply> ask(std::span<const Posed> posed, const EvalPolicy& policy, int draw, ImageCache* seen) {
    std::vector<Request> requests;
    for (const Posed& p : posed) {
      Request& request = requests.emplace_back();
      request.prompt = p.chat;
      request.custom = policy.make(p.item, p.index, draw);
      request.options.greedy = true;
      request.options.max_new_tokens = kLongestAnswer;
    }
    std::vector<std::string> texts(posed.size());
    Callbacks callbacks;
    callbacks.should_cancel = progress_.should_cancel;
    const bool hears_all = static_cast<bool>(progress_.on_answer);
    callbacks.on_text = [&](size_t i, std::string_view piece) {  // no need to hear a wrong answer to its end
      texts[i] += piece;
      const bool may_be_right = posed[i].item->query().answer.starts_with(trimmed(texts[i]));
      return hears_all || may_be_right ? Continue::kGo : Continue::kStop;
    };
    std::vector<LogitsWatcher> watchers(posed.size());
    std::vector<RunExtras> extras;
    for (LogitsWatcher& watcher : watchers) extras.push_back({.watcher = &watcher});
    std::vector<Result> results;
    engine_.impl().compute->run([&] { results = generate(engine_.impl().model, requests, callbacks, extras, seen); });
    std::vector<Reply> replies;
    for (size_t i = 0; i < results.size(); ++i) {
      if (results[i].finish_reason == FinishReason::kCancelled) throw Cancelled();
      replies.push_back(
          {.text = std::string(trimmed(texts[i])),
           .is_correct = trimmed(texts[i]) == posed[i].item->query().answer,
           .is_chosen_correctly = is_chosen(engine_.tokenizer(), results[i].prompt, *posed[i].item, watchers[i].logits),
           .stats = results[i].stats});
    }
    return replies;
  }

  const Engine& engine_;
  const EvalOptions& options_;
  const EvalProgress& progress_;
  std::vector<EvalPolicy> policies_;
  std::map<AnswerKey, const EvalAnswer*> known_;
  ImageCache seen_{int64_t{1} << 30};  // of the batch at hand
  std::vector<EvalAnswer> answers_;    // of the batch at hand, until every policy has answered it
  int64_t done_ = 0, total_ = 0;
};

}  // namespace

EvalPolicy eval_policy(const std::string& spec, const std::function<PolicyPtr(const std::string&)>& make_policy) {
  if (const auto oracle = parse_oracle(spec))
    return {.spec = spec, .draws = 1, .make = [oracle](const std::shared_ptr<const Item>& item, uint64_t, int) {
              return make_oracle(*oracle, item);
            }};
  const std::vector<PolicySpec> parsed = parse_policy_spec(spec);
  const bool has_seed = std::ranges::any_of(parsed[0].options, [](const auto& o) { return o.name == "seed"; });
  if (parsed.size() == 1 && parsed[0].name == "random" && !has_seed) {
    make_policy(spec);  // for its complaints
    const std::string prefix = spec + (parsed[0].options.empty() ? ":" : ",") + "seed=";
    return {.spec = spec,
            .draws = kRandomDraws,
            .make = [prefix, make_policy](const std::shared_ptr<const Item>&, uint64_t index, int draw) {
              return make_policy(prefix + std::to_string(index * kRandomDraws + static_cast<uint64_t>(draw)));
            }};
  }
  const PolicyPtr policy = make_policy(spec);
  return {.spec = spec,
          .draws = 1,
          .make = [policy](const std::shared_ptr<const Item>&, uint64_t, int) { return PolicyPtr(policy); },
          .fixed = policy};
}

int side_for(const Engine& engine) {
  const int64_t side = engine.impl().model.config.vision.crop_size;
  return side > 0 ? static_cast<int>(side) : 336;
}

EvalResult evaluate(const Engine& engine, const EvalOptions& options, const EvalProgress& progress) {
  return Examiner(engine, options, progress).run();
}

}  // namespace espalier::eval
