// SPDX-License-Identifier: Apache-2.0
// The spec-string grammar: values, one clear line for every mistake, round trips, pipelines.
#include "pruning/policy_spec.h"

#include <gtest/gtest.h>

#include "espalier/error.h"
#include "espalier/policies/catp.h"
#include "espalier/policies/table.h"
#include "espalier/target.h"
#include "tests/support/array_signals.h"
#include "tests/support/temporary_folder.h"

namespace espalier {
namespace {

using test::facts;
using test::LayoutBuilder;

std::string error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

std::string error_of_spec(std::string_view spec) {
  return error_of([&] { make_policy(spec); });
}

TEST(PolicySpec, FractionsAreExact) {
  EXPECT_EQ(parse_fraction("2/9"), (Fraction{2, 9}));
  EXPECT_EQ(parse_fraction("4/18"), (Fraction{2, 9}));
  EXPECT_EQ(parse_fraction("0.22"), (Fraction{11, 50}));
  EXPECT_EQ(parse_fraction("1.0"), (Fraction{1, 1}));
  EXPECT_EQ(parse_fraction(".5"), (Fraction{1, 2}));
  EXPECT_EQ(parse_fraction("3"), (Fraction{3, 1}));
  EXPECT_EQ(parse_fraction("0.2222222222222222"), (Fraction{1111111111111111, 5000000000000000}));
  for (const char* text : {"", "x", "1/0", "1/-2", "1/2/3", "0.5x", "1e-3", "0.-5", "/2", "1/", "."})
    EXPECT_EQ(parse_fraction(text), std::nullopt) << text;
}

TEST(PolicySpec, MistakesAreNamedInOneLine) {
  EXPECT_EQ(error_of_spec(""), "policy: the spec is empty");
  EXPECT_EQ(error_of_spec("fastw:layer=2")
                .find("policy: there is no \"fastw\" (did you mean fastv?); there are none, random, uniform, "),
            0U);
  EXPECT_EQ(error_of_spec("random:keep_ratio=1/2,sed=1"),
            "random: unknown option \"sed\" (did you mean seed?); its options are keep_ratio, num_kept, seed, "
            "row_breaks, positions, "
            "min_per_image, min_tokens");
  EXPECT_EQ(error_of_spec("random:keep_ratio=1/2,seed=1,seed=2"), "random: option seed is given twice");
  EXPECT_EQ(error_of_spec("random:keep_ratio"),
            "policy \"random:keep_ratio\": expected option=value, got \"keep_ratio\"");
  EXPECT_EQ(error_of_spec("random:"), "policy \"random:\": expected option=value, got \"\"");
  EXPECT_EQ(error_of_spec("random:keep_ratio=half"), "random: keep_ratio=half is not a number (a/b, or a decimal)");
  EXPECT_EQ(error_of_spec("random:keep_ratio=0"), "random: keep_ratio=0 is not above 0 and at most 1");
  EXPECT_EQ(error_of_spec("random:keep_ratio=1.5"), "random: keep_ratio=3/2 is not above 0 and at most 1");
  EXPECT_EQ(error_of_spec("random:num_kept=-1"), "random: num_kept=-1 is below 0");
  EXPECT_EQ(error_of_spec("random:num_kept=2.5"), "random: num_kept=2.5 is not an integer");
  EXPECT_EQ(error_of_spec("random"), "random: keep_ratio or num_kept is needed");
  EXPECT_EQ(error_of_spec("random:keep_ratio=1/2,num_kept=3"), "random: give keep_ratio or num_kept, not both");
  EXPECT_EQ(error_of_spec("fastv:keep_ratio=1/2,layer=0"), "fastv: layer=0 is below 1");
  EXPECT_EQ(error_of_spec("fastv:keep_ratio=1/2,rows=first"), "fastv: rows=first is not one of last, all");
  EXPECT_EQ(error_of_spec("catp:keep_ratio=1/2,k=1"), "catp: k=1 is below 2");
  EXPECT_EQ(error_of_spec("catp:keep_ratio=1/2,lambda1=nan"), "catp: lambda1=nan is not a finite number");
  EXPECT_EQ(error_of_spec("catp:keep_ratio=1/2,stage1_share=2"), "catp: stage1_share=2 is not from 0 to 1");
  EXPECT_EQ(error_of_spec("none:positions=kept"), "none: positions=kept is not one of keep, compact");
  EXPECT_EQ(error_of_spec("none:keep_ratio=1/2").find("none: unknown option \"keep_ratio\""), 0U);
}

TEST(PolicySpec, SpecIsWrittenBackAndReadAgain) {
  for (const char* text :
       {"none", "none:positions=compact", "random:keep_ratio=1/2", "random:num_kept=7,seed=18446744073709551615",
        "fastv:keep_ratio=11/"
        "50,layer=3,rows=all,pool=image,row_breaks=follow,positions=compact,min_per_image=2,min_tokens=9",
        "catp:keep_ratio=2/9", "catp:num_kept=64,k=4,lambda1=0.1,lambda2=0.30000000000000004,stage1_share=1/3",
        "catp:keep_ratio=2/9,similarity=minmax,scale=div_mean,query_pool=last,context_pool=image,relu=per_head,"
        "delta_norm=sum,similarity2=affine,ranking=per_image,counts=exact_total,rounding=ceil,row_breaks=pool",
        "catp:keep_ratio=2/9,importance=attention", "random:keep_ratio=1/2 + fastv:keep_ratio=1/4"})
    EXPECT_EQ(make_policy(text)->spec(), text);
  EXPECT_EQ(make_policy("catp:keep_ratio=4/18,lambda1=7/10,stage1_share=0.5")->spec(), "catp:keep_ratio=2/9");
}

// The defaults that `espalier policies` prints are those that hold.
TEST(PolicySpec, TableDefaultsAreTheDefaults) {
  const TemporaryFolder folder;
  const std::string kept_sets = folder.write("kept.json", R"({"points": []})");
  for (const PolicyEntry& entry : policy_table()) {
    const bool takes_amount =
        !entry.options.empty() && entry.options[0].name == "keep_ratio" && entry.options[0].default_value.empty();
    std::string start = std::string(entry.name) + (takes_amount ? ":keep_ratio=1/2" : "");
    if (entry.name == "attention") start += ",layer=2";  // has no default
    if (entry.name == "fitprune") start += ":recipe=llava15-7b-60";
    if (entry.name == "keepmask") start += ":file=" + kept_sets;
    if (entry.name == "atp") start += ":theta_r=0.5,theta_s=0.5";
    const std::string plain = make_policy(start)->spec();
    for (const std::span<const PolicyOption> options :
         {std::span<const PolicyOption>(entry.options), common_policy_options()})
      for (const PolicyOption& option : options) {
        if (option.default_value.empty()) continue;
        const std::string spec = start + (start.find(':') != std::string::npos ? "," : ":") + std::string(option.name) +
                                 "=" + std::string(option.default_value);
        EXPECT_EQ(make_policy(spec)->spec(), plain) << spec;
      }
  }
}

TEST(PolicySpec, StructsAndStringsMakeTheSamePolicy) {
  EXPECT_EQ(
      make_catp({.amount = {.keep_ratio = Fraction{2, 9}}, .k = 3, .ranking = CatpOptions::Ranking::kPerImage})->spec(),
      "catp:keep_ratio=2/9,k=3,ranking=per_image");
}

TEST(PolicySpec, TargetsStandInPlaceOfAmounts) {
  const PolicyPtr policy = make_policy("divprune:ttft=1.5s,kv=64MiB,row_breaks=follow,min_per_image=2");
  ASSERT_TRUE(target_of(*policy));
  EXPECT_EQ(*target_of(*policy), (Target{.ttft_ms = 1500, .kv_bytes = 64 << 20}));
  EXPECT_EQ(policy->common().min_per_image, 2);
  EXPECT_FALSE(policy->row_breaks_compete());
  EXPECT_EQ(at_ratio(*policy, {1, 4})->spec(), "divprune:keep_ratio=1/4,row_breaks=follow,min_per_image=2");
  EXPECT_EQ(at_ratio(*make_policy("pyramiddrop:ttft=3ms"), {1, 4})->spec(), "pyramiddrop:keep_ratio=1/4");
  EXPECT_EQ(at_ratio(*make_policy("random:keep_ratio=1/2 + fastv:kv=2GB"), {1, 4})->spec(),
            "random:keep_ratio=1/2 + fastv:keep_ratio=1/4");
  EXPECT_EQ(to_string(*target_of(*policy)), "ttft=1500ms,kv=64MiB");
  EXPECT_EQ(to_string(Target{.ttft_ms = 2000, .kv_bytes = {}}), "ttft=2s");
  EXPECT_EQ(to_string(Target{.ttft_ms = {}, .kv_bytes = 1500}), "kv=1500B");
  EXPECT_FALSE(target_of(*make_policy("divprune:keep_ratio=1/2")));
  EXPECT_THROW(at_ratio(*make_policy("divprune:keep_ratio=1/2"), {1, 2}), Error);
}

// Every policy of the table that takes a ratio takes them, and says so; no other does.
TEST(PolicySpec, TargetsAreOfPoliciesWithARatio) {
  for (const PolicyEntry& entry : policy_table()) {
    const auto has = [&](std::string_view name) {
      return std::ranges::count(entry.options, name, &PolicyOption::name);
    };
    EXPECT_EQ(has("ttft"), has("keep_ratio")) << entry.name;
    EXPECT_EQ(has("kv"), has("keep_ratio")) << entry.name;
    if (!has("ttft")) continue;
    std::string spec = std::string(entry.name) + ":ttft=10ms";
    if (entry.name == "attention") spec += ",layer=2";  // has no default
    EXPECT_TRUE(target_of(*make_policy(spec))) << spec;
  }
  EXPECT_EQ(error_of_spec("vtw:ttft=3ms").find("vtw: unknown option \"ttft\""), 0U);
}

TEST(PolicySpec, MistakesInTargetsAreNamed) {
  for (const char* text : {"250", "0ms", "-1ms", "ms", "1m", "1e300s", "nanms", "1 ms"})
    EXPECT_EQ(error_of_spec(std::string("random:ttft=") + text),
              "random: ttft=" + std::string(text) + " is not a time above 0 with its unit, ms or s");
  for (const char* text : {"64", "0MB", "64Mb", "0.5B"})
    EXPECT_EQ(
        error_of_spec(std::string("random:kv=") + text),
        "random: kv=" + std::string(text) + " is not 1 byte or more with the unit: B, kB, MB, GB, KiB, MiB or GiB");
  EXPECT_EQ(error_of_spec("random:ttft=3ms,keep_ratio=1/2"), "random: give ttft=3ms or keep_ratio, not both");
  EXPECT_EQ(error_of_spec("random:num_kept=2,kv=3kB"), "random: give kv=3kB or num_kept, not both");
  EXPECT_EQ(error_of_spec("random:kv=3kB,kv=3kB"), "random: option kv is given twice");
  EXPECT_EQ(error_of_spec("random:ttft=3ms,seed=x"), "random: seed=x is not an integer from 0 to 2^64 - 1");
  EXPECT_EQ(error_of_spec("random:ttft=3ms + fastv:kv=1MB"), "pipeline: ttft and kv are of one policy; two have them");
}

// Where nothing runs there is nothing to solve an amount from.
TEST(PolicySpec, TargetsNeedAnEngine) {
  const auto prompt = LayoutBuilder().text(1, 0).image({2, 4}, 0).text(3, 0).build(0);
  const std::string error = error_of([&] { make_policy("random:ttft=3ms")->steps(facts(8), *prompt); });
  EXPECT_NE(error.find("random:ttft=3ms: only a request of an engine"), std::string::npos) << error;
}

TEST(Pipeline, CommonOptionsAgree) {
  EXPECT_EQ(
      error_of_spec("random:keep_ratio=1/2,positions=compact + fastv:keep_ratio=1/4").find("pipeline: positions,"), 0U);
  EXPECT_EQ(error_of_spec("random:keep_ratio=1/2 + "),
            "policy \"random:keep_ratio=1/2 + \": nothing stands beside a ' + '");
}

TEST(Pipeline, OrderAndAmountsAreChecked) {
  const auto prompt = LayoutBuilder().text(1, 0).image({2, 4}, 0).image({2, 4}, 0).text(3, 0).build(0);
  const auto points = [&](std::string_view spec) { return test::points_of(make_policy(spec), facts(8), *prompt); };
  EXPECT_EQ(points("random:keep_ratio=1/2 + fastv:keep_ratio=1/4,layer=3"),
            (std::vector<ActPoint>{{Site::kProjectorOutput, 0}, {Site::kBeforeLayer, 3}}));
  EXPECT_EQ(error_of([&] { points("fastv:keep_ratio=1/2 + random:keep_ratio=1/4"); }),
            "pipeline: random:keep_ratio=1/4 acts at projector_output, which comes before before_layer 2 of "
            "fastv:keep_ratio=1/2");
  EXPECT_EQ(error_of([&] { points("random:keep_ratio=1/4 + fastv:keep_ratio=1/2"); }),
            "pipeline: fastv:keep_ratio=1/2 keeps 8 tokens, but random:keep_ratio=1/4 leaves 4");
  EXPECT_EQ(error_of([&] { points("random:keep_ratio=1/4 + fastv:keep_ratio=1"); }),
            "pipeline: fastv:keep_ratio=1 keeps 16 tokens, but random:keep_ratio=1/4 leaves 4");
}

TEST(Pipeline, RowBreaksAgreeWhereTheRequestHasAny) {
  const auto build = [](bool with_row_break) {
    LayoutBuilder builder;
    builder.image({1, 4}, 0).patches(0, 1, {1, 4}, {0, 0}, 0);
    if (with_row_break) builder.row_break(0, 0);
    return builder.text(2, 0).build(0);
  };
  const auto policy = make_policy("random:keep_ratio=1/2 + catp:keep_ratio=1/4");
  EXPECT_NO_THROW(test::points_of(policy, facts(8), *build(false)));
  EXPECT_THROW(test::points_of(policy, facts(8), *build(true)), Error);
}

TEST(Pipeline, EachPolicySeesWhatTheOneBeforeLeft) {
  const auto prompt = LayoutBuilder().text(1, 0).image({2, 4}, 0).image({2, 4}, 0).text(3, 0).build(0);
  const auto signals = test::random_signals(prompt->num_tokens, 8, 2, 6, 3);
  const auto points =
      run(make_policy("random:keep_ratio=1/2 + fastv:keep_ratio=1/4,layer=3"), facts(8), prompt, signals);
  ASSERT_EQ(points.size(), 2U);
  EXPECT_EQ(points[0].kept, run(make_policy("random:keep_ratio=1/2"), facts(8), prompt, signals)[0].kept);
  EXPECT_EQ(points[1].candidates, points[0].kept);
  EXPECT_EQ(points[1].kept.size(), 4U);  // a quarter of 16, not of 8
}

}  // namespace
}  // namespace espalier
