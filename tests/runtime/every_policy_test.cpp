// SPDX-License-Identifier: Apache-2.0
// Every policy of the table on every tiny checkpoint, on three pictures in context of which LLaVA-NeXT cuts padding
// away: a live run equals its own recording replayed; what it leaves equals the masked reference, alone and in one
// batch with all other policies; one that the model cannot serve says so.
#include <ATen/TensorOperators.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "espalier/error.h"
#include "espalier/policies/table.h"
#include "recording/record.h"
#include "recording/replay.h"
#include "runtime/encode.h"
#include "runtime/generate.h"
#include "tests/runtime/arrays.h"
#include "tests/runtime/masked_run.h"
#include "tests/runtime/scratch_folder.h"
#include "tests/support/tensors.h"
#include "tests/support/tiny_llava.h"

namespace espalier {
namespace {

using Json = nlohmann::json;
using test::Answered;
using Tokens = std::vector<int64_t>;

constexpr const char* kFamilies[] = {"llava15", "llava_next_mistral", "llava_next_vicuna", "qwen2vl", "qwen25vl"};

enum class Leaves { kOld, kNew };  // tokens as they were, or others in their place before the decoder

struct Case {
  std::string name;
  std::string spec;  // the table's first example; it may name files
  Leaves leaves = Leaves::kOld;
};

std::vector<Case> cases_of_table() {
  std::vector<Case> cases;
  for (const PolicyEntry& entry : policy_table()) {
    const PolicyExample& example = entry.examples[0];
    cases.push_back(
        {std::string(entry.name), std::string(example.spec), example.keeps_tokens ? Leaves::kOld : Leaves::kNew});
  }
  return cases;
}

Chat prompt_of(int first, int shots) {
  constexpr std::pair<int, int> kSizes[] = {
      {112, 120}, {224, 48}, {56, 56}, {48, 224}};  // m3 wants whole cells of Qwen's grids
  const auto picture = [&](int i) {
    const auto [width, height] = kSizes[(first + i) % 4];
    return ImagePart{.image = test::picture(width, height, static_cast<uint32_t>(10 + first + i)), .pins = {}};
  };
  std::vector<Example> examples;
  for (int i = 0; i < shots; ++i)
    examples.push_back(
        {.image = picture(i), .question = "What is the red cat doing?", .answer = i % 2 ? "sitting" : "near the wall"});
  return in_context_chat(examples, picture(shots), "What colour is the kite?");
}

// A model with the prompt of the tests and the files that specs name, made once.
struct Family {
  explicit Family(const std::string& checkpoint) : model(test::tiny_model(checkpoint)) {
    folder.write(
        "recipe.json",
        R"({"method": "fitprune", "model": "made up", "layers": 8, "n_visual": 16, "delete": [3,0,4,2,0,1,3,2]})");
    write_sets("catp:keep_ratio=2/9,row_breaks=follow");
  }
  void write_sets(const std::string& policy) const {
    const Request request{.prompt = prompt, .policy = policy, .custom = {}, .options = {}, .trace = false};
    record(model, request, {.signals = signals(), .layout = layout(), .only = {}}, {});
    replay(make_policy(policy), {.signals = signals(), .layout = layout(), .out = folder.path() / "kept.json"});
  }
  std::filesystem::path signals() const { return folder.path() / "signals.safetensors"; }
  std::filesystem::path layout() const { return folder.path() / "layout.json"; }
  std::string spec(const Case& of) const {
    std::string text = of.spec;
    for (const std::string file : {"recipe.json", "kept.json"})
      if (const size_t at = text.find(file); at != std::string::npos)
        text.replace(at, file.size(), (folder.path() / file).string());
    return text;
  }
  // Why the model cannot run the policy; empty when it can. A fitted recipe serves any depth.
  std::string refusal(const Case& of) const {
    if (of.name == "fitprune") return {};
    return std::ranges::find(policy_table(), of.name, &PolicyEntry::name)->refusal(model.facts);
  }

  const LoadedModel& model;
  const Prompt prompt = prompt_of(0, 2);
  test::ScratchFolder folder;
};

const Family& family(const std::string& name) {
  static std::map<std::string, std::unique_ptr<Family>> families;
  std::unique_ptr<Family>& one = families[name];
  if (!one) one = std::make_unique<Family>(name);
  return *one;
}

Sequence sequence_of(const Family& f, const Prompt& prompt, const std::string& spec) {
  const PolicyPtr policy = make_policy(spec);
  return {f.model, pack_prompt(f.model, prompt, 32, policy.get()), policy};
}

// What entered the decoder, through the reference decoder at the positions that it has.
void expect_equals_reference(const Family& f, const Prompt& prompt, const std::string& spec, const Answered& run) {
  const c10::InferenceMode no_gradients;
  Sequence sequence = sequence_of(f, prompt, spec);
  encode(f.model, sequence);
  const int64_t n = sequence.stream.hidden.size(0);
  const std::vector<int32_t> fed(run.answer.begin(), run.answer.end() - 1);
  const test::Dropped nothing{std::vector<int>(static_cast<size_t>(n), f.model.facts.num_layers), {}};
  const at::Tensor expected = test::masked_logits(f.model, sequence.stream.hidden, sequence.walk.layout().position_id,
                                                  sequence.prompt.next_position, nothing, fed)
                                  .slice(0, n - 1);
  for (size_t step = 0; step < run.logits.size(); ++step) {
    const at::Tensor reference = expected[static_cast<int64_t>(step)];
    EXPECT_LT((run.logits[step].to(at::kDouble) - reference).abs().max().item<double>(),
              5e-5 * reference.pow(2).mean().sqrt().item<double>())
        << "step " << step;
  }
}

void expect_equals_oracle(const Family& f, const Case& of, const Prompt& prompt, const Sequence& sequence,
                          const Answered& run) {
  if (of.leaves == Leaves::kNew)
    expect_equals_reference(f, prompt, f.spec(of), run);
  else
    test::expect_equals_masked_run(f.model, prompt, sequence, run);
}

class EveryPolicyRun : public testing::TestWithParam<std::tuple<const char*, Case>> {
 protected:
  const Family& family_ = family(std::get<0>(GetParam()));
  const Case& case_ = std::get<1>(GetParam());
  const std::string spec_ = family_.spec(case_);
};

TEST_P(EveryPolicyRun, EqualsTheMaskedRunOrSaysWhatIsMissing) {
  if (const std::string refusal = family_.refusal(case_); !refusal.empty()) {
    const std::string message =
        test::message_of<Error>([&] { test::sequence_for(family_.model, family_.prompt, make_policy(spec_)); });
    EXPECT_NE(message.find(case_.name), std::string::npos) << message;
    return;
  }
  std::vector<Sequence> sequences;
  sequences.push_back(sequence_of(family_, family_.prompt, spec_));
  const Answered run = test::run_packed(family_.model, sequences, 4)[0];
  expect_equals_oracle(family_, case_, family_.prompt, sequences[0], run);
}

TEST_P(EveryPolicyRun, EqualsItsOwnRecordingReplayed) {
  if (!family_.refusal(case_).empty()) GTEST_SKIP() << family_.refusal(case_);
  const test::ScratchFolder folder;
  const auto at = [&](const char* name) { return folder.path() / name; };
  Request request{.prompt = family_.prompt, .policy = spec_, .custom = {}, .options = {}, .trace = true};
  request.options.max_new_tokens = 1;
  record(family_.model, request, {.signals = at("s.safetensors"), .layout = at("l.json"), .only = {}}, {});
  const ReplayFiles files{.signals = at("s.safetensors"), .layout = at("l.json"), .out = at("out.json")};
  if (case_.name == "resize") {
    // The recording is of the smaller pictures, so there is nothing left to change; of whole ones it is refused.
    const Family& whole = family_;
    test::expect_says(test::message_of<Error>([&] {
                        replay(make_policy(spec_),
                               {.signals = whole.signals(), .layout = whole.layout(), .out = at("out.json")});
                      }),
                      {"resize", "before the vision tower"});
    return;
  }
  replay(make_policy(spec_), files);
  const Json replayed = Json::parse(test::read_file(files.out));
  const Result live = generate(family_.model, request);
  EXPECT_EQ(replayed.at("kept").get<Tokens>(), live.kept);
  ASSERT_EQ(replayed.at("points").size(), live.points.size());
  for (size_t i = 0; i < live.points.size(); ++i) {
    SCOPED_TRACE(i);
    const Json& point = replayed["points"][i];
    EXPECT_EQ(point.at("site"), live.points[i].site);
    EXPECT_EQ(point.value("layer", -1), live.points[i].layer);
    if (live.points[i].kept_per_head.empty())
      EXPECT_EQ(point.at("kept").get<Tokens>(), live.points[i].kept);
    else
      EXPECT_EQ(point.at("kept").get<std::vector<Tokens>>(), live.points[i].kept_per_head);
    EXPECT_EQ(point.value("candidates", Tokens{}), live.points[i].candidates);
    const auto scores = point.value("scores", std::vector<double>{});
    ASSERT_EQ(scores.size(), live.points[i].scores.size());
    for (size_t s = 0; s < scores.size(); ++s) EXPECT_NEAR(scores[s], live.points[i].scores[s], 2e-5) << s;
    if (!point.contains("merged_source")) continue;
    // Image tokens behind the point; text stands where it stood, so what is no text's index is an image token's.
    Tokens images = live.points[i].source;
    const PackedPrompt packed = pack_prompt(family_.model, family_.prompt, 1);
    std::erase_if(images, [&](int64_t t) { return t >= 0 && packed.layout->image[t].item<int64_t>() < 0; });
    EXPECT_EQ(point.at("merged_source").get<Tokens>(), images);
  }
}

// With an option that every policy has.
std::string with(const std::string& spec, const std::string& option) {
  return spec + (spec.find(':') == std::string::npos ? ":" : ",") + option;
}

TEST_P(EveryPolicyRun, FloorsAndPinsHold) {
  const std::string name = case_.name;
  if (!family_.refusal(case_).empty()) GTEST_SKIP() << family_.refusal(case_);
  const auto run = [&](const Prompt& prompt, const std::string& spec) {
    Request request{.prompt = prompt, .policy = spec, .custom = {}, .options = {}, .trace = true};
    request.options.max_new_tokens = 2;
    request.options.greedy = true;
    return generate(family_.model, request);
  };
  const Result whole = run(family_.prompt, "none");
  if (name != "none") {  // below the least number of tokens it is the unpruned run
    const Result off = run(family_.prompt, with(spec_, "min_tokens=100000"));
    EXPECT_TRUE(off.points.empty());
    EXPECT_EQ(off.token_ids, whole.token_ids);
    EXPECT_EQ(off.stats.tokens_per_layer, whole.stats.tokens_per_layer);
  }
  if (name == "resize" || name == "none") return;  // nothing leaves
  // Sets made without a floor, and cells of another size, cannot hold one or keep a pin: that is said.
  const auto held_or_refused = [&](const Prompt& prompt, const std::string& spec, const char* what) {
    std::optional<Result> held;
    try {
      held = run(prompt, spec);
    } catch (const Error& refused) {
      EXPECT_NE(std::string(refused.what()).find(what), std::string::npos) << refused.what();
      EXPECT_TRUE(name == "keepmask" || name == "m3") << refused.what();
    }
    return held;
  };
  if (const auto floored = held_or_refused(family_.prompt, with(spec_, "min_per_image=2"), "min_per_image")) {
    for (const PointTrace& point : floored->points)
      for (const int64_t left : point.tokens_per_image) EXPECT_GE(left, 2) << point.site << " " << point.layer;
  }
  // Something in the first picture is pinned: it stays at every point, as itself or merged at its place.
  Chat chat = std::get<Chat>(family_.prompt);
  for (Part& part : chat.messages[0].content)
    if (auto* image = std::get_if<ImagePart>(&part)) image->pins = {{50, 50, 52, 52}};
  const PackedPrompt packed = pack_prompt(family_.model, chat, 2);
  const Tokens pinned = [&] {
    const at::Tensor found = packed.layout->pinned.nonzero().squeeze(1);
    return Tokens(found.const_data_ptr<int64_t>(), found.const_data_ptr<int64_t>() + found.numel());
  }();
  ASSERT_FALSE(pinned.empty());
  const auto held = held_or_refused(chat, spec_, "pin");
  if (!held) return;
  ASSERT_FALSE(held->points.empty());
  for (const PointTrace& point : held->points)
    for (const int64_t t : pinned) {
      for (const Tokens& head : point.kept_per_head) EXPECT_TRUE(std::ranges::binary_search(head, t)) << t;
      EXPECT_TRUE(std::ranges::count(point.source, t)) << t << " " << point.site << " " << point.layer;
    }
}

std::string name_of_run(const testing::TestParamInfo<std::tuple<const char*, Case>>& info) {
  std::string name = std::get<1>(info.param).name;
  if (name.ends_with('+')) name.replace(name.size() - 1, 1, "_plus");
  return std::string(std::get<0>(info.param)) + "_" + name;
}

INSTANTIATE_TEST_SUITE_P(Table, EveryPolicyRun,
                         testing::Combine(testing::ValuesIn(kFamilies), testing::ValuesIn(cases_of_table())),
                         name_of_run);

TEST(EveryPolicyRun, PaddingIsCutAway) {
  for (const char* name : {"llava_next_mistral", "llava_next_vicuna"}) {
    const PackedPrompt packed = pack_prompt(family(name).model, family(name).prompt, 1);
    const ImageShape& wide = packed.layout->images.at(1);
    ASSERT_TRUE(wide.tiling);
    const int64_t crops = 1 + wide.tiling->rows * wide.tiling->cols;
    EXPECT_LT(packed.layout->num_patches(1), crops * wide.grid.rows * wide.grid.cols);
  }
}

// All policies at once, each on a prompt of its own with one to three pictures.
TEST(EveryPolicyRun, InOneBatchEachEqualsItsOracle) {
  for (const char* name : kFamilies) {
    SCOPED_TRACE(name);
    const Family& f = family(name);
    const std::vector<Case> all = cases_of_table();
    std::vector<const Case*> cases;
    std::vector<Prompt> prompts;
    std::vector<Sequence> packed;
    for (const Case& of : all) {
      if (!f.refusal(of).empty()) continue;
      cases.push_back(&of);
      const bool is_bound = std::string(of.name) == "keepmask";  // to the prompt of its sets
      const int ordinal = static_cast<int>(cases.size());
      prompts.push_back(is_bound ? f.prompt : Prompt(prompt_of(ordinal, ordinal % 3)));
      packed.push_back(sequence_of(f, prompts.back(), f.spec(of)));
    }
    const std::vector<Answered> runs = test::run_packed(f.model, packed, 3);
    for (size_t i = 0; i < runs.size(); ++i) {
      SCOPED_TRACE(cases[i]->name);
      expect_equals_oracle(f, *cases[i], prompts[i], packed[i], runs[i]);
    }
  }
}

}  // namespace
}  // namespace espalier
