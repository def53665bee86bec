// SPDX-License-Identifier: Apache-2.0
#include <CLI/App.hpp>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/output_file.h"
#include "cli/commands.h"
#include "cli/interrupt.h"
#include "cli/json_output.h"
#include "cli/number_option.h"
#include "cli/prompt_options.h"
#include "cli/sampling_options.h"
#include "cli/standard_output.h"
#include "cli/terminal_progress.h"
#include "questions/answer_questions.h"
#include "questions/score.h"
#include "runtime/result_json.h"

namespace espalier::cli {

namespace {

struct AnswerOptions {
  ModelOptions model;
  PluginOptions plugins;
  GenerationOptions generation;
  std::vector<std::string> policies = {"none"};
  std::filesystem::path questions, image_folder, out, expected;
  Scorer scorer = Scorer::kVqa;
  int64_t at_once = 8, kv_bytes = 0;
  JsonOutput json;
};

std::string counts_text(const AskingResult& result, const std::filesystem::path& out) {
  std::string text = std::to_string(result.found + result.answered) + " of " + std::to_string(result.total) +
                     " answers are in " + out.string();
  if (result.found > 0) text += ", " + std::to_string(result.found) + " of them from before";
  return text;
}

ExitStatus answer(const AnswerOptions& options) {
  check_outputs(options.model, {}, {options.out, options.json.file()});
  espalier::check_outputs({options.questions, options.expected}, {options.out, options.json.file()});
  Asking asking;
  for (const std::string& spec : options.policies) asking.policies.push_back(read_policy(options.plugins, spec));
  asking.questions = read_questions(
      options.questions, options.image_folder.empty() ? options.questions.parent_path() : options.image_folder);
  const Expected expected = options.expected.empty() ? Expected() : read_expected(options.expected);
  asking.generation = options.generation;
  asking.at_once = static_cast<size_t>(options.at_once);
  asking.kv_bytes = options.kv_bytes;
  AnswerFile file(options.out);
  catch_interrupts();
  TerminalProgress progress;
  const Engine engine = load_engine(options.model, progress);
  nlohmann::ordered_json json = json_head(engine);
  asking.model_id = json["model"].get<std::string>();
  for (PolicyPtr& policy : asking.policies) policy = for_model(policy, engine.facts());  // answers say what ran
  const AskingResult result =
      answer_questions(engine, asking, file,
                       {.show = [&](int64_t done, int64_t total) { progress.show("answer", done, total); },
                        .should_cancel = interrupted});
  progress.clear();
  json.update({{"questions", options.questions.string()},
               {"answers", options.out.string()},
               {"complete", result.is_complete},
               {"total", result.total},
               {"found", result.found},
               {"answered", result.answered}});
  std::string text = counts_text(result, options.out) + "\n";
  if (result.is_complete && !options.expected.empty()) {
    json["scores"] = nlohmann::ordered_json::array();
    for (const AnswerScore& score : score_answers(file.all(), expected, options.scorer)) {
      json["scores"].push_back(to_json(score, options.scorer));
      text += score_text(score, options.scorer);
    }
  }
  options.json.write(to_line(json) + "\n");
  if (!result.is_complete) {
    std::fprintf(stderr, "espalier: interrupted: %s; the same command goes on\n",
                 counts_text(result, options.out).c_str());
    return kInterrupted;
  }
  if (!options.json.replaces_text()) print(text);
  return kDone;
}

}  // namespace

Run add_answer(CLI::App& app) {
  const auto options = std::make_shared<AnswerOptions>();
  options->model.image_cache_bytes = int64_t{256} << 20;  // questions about one picture stand together
  add_model_options(app, options->model);
  app.add_option("--questions", options->questions,
                 "Questions in LLaVA's form: one {\"question_id\", \"image\", \"text\"} per line")
      ->required()
      ->type_name("FILE");
  app.add_option("--image-folder", options->image_folder, "Where the pictures are; by default beside the questions")
      ->type_name("DIR");
  app.add_option("--out", options->out,
                 "Answers, one line each, in the order of the questions. What it holds is not asked again")
      ->required()
      ->type_name("FILE");
  app.add_option("--policy", options->policies,
                 "Which visual tokens to drop (see espalier policies); with several, each question is asked under each")
      ->capture_default_str()
      ->allow_extra_args(false)
      ->type_name("SPEC");
  add_plugin_option(app, options->plugins);
  add_sampling_options(app, options->generation);
  add_integer(
      app, "--requests", {1, 1024}, [options](int64_t n) { options->at_once = n; }, "Questions asked at once (8)");
  add_integer(
      app, "--kv", {0, int64_t{1} << 50}, [options](int64_t n) { options->kv_bytes = n; },
      "Keys and values of all of them together; some then wait; 0 for no limit (0)")
      ->type_name("BYTES");
  app.add_option(
         "--expected", options->expected,
         "Also score the answers by this file: one {\"question_id\", \"label\": text} or {…, \"answers\": [text, "
         "…]} per line, or VQAv2's annotations (.json)")
      ->type_name("FILE");
  app.add_option_function<std::string>(
         "--scorer",
         [options](const std::string& name) { options->scorer = name == "pope" ? Scorer::kPope : Scorer::kVqa; },
         "vqa: short answers as VQAv2 compares them, an exact match where one answer is expected; pope: yes or no, "
         "with "
         "precision, recall and F1 (vqa)")
      ->check(CLI::IsMember({"vqa", "pope"}))
      ->type_name("NAME");
  options->json.add_option(app, "one object with counts and scores");
  app.footer(
      "Each line of --out is {\"question_id\", \"prompt\", \"text\", \"answer_id\", \"model_id\", \"metadata\"}, as "
      "LLaVA's own scripts read it; metadata names policy and tokens. Run again, the same command asks what is "
      "missing: after Ctrl-C, a crash, or with one more --policy.\n\n"
      "  espalier answer --questions llava_pope_test.jsonl --image-folder val2014 \\\n"
      "      --greedy --max-new-tokens 16 --policy none --policy catp:keep_ratio=2/9 \\\n"
      "      --out answers.jsonl");
  return [options] { return answer(*options); };
}

}  // namespace espalier::cli
