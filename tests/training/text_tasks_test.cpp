// SPDX-License-Identifier: Apache-2.0
// Training data of the text stages: turns are tokenized as a whole conversation is, answers stand where the loss looks
// for them, batches are functions of their number; and a few steps on tiny shapes lower the loss.
#include <gtest/gtest.h>
#include <torch/types.h>
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <set>

#include "espalier/error.h"
#include "synth/wording.h"
#include "tests/support/tensors.h"
#include "training/language_task.h"
#include "training/model_folder.h"
#include "training/trainer.h"

namespace espalier {
namespace {

namespace fs = std::filesystem;

class TextTasks : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = fs::temp_directory_path() / ("espalier_text_tasks_" + std::to_string(::getpid()));
    fs::remove_all(folder_);
    write_model_files(folder_);
    tokenizer_ = std::make_unique<Tokenizer>(Tokenizer::load(folder_));
    tokens_ = std::make_unique<TurnTokens>(*tokenizer_);
  }
  static void TearDownTestSuite() {
    fs::remove_all(folder_);
    tokens_.reset();
    tokenizer_.reset();
  }
  static LlavaConfig tiny() {
    LlavaConfig config = demo_model_config();
    config.decoder.hidden_size = 32;
    config.decoder.intermediate_size = 48;
    config.decoder.num_layers = 2;
    config.decoder.num_heads = config.decoder.num_kv_heads = 2;
    config.decoder.head_dim = 16;
    return config;
  }

  static fs::path folder_;
  static std::unique_ptr<Tokenizer> tokenizer_;
  static std::unique_ptr<TurnTokens> tokens_;
};
fs::path TextTasks::folder_;
std::unique_ptr<Tokenizer> TextTasks::tokenizer_;
std::unique_ptr<TurnTokens> TextTasks::tokens_;

TEST_F(TextTasks, TurnsAreTokenizedAsTheWholeConversationIs) {
  const std::string questions[] = {synth::ask(synth::Attribute::kShape),
                                   synth::ask_name(synth::Attribute::kSpot),
                                   synth::ask_colour_of("star"),
                                   synth::ask_shape_of("dax"),
                                   synth::ask_count(),
                                   synth::ask_place_of("wug")};
  std::string text;
  std::vector<int64_t> ids = {tokens_->begin()};
  for (const std::string& question : questions) {
    text += synth::open_turn(question) + synth::close_turn("dax");
    const TurnTokens::Turn& turn = tokens_->turn(question, "dax");
    EXPECT_EQ(turn.ids[turn.answer], tokens_->word("dax"));
    EXPECT_EQ(turn.ids.back(), tokens_->end());
    ids.insert(ids.end(), turn.ids.begin(), turn.ids.end());
  }
  const std::vector<int32_t> whole = tokenizer_->encode(text, /*add_special=*/true);
  EXPECT_EQ(std::vector<int64_t>(whole.begin(), whole.end()), ids);
}

TEST_F(TextTasks, AnAnswerOfSeveralTokensIsAnError) {
  EXPECT_THROW(tokens_->turn("what shape?", "helicopter"), Error);
}

TEST_F(TextTasks, ImagesTakeTheirPlacesWhateverIsShownOfThem) {
  BatchBuilder builder(*tokens_, 64);
  builder.begin_sequence();
  builder.add_turn("what shape?", "star", {{.place = 3, .feature = 10}, {.place = 60, .feature = 20}}, true, 2);
  builder.add_turn("what shape?", "ring", {{.place = 63, .word = tokens_->word("ring")}}, false, 1);
  const TrainingBatch batch = builder.finish();
  const auto position = test::to_doubles(batch.position_id);
  const auto rows = test::to_doubles(batch.image_rows);
  ASSERT_EQ(rows.size(), 2U);
  const double before = position[static_cast<size_t>(rows[0]) - 1];  // of the token before the picture
  EXPECT_EQ(position[static_cast<size_t>(rows[0])], before + 1 + 3);
  EXPECT_EQ(position[static_cast<size_t>(rows[1])], before + 1 + 60);
  EXPECT_EQ(position[static_cast<size_t>(rows[1]) + 1], before + 1 + 64);
  EXPECT_EQ(builder.feature_rows(), (std::vector<int64_t>{10, 20}));
  // The answer, and with less weight the end behind it; nothing of the turn that is not scored.
  EXPECT_EQ(test::to_doubles(batch.targets),
            (std::vector<double>{double(tokens_->word("star")), double(tokens_->end())}));
  const auto scored = test::to_doubles(batch.scored_rows);
  EXPECT_EQ(batch.ids[static_cast<int64_t>(scored[0]) + 1].item<int64_t>(), tokens_->word("star"));
  EXPECT_EQ(batch.topic, (std::vector<int>{2, kNotCounted}));
  EXPECT_LT(batch.weights[1].item<float>(), batch.weights[0].item<float>());
}

TEST_F(TextTasks, HeldOutWordsAreNeverDrawn) {
  std::set<std::string> drawn;
  for (int i = 0; i < 200; ++i) {
    Draw draw(1, "test", i);
    for (const std::string& word : draw_words(draw, synth::Attribute::kColour, 5)) drawn.insert(word);
  }
  EXPECT_EQ(drawn.size(), size_t{synth::kNumMadeUpWords - synth::kHeldOutPerAttribute});
  for (int w = 0; w < synth::kNumMadeUpWords; ++w)
    EXPECT_EQ(drawn.contains(std::string(synth::kMadeUpWords[static_cast<size_t>(w)])),
              !synth::is_held_out(synth::Attribute::kColour, w));
}

// Whatever is left of a turn, the answer to a question about a made-up word is the class that stood before it when it
// was an answer: found by reading the ids, without the task.
TEST_F(TextTasks, ResolvingIsAnsweredByTheExamples) {
  const LlavaConfig config = tiny();
  std::set<int64_t> shapes, colours, made_up;
  for (const std::string_view w : synth::kShapeNames) shapes.insert(tokens_->word(std::string(w)));
  for (const std::string_view w : synth::kColourNames) colours.insert(tokens_->word(std::string(w)));
  for (const std::string_view w : synth::kMadeUpWords) made_up.insert(tokens_->word(std::string(w)));
  int found = 0;
  const auto check = [&](const LanguageTask& task, int64_t number) {
    const TrainingBatch batch = task.batch(number, /*is_evaluation=*/false);
    const auto ids = test::to_doubles(batch.ids), rows = test::to_doubles(batch.scored_rows);
    const auto targets = test::to_doubles(batch.targets);
    const auto id = [&](size_t i) { return static_cast<int64_t>(ids[i]); };
    for (size_t k = 0; k < batch.topic.size(); ++k) {
      if (batch.topic[k] < 0 || !task.topics()[static_cast<size_t>(batch.topic[k])].starts_with("resolve")) continue;
      const auto target = static_cast<int64_t>(targets[k]);
      const std::set<int64_t>& classes = shapes.contains(target) ? shapes : colours;
      ASSERT_TRUE(classes.contains(target));
      auto asked = static_cast<size_t>(rows[k]);  // back to the word in the question,
      while (!made_up.contains(id(asked))) --asked;
      size_t given = asked - 1;  // to where it was the answer: the turn ends behind it,
      while (id(given) != id(asked) || id(given + 1) != tokens_->end()) --given;
      while (!classes.contains(id(given))) --given;  // and to the class before it
      EXPECT_EQ(id(given), target);
      ++found;
    }
  };
  for (int64_t number = 0; number < 5; ++number) {
    check(*text_binding_task(config, *tokens_, {}, 5, 8, 18, 0.3, 0.4), number);
    check(*short_turns_task(config, *tokens_, {}, 5, 12, 18, 0.4), number);
  }
  EXPECT_GT(found, 100);
}

TEST_F(TextTasks, LossIsAFunctionOfTheStep) {
  const LlavaConfig config = tiny();
  const Parameters parameters = initial_parameters(config, 1);
  const auto task = text_binding_task(config, *tokens_, {}, 5, 2, 6, 0.3, 0.3);
  const double third = task->loss(parameters, 3).item<double>();
  EXPECT_NE(task->loss(parameters, 4).item<double>(), third);
  EXPECT_EQ(task->loss(parameters, 3).item<double>(), third);
  const auto other_seed = text_binding_task(config, *tokens_, {}, 6, 2, 6, 0.3, 0.3);
  EXPECT_NE(other_seed->loss(parameters, 3).item<double>(), third);
}

TEST_F(TextTasks, AShortRunLowersTheLoss) {
  const LlavaConfig config = tiny();
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    Parameters parameters = initial_parameters(config, 1);
    const auto task = text_binding_task(config, *tokens_, {.dtype = dtype, .evaluation_batches = 2}, 5, 4, 8, 0.8, 0);
    const double before = task->loss(parameters, 1000).item<double>();
    const StagePlan plan{.name = "short",
                         .schedule = {.peak = 5e-3, .warm_up = 5, .steps = 80},
                         .optimizer = {},
                         .trained = {"decoder.", "lm_head."},
                         .evaluate_every = 80,
                         .save_every = 80,
                         .stop = {}};
    const fs::path out = folder_ / (dtype == at::kFloat ? "f32" : "bf16");
    fs::create_directories(out);
    run_stage(plan, *task, parameters, 5, out, {});
    EXPECT_LT(task->loss(parameters, 1000).item<double>(), 0.5 * before);
  }
}

}  // namespace
}  // namespace espalier
