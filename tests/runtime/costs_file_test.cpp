// SPDX-License-Identifier: Apache-2.0
#include "runtime/costs_file.h"

#include <gtest/gtest.h>

#include "espalier/error.h"
#include "runtime/known_costs.h"
#include "tests/runtime/made_up_costs.h"
#include "tests/support/tiny_llava.h"

namespace espalier {
namespace {

using test::expect_says;
using test::message_of;

const std::filesystem::path kModel = test::golden_folder() / "llava15";

CostsFile some_costs() {
  return test::made_up_costs(kModel, {.encode = {{"picture", 2.5}},
                                      .prefill = {{"row", 0.125}, {"row_square", 1e-7}},
                                      .select = {{"divprune", {{"pick", 3e-6}}}}});
}

TEST(CostsFile, ComesBackAsItWasWritten) {
  const test::ScratchFolder scratch;
  const CostsFile costs = some_costs();
  const CostsFile read = read_costs(scratch.write("costs.json", costs_json(costs)));
  EXPECT_EQ(costs_json(read), costs_json(costs));
  EXPECT_EQ(read.costs[0].model.prefill.of_term, costs.costs[0].model.prefill.of_term);
  EXPECT_EQ(read.costs[0].setup, costs.costs[0].setup);
}

TEST(CostsFile, OtherModelsAndMachinesAreRefused) {
  const test::ScratchFolder scratch;
  const auto problem = [&](const CostsFile& costs, const std::string& dtype = "f32") {
    const KnownCosts known = find_costs(kModel, scratch.write("costs.json", costs_json(costs)), dtype, "cpu");
    return message_of<Error>([&] { known.with_threads(at::get_num_threads()); });
  };
  CostsFile other_model = some_costs(), other_machine = some_costs(), other_threads = some_costs();
  other_model.model[0] = other_model.model[0] == '0' ? '1' : '0';
  expect_says(problem(other_model), {"ttft: ", "costs.json", "another model", "espalier calibrate"});
  other_machine.machine = "abacus x 1";
  expect_says(problem(other_machine), {"costs.json", "another machine", "abacus x 1", name_of_machine().c_str()});
  other_threads.costs[0].setup.threads = 777;
  expect_says(problem(other_threads), {"threads were not measured", "espalier calibrate"});
  expect_says(problem(some_costs(), "bf16"), {"costs.json", "no costs of bf16 on cpu"});
  EXPECT_NO_THROW(find_costs(kModel, scratch.write("costs.json", costs_json(some_costs())), "f32", "cpu")
                      .with_threads(at::get_num_threads()));
}

TEST(CostsFile, BrokenFilesAreRefusedByField) {
  const test::ScratchFolder scratch;
  const std::string whole = costs_json(some_costs());
  const auto problem = [&](const std::string& from, const std::string& to) {
    std::string text = whole;
    text.replace(text.find(from), from.size(), to);
    return message_of<Error>([&] { read_costs(scratch.write("costs.json", text)); });
  };
  expect_says(problem("espalier costs", "espalier coasts"), {"costs.json", "format", "espalier costs"});
  expect_says(problem("\"version\": 1", "\"version\": 2"), {"version"});
  expect_says(problem("0.125", "-0.125"), {"costs[0].prefill.row", "from 0 up"});
  expect_says(problem("\"row_square\"", "\"row_cube\""), {"costs[0].prefill.row_square"});
  expect_says(problem("\"threads\"", "\"threats\""), {"costs[0].threads"});
  expect_says(problem("{", ""), {"costs.json"});
}

// A second setup joins the first; the same setup, and what is of another machine, is replaced.
TEST(CostsFile, SetupsLieBesideEachOther) {
  const test::ScratchFolder scratch;
  const std::filesystem::path file = scratch.path() / "costs.json";
  MeasuredCosts one = some_costs().costs[0], two = one;
  two.setup.dtype = "bf16";
  EXPECT_EQ(save_costs(kModel, file, one), file);
  save_costs(kModel, file, two);
  one.passes = 99;
  save_costs(kModel, file, one);
  CostsFile there = read_costs(file);
  ASSERT_EQ(there.costs.size(), 2U);
  EXPECT_EQ(there.costs[0].passes, 99);
  EXPECT_EQ(there.costs[1].setup.dtype, "bf16");
  there.machine = "abacus x 1";
  scratch.write("costs.json", costs_json(there));
  save_costs(kModel, file, one);
  EXPECT_EQ(read_costs(file).costs.size(), 1U);
  scratch.write("costs.json", "no JSON");
  save_costs(kModel, file, one);
  EXPECT_EQ(read_costs(file).costs.size(), 1U);
}

// Beside the model, where it is found without being named.
TEST(CostsFile, LiesBesideTheModel) {
  const test::ScratchFolder scratch;
  for (const char* name : {"config.json", "model.safetensors"})
    std::filesystem::copy(kModel / name, scratch.path() / name);
  const std::filesystem::path file = save_costs(scratch.path(), {}, some_costs().costs[0]);
  EXPECT_EQ(file, scratch.path() / "espalier-costs.json");
  EXPECT_NO_THROW(find_costs(scratch.path(), {}, "f32", "cpu").with_threads(at::get_num_threads()));
  scratch.write("config.json", test::read_file(kModel / "config.json") + " ");
  expect_says(message_of<Error>([&] { find_costs(scratch.path(), {}, "f32", "cpu").with_threads(1); }),
              {"espalier-costs.json", "another model"});
}

TEST(CostModel, PoliciesAreKnownByTheirSpecWithoutAmounts) {
  EXPECT_EQ(without_amount("fastv:keep_ratio=1/2,rows=all"), "fastv:rows=all");
  EXPECT_EQ(without_amount("divprune:num_kept=3 + fastv:ttft=3ms,kv=2MB"), "divprune + fastv");
}

}  // namespace
}  // namespace espalier
