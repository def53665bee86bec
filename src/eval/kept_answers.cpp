// SPDX-License-Identifier: Apache-2.0
#include "eval/kept_answers.h"

#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "base/json_fields.h"
#include "base/json_lines.h"
#include "base/json_schema.h"
#include "espalier/error.h"

namespace espalier::eval {

namespace {

using Json = nlohmann::ordered_json;

std::optional<synth::Control> control_of(const JsonFields& fields) {
  const std::optional<std::string> name = fields.string("control");
  if (!name) return std::nullopt;
  for (const synth::Control control : synth::kControls)
    if (*name == name_of(control)) return control;
  fields.fail("control", "the name of a control");
}

bool boolean_at(const JsonFields& fields, std::string_view key) {
  const std::optional<bool> value = fields.boolean(key);
  if (!value) fields.fail(key, "true or false");
  return *value;
}

EvalAnswer read_answer(const JsonFields& fields) {
  return {.suite = fields.string_at("suite"),
          .cell = fields.string_at("cell"),
          .control = control_of(fields),
          .item = static_cast<uint64_t>(fields.integer_at("item", 0)),
          .policy = fields.string_at("policy"),
          .draw = static_cast<int>(fields.integer_at("draw", 0, std::numeric_limits<int>::max())),
          .answer = fields.string_at("answer"),
          .expected = fields.string_at("expected"),
          .is_correct = boolean_at(fields, "right"),
          .is_chosen_correctly = fields.boolean("chosen_right"),
          .tokens = fields.number_at("tokens"),
          .flops = fields.number_at("flops"),
          .flops_unpruned = fields.number_at("flops_unpruned")};
}

AnsweredRun read_run(const JsonFields& fields) {
  return {.model = fields.string_at("model"),
          .dtype = fields.string_at("dtype"),
          .difficulty = fields.string_at("difficulty"),
          .seed = static_cast<uint64_t>(fields.integer_at("seed")),
          .side = static_cast<int>(fields.integer_at("side", 1, std::numeric_limits<int>::max()))};
}

std::string text_of(const AnsweredRun& run) {
  return run.model + " in " + run.dtype + ", " + run.difficulty + " scenes, seed " + std::to_string(run.seed) +
         ", side " + std::to_string(run.side);
}

}  // namespace

std::string to_json_line(const AnsweredRun& run, const EvalAnswer& answer) {
  const Json json = {{"schema", kJsonSchema},
                     {"model", run.model},
                     {"dtype", run.dtype},
                     {"difficulty", run.difficulty},
                     {"seed", static_cast<int64_t>(run.seed)},
                     {"side", run.side},
                     {"suite", answer.suite},
                     {"cell", answer.cell},
                     {"control", answer.control ? Json(name_of(*answer.control)) : Json(nullptr)},
                     {"item", answer.item},
                     {"policy", answer.policy},
                     {"draw", answer.draw},
                     {"answer", answer.answer},
                     {"expected", answer.expected},
                     {"right", answer.is_correct},
                     {"chosen_right", answer.is_chosen_correctly ? Json(*answer.is_chosen_correctly) : Json(nullptr)},
                     {"tokens", answer.tokens},
                     {"flops", answer.flops},
                     {"flops_unpruned", answer.flops_unpruned}};
  return json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

KeptAnswers::KeptAnswers(std::filesystem::path file, AnsweredRun run) : lines_(std::move(file)), run_(std::move(run)) {
  for (const JsonLine& line : json_lines(lines_.read(), lines_.path().string())) {
    const JsonFields fields(line.value, line.where);
    if (const AnsweredRun other = read_run(fields); other != run_)
      throw Error(line.where + ": it is of another run (" + text_of(other) + "), this one is " + text_of(run_) +
                  "; name another file");
    found_.push_back(read_answer(fields));
  }
}

}  // namespace espalier::eval
