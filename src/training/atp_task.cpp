// SPDX-License-Identifier: Apache-2.0
#include "training/atp_task.h"

#include <torch/types.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "espalier/error.h"
#include "model/decoder.h"
#include "pruning/atp_modules.h"
#include "runtime/encode.h"
#include "runtime/generate.h"
#include "training/atp_loss.h"

namespace espalier {

namespace {

constexpr std::array kBranches = {"redundancy", "spatial"};
constexpr int64_t kLongestAnswer = 32;  // tokens that evaluation compares

std::string module_name(size_t i, const char* part) {
  return "modules." + std::to_string(i) + "." + part;
}

at::Tensor int64_tensor(const std::vector<int64_t>& values, at::Device device) {
  return torch::tensor(values, torch::kLong).to(device);
}

std::vector<int32_t> ids_of(const LoadedModel& model, const std::string& text) {
  std::vector<int32_t> ids;
  for (const Tokenizer::Token& token : model.tokenizer.encode_with_ends(text)) ids.push_back(token.id);
  return ids;
}

// What the model has to say behind `prompt`: the template's own words for the answer, then an end token.
std::vector<int32_t> answer_behind(const LoadedModel& model, const std::string& prompt, const Chat& chat) {
  std::string text = model.chat_template->render_text(chat.messages, /*add_generation_prompt=*/false);
  const std::vector<int32_t> before = ids_of(model, prompt);
  const std::vector<int32_t>& ends = model.generation.eos_ids;
  std::vector<int32_t> all = ids_of(model, text);
  const auto ends_there = [&] {
    return std::any_of(all.begin() + static_cast<std::ptrdiff_t>(std::min(before.size(), all.size())), all.end(),
                       [&](int32_t id) { return std::ranges::find(ends, id) != ends.end(); });
  };
  if (!ends.empty() && !ends_there()) {  // the template leaves the end out
    text.erase(text.find_last_not_of(" \n") + 1);
    all = ids_of(model, text);
    all.push_back(ends[0]);
  }
  if (all.size() <= before.size() || !std::equal(before.begin(), before.end(), all.begin()))
    throw Error(model.folder.string() +
                ": its chat template writes a conversation otherwise once the last answer is there, so that no prompt "
                "can be trained to give it");
  return {all.begin() + static_cast<std::ptrdiff_t>(before.size()), all.end()};
}

// Position ids of the prompt, and the answer's behind them.
at::Tensor with_answer(const at::Tensor& position_id, int64_t next, int64_t count) {
  const at::Tensor behind = torch::arange(next, next + count, position_id.options());
  if (position_id.dim() == 1) return torch::cat({position_id, behind});
  return torch::cat({position_id, behind.expand({position_id.size(0), count})}, 1);
}

}  // namespace

AtpSequence atp_sequence(const LoadedModel& model, const Chat& chat) {
  const torch::NoGradGuard no_gradients;
  Chat asked = chat;
  asked.messages.pop_back();
  PackedPrompt packed = pack_prompt(model, asked, 0);
  AtpSequence result;
  result.answer_ids = answer_behind(model, packed.text, chat);
  const auto count = static_cast<int64_t>(result.answer_ids.size());
  const std::shared_ptr<const PromptLayout> layout = packed.layout;
  const int64_t next = packed.next_position, n = layout->num_tokens;
  if (next + count > model.config.decoder.max_positions)
    throw Error("train-atp: a conversation of " + std::to_string(n + count) + " tokens passes the model's limit of " +
                std::to_string(model.config.decoder.max_positions) + " positions");
  std::vector<int64_t> ids(packed.ids.begin(), packed.ids.end());
  ids.insert(ids.end(), result.answer_ids.begin(), result.answer_ids.end());
  Sequence sequence(model, std::move(packed), make_policy("none"));
  encode(model, sequence);
  result.ids = int64_tensor(ids, model.device);
  result.answer = n;
  result.text_rows = torch::cat({(layout->kind == static_cast<int64_t>(Segment::Kind::kText)).nonzero().squeeze(1),
                                 torch::arange(n, n + count, result.ids.options())});
  result.masked = {
      .prompt = layout,
      .embedding = torch::cat({sequence.stream.hidden, embed_tokens(model.weights.decoder, result.ids.slice(0, n))}),
      .position_id = with_answer(layout->position_id, next, count)};
  return result;
}

void add_atp_modules(Parameters& parameters, const AtpSettings& settings, const TrainAtpOptions& options,
                     at::Device device) {
  const int64_t hidden_size = options.hidden_size;
  const int64_t width = atp_head_width(settings.head_input, settings.grid);
  for (size_t i = 0; i < settings.layers.size(); ++i) {
    const auto add = [&](const char* part, const at::Tensor& value) {
      parameters.add(module_name(i, part), value.to(device));
    };
    const auto matrix = [&](const char* part, int64_t out, int64_t in, double deviation) {
      const std::string name = module_name(i, part);
      add(part, options.head == AtpHead::kConstant
                    ? torch::zeros({out, in})
                    : initial_linear(name, out, in, options.seed) * (deviation * std::sqrt(static_cast<double>(in))));
    };
    // Scores of a crop add up to at most 1: weights of deviation 1 bring z to the size of one score's share.
    matrix("mix.weight", hidden_size, width, 1.0);
    add("mix.bias", torch::zeros({hidden_size}));
    const double small = 1 / std::sqrt(static_cast<double>(hidden_size));
    for (const char* branch : kBranches) {
      const std::string name(branch);
      matrix((name + ".weight").c_str(), 1, hidden_size, small);
      const std::vector<double>& thetas = branch == kBranches[0] ? options.initial_theta_r : options.initial_theta_s;
      const double theta = thetas.size() == 1 ? thetas[0] : thetas[i];
      add((name + ".bias").c_str(), torch::full({1}, std::log(theta / (1 - theta))));
    }
  }
}

std::vector<std::string> trained_atp_names(const AtpSettings& settings, AtpHead head) {
  if (head == AtpHead::kModule) return {"modules."};
  std::vector<std::string> names;
  for (size_t i = 0; i < settings.layers.size(); ++i)
    for (const char* bias : {"redundancy.bias", "spatial.bias"}) names.push_back(module_name(i, bias));
  return names;
}

AtpWeights atp_weights_of(const Parameters& parameters, const AtpSettings& settings, const std::string& file) {
  AtpWeights weights{.file = file, .settings = settings, .modules = {}};
  for (size_t i = 0; i < settings.layers.size(); ++i) {
    const auto part = [&](const char* name) { return parameters.at(module_name(i, name)); };
    weights.modules.push_back({part("mix.weight"), part("mix.bias"), part("redundancy.weight"), part("redundancy.bias"),
                               part("spatial.weight"), part("spatial.bias")});
  }
  return weights;
}

AtpTask::AtpTask(const LoadedModel& model, const AtpExamples& examples, const AtpSettings& settings,
                 const TrainAtpOptions& options, std::string file)
    : model_(model), examples_(examples), settings_(settings), options_(options), file_(std::move(file)) {}

double AtpTask::temperature(int64_t step) const {
  const double first = options_.temperature, last = options_.final_temperature.value_or(first);
  const double way = static_cast<double>(std::min(step, options_.steps)) / static_cast<double>(options_.steps);
  return first + (last - first) * way;
}

DecoderWeights AtpTask::decoder_of(const Parameters& parameters) const {
  if (!options_.train_decoder) return model_.weights.decoder;
  return bind_decoder(model_.config.decoder,
                      [&](const std::string& name, at::IntArrayRef) { return parameters.at(name).to(model_.dtype); });
}

struct AtpTask::Parts {
  at::Tensor answers, depth, target;
  double soft_tokens = 0;  // sum over pictures
  int64_t pictures = 0;
};

AtpTask::Parts AtpTask::parts_of(const Parameters& parameters, const std::vector<AtpSequence>& batch,
                                 double temperature) const {
  const DecoderWeights decoder = decoder_of(parameters);
  const auto weights = std::make_shared<const AtpWeights>(atp_weights_of(parameters, settings_, file_));
  const PolicyPtr policy = make_atp({.weights = weights, .temperature = temperature});
  std::vector<MaskedSequence> sequences;
  std::vector<int64_t> rows, targets;
  int64_t begin = 0;
  for (const AtpSequence& s : batch) {
    sequences.push_back(s.masked);
    if (options_.train_decoder)
      sequences.back().embedding =
          s.masked.embedding.index_copy(0, s.text_rows, embed_tokens(decoder, s.ids.index_select(0, s.text_rows)));
    for (size_t i = 0; i < s.answer_ids.size(); ++i) {
      rows.push_back(begin + s.answer - 1 + static_cast<int64_t>(i));
      targets.push_back(s.answer_ids[i]);
    }
    begin += s.ids.size(0);
  }
  const MaskedPass pass = run_masked(model_.config.decoder, decoder, model_.facts, *policy, sequences);
  const at::Tensor scored = pass.hidden.index_select(0, int64_tensor(rows, model_.device));
  const at::Tensor said = logits(decoder, final_norm(model_.config.decoder, decoder, scored));
  const AtpCounts counts = soft_counts(sequences, pass.traces);
  const int layers = model_.config.decoder.num_layers;
  return {.answers = at::cross_entropy_loss(said.to(torch::kFloat), int64_tensor(targets, model_.device)),
          .depth = depth_loss(counts),
          .target = target_loss(counts, layers, options_.target_ratio, options_.normalise_target),
          .soft_tokens = mean_tokens(counts, layers).sum().item<double>(),
          .pictures = counts.sizes.size(0)};
}

at::Tensor AtpTask::loss(const Parameters& parameters, int64_t step) const {
  return loss_in_parts(parameters, step).total;
}

StepLoss AtpTask::loss_in_parts(const Parameters& parameters, int64_t step) const {
  std::vector<AtpSequence> batch;
  for (int64_t i = 0; i < options_.batch; ++i)
    batch.push_back(atp_sequence(model_, examples_.draw(step * options_.batch + i, /*is_evaluation=*/false)));
  const Parts parts = parts_of(parameters, batch, temperature(step));
  const at::Tensor total = parts.answers + options_.atp_weight * parts.depth + options_.target_weight * parts.target;
  return {total,
          {{"loss_answers", parts.answers.item<double>()},
           {"loss_atp", parts.depth.item<double>()},
           {"loss_target", parts.target.item<double>()},
           {"soft_tokens", parts.soft_tokens / static_cast<double>(parts.pictures)},
           {"temperature", temperature(step)}}};
}

namespace {

struct HardRun {
  int64_t correct = 0, count = 0;
  double tokens = 0;                            // mean over layers and pictures
  std::vector<std::vector<double>> thresholds;  // [module] sum of theta_r, sum of theta_s, how many
};

// Asks the runtime itself, one conversation at a time.
HardRun ask(const LoadedModel& model, const AtpExamples& examples, int64_t items, const PolicyPtr& policy) {
  HardRun run;
  double sum = 0;
  int64_t entries = 0;
  for (int64_t i = 0; i < items; ++i) {
    const Chat chat = examples.draw(i, /*is_evaluation=*/true);
    Chat asked = chat;
    asked.messages.pop_back();
    const std::vector<int32_t> wanted = answer_behind(model, model.chat_template->render_text(asked.messages), chat);
    Request request;
    request.prompt = asked;
    request.custom = policy;
    request.trace = true;
    request.options.greedy = true;
    request.options.max_new_tokens = std::min<int64_t>(std::ssize(wanted), kLongestAnswer);
    const Result result = generate(model, request);
    run.correct +=
        std::ranges::mismatch(result.token_ids, wanted).in1 == result.token_ids.end() && !result.token_ids.empty();
    ++run.count;
    for (const auto& layer : result.stats.image_tokens_per_layer)
      for (const int64_t tokens : layer) sum += static_cast<double>(tokens), ++entries;
    run.thresholds.resize(result.points.size(), std::vector<double>(3, 0.0));
    for (size_t p = 0; p < result.points.size(); ++p)
      for (size_t t = 0; t < result.points[p].notes.size(); ++t)
        for (const float value : result.points[p].notes[t].second) {
          run.thresholds[p][t] += value;
          if (t == 0) run.thresholds[p][2] += 1;
        }
  }
  run.tokens = entries > 0 ? sum / static_cast<double>(entries) : 0;
  return run;
}

}  // namespace

std::vector<Score> AtpTask::evaluate(const Parameters& parameters) const {
  return evaluate_after(parameters, options_.steps).scores;
}

Evaluation AtpTask::evaluate_after(const Parameters& parameters, int64_t step) const {
  const torch::NoGradGuard no_gradients;
  double soft = 0, answers = 0;
  int64_t pictures = 0;
  for (int64_t i = 0; i < options_.evaluation_items; ++i) {
    const Parts parts =
        parts_of(parameters, {atp_sequence(model_, examples_.draw(i, /*is_evaluation=*/true))}, temperature(step));
    soft += parts.soft_tokens;
    pictures += parts.pictures;
    answers += parts.answers.item<double>();
  }
  LoadedModel trained = model_;
  trained.weights.decoder = decoder_of(parameters);
  const auto weights = std::make_shared<const AtpWeights>(atp_weights_of(parameters, settings_, file_));
  const HardRun hard = ask(trained, examples_, options_.evaluation_items, make_atp({.weights = weights}));
  Evaluation evaluation{{{"answers", hard.correct, hard.count}},
                        {{"soft_tokens", soft / static_cast<double>(pictures)},
                         {"hard_tokens", hard.tokens},
                         {"loss_answers", answers / static_cast<double>(options_.evaluation_items)},
                         {"temperature", temperature(step)}}};
  for (size_t m = 0; m < hard.thresholds.size(); ++m) {
    const double count = std::max(1.0, hard.thresholds[m][2]);
    evaluation.measures.emplace_back("theta_r_" + std::to_string(m), hard.thresholds[m][0] / count);
    evaluation.measures.emplace_back("theta_s_" + std::to_string(m), hard.thresholds[m][1] / count);
  }
  return evaluation;
}

double AtpTask::unpruned_accuracy(const Parameters& parameters) const {
  const torch::NoGradGuard no_gradients;
  LoadedModel trained = model_;
  trained.weights.decoder = decoder_of(parameters);
  const HardRun run = ask(trained, examples_, options_.evaluation_items, make_policy("none"));
  return static_cast<double>(run.correct) / static_cast<double>(std::max<int64_t>(1, run.count));
}

}  // namespace espalier
