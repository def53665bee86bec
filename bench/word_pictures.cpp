// SPDX-License-Identifier: Apache-2.0
// A pretrained text decoder asked about pictures made of words, unpruned and under policies: the runs of
// bench/word_pictures.py, which writes model and prompts and reads what this prints.
//
//   word_pictures --model DIR --prompts FILE --out FILE --policy SPEC [--policy SPEC]... [--minutes M] [--threads N]
//
// A patch of a word picture has one lit byte, and which one is its code; the model's projector turns it into the
// embedding of a word. One line a prompt and policy: whether the right answer has the highest logit of the candidates,
// the divergence of the next token's distribution from that of the unpruned model, what is left of the query's picture.
// The unpruned run's line also says how well scores tell tokens that are asked about from the rest (area under the ROC
// curve).
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cosine_similarity.h>
#include <ATen/ops/einsum.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/softmax.h>

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <vector>

#include "espalier/engine.h"
#include "espalier/error.h"
#include "espalier/pruning.h"
#include "runtime/engine_impl.h"
#include "runtime/generate.h"
#include "runtime/image_cache.h"
#include "runtime/run_watcher.h"

namespace espalier {
namespace {

using Json = nlohmann::json;
using Tokens = std::vector<int64_t>;
using Clock = std::chrono::steady_clock;

double rounded(double x) {  // as it is written
  return std::round(x * 1e5) / 1e5;
}

constexpr int kPatch = 14, kGrid = 8, kPatches = kGrid * kGrid;

// Byte c of a patch, of 3 · 14 · 14 in the order channel, row, column, is 255 where its code is c; all others are 0.
std::shared_ptr<const Image> draw(const std::vector<int>& codes) {
  Image image{.width = kPatch * kGrid, .height = kPatch * kGrid, .rgb = {}};
  image.rgb.resize(size_t{3} * kPatch * kGrid * kPatch * kGrid, 0);
  for (int p = 0; p < kPatches; ++p) {
    const int code = codes.at(static_cast<size_t>(p)), channel = code / (kPatch * kPatch),
              place = code % (kPatch * kPatch);
    const int row = p / kGrid * kPatch + place / kPatch, column = p % kGrid * kPatch + place % kPatch;
    image.rgb[static_cast<size_t>((row * kPatch * kGrid + column) * 3 + channel)] = 255;
  }
  return std::make_shared<const Image>(std::move(image));
}

// A line of the prompts' file. `kinds` of a patch: 1 background, 2 an object, 3 the object that is asked about.
struct Question {
  Json line;
  RawPrompt prompt;
  std::vector<std::vector<int>> kinds;  // [images][patches]
  std::vector<int64_t> choices;         // token ids; the first is right
};

Question read_question(const std::string& text) {
  Question question;
  question.line = Json::parse(text);
  const Json& line = question.line;
  question.prompt.text = line.at("text");
  question.prompt.example_begins = line.at("example_begins").get<std::vector<size_t>>();
  for (const Json& codes : line.at("pictures"))
    question.prompt.images.push_back({.image = draw(codes.get<std::vector<int>>()), .pins = {}});
  question.kinds = line.at("kinds").get<std::vector<std::vector<int>>>();
  question.choices = line.at("choices").get<std::vector<int64_t>>();
  return question;
}

// ---- what an unpruned run shows ----

// Keeps the states that enter each layer and the head means of its attention.
class Anatomy final : public RunWatcher {
 public:
  explicit Anatomy(const DecoderConfig& config) : config_(config) {}

  bool watches_layers() const override { return true; }
  void on_embedded(const TokenLayout& layout, const at::Tensor&) override { prompt = layout.prompt; }
  void on_layer(const LayerView& view) override {
    hidden.push_back(view.hidden.to(at::kFloat).clone());
    const int64_t n = view.query.size(0), repeat = config_.num_heads / config_.num_kv_heads;
    const at::Tensor q = view.query.to(at::kFloat), k = view.key.to(at::kFloat).repeat_interleave(repeat, 1);
    const at::Tensor index = at::arange(n, at::kLong);
    const at::Tensor scores = at::einsum("qhd,khd->hqk", {q, k}) / std::sqrt(static_cast<double>(q.size(2)));
    attention.push_back(
        at::softmax(scores.masked_fill(index.unsqueeze(0) > index.unsqueeze(1), -INFINITY), -1).mean(0));
  }
  void on_logits(const at::Tensor& row) override { logits = row.to(at::kFloat).clone(); }

  std::shared_ptr<const PromptLayout> prompt;
  std::vector<at::Tensor> hidden, attention;  // [n, d], [n, n] of each layer
  at::Tensor logits;

 private:
  const DecoderConfig& config_;
};

// Chance that a random one of the wanted has a higher score than a random other one; halves for ties.
double area_under_curve(const at::Tensor& scores, const std::vector<int>& kinds) {
  double won = 0;
  int64_t pairs = 0;
  const at::Tensor s = scores.to(at::kDouble).contiguous();
  const double* score = s.const_data_ptr<double>();
  for (size_t a = 0; a < kinds.size(); ++a)
    for (size_t b = 0; kinds[a] == 3 && b < kinds.size(); ++b) {
      if (kinds[b] == 3) continue;
      won += score[a] > score[b] ? 1 : score[a] == score[b] ? 0.5 : 0;
      ++pairs;
    }
  return pairs == 0 ? 0.5 : rounded(won / static_cast<double>(pairs));
}

double rank_correlation(const at::Tensor& a, const at::Tensor& b) {
  const auto ranks = [](const at::Tensor& x) {
    const at::Tensor rank = x.argsort().argsort().to(at::kDouble);
    return rank - rank.mean();
  };
  const at::Tensor x = ranks(a), y = ranks(b);
  return rounded(((x * y).sum() / (x.norm() * y.norm())).item<double>());
}

at::Tensor cosines(const at::Tensor& rows, const at::Tensor& direction) {
  return at::cosine_similarity(rows, direction.unsqueeze(0), 1);
}

// Which tokens are what, in the unpruned sequence.
struct Roles {
  std::vector<Tokens> images, texts;  // [images]; text behind each, up to the next
  Tokens query, query_text, examples, example_texts;
  std::vector<int> query_kinds, example_kinds;

  Roles(const PromptLayout& prompt, const std::vector<std::vector<int>>& kinds)
      : images(prompt.images.size()), texts(prompt.images.size()) {
    int image = -1;
    for (const Segment& s : prompt.segments) {
      if (s.kind != Segment::Kind::kText) image = s.image;
      for (int64_t t = s.begin; t < s.end; ++t) {
        const bool is_text = s.kind == Segment::Kind::kText;
        const bool is_own = image >= 0 && prompt.example_of_image(image) == s.example;
        if (is_text && !is_own) continue;
        (is_text ? texts : images)[static_cast<size_t>(image)].push_back(t);
      }
    }
    for (size_t i = 0; i < images.size(); ++i) {
      const bool is_query = prompt.example_of_image(static_cast<int>(i)) == prompt.query_example;
      const auto append = [](auto& to, const auto& from) { to.insert(to.end(), from.begin(), from.end()); };
      append(is_query ? query : examples, images[i]);
      append(is_query ? query_text : example_texts, texts[i]);
      append(is_query ? query_kinds : example_kinds, kinds[i]);
    }
  }
};

at::Tensor rows(const at::Tensor& x, const Tokens& index) {
  return x.index_select(0, int64_tensor(index));
}

// Attention of each image's own text on the image's tokens, images in order.
at::Tensor own_text(const at::Tensor& attention, const Roles& roles, bool of_query) {
  std::vector<at::Tensor> parts;
  for (size_t i = 0; i < roles.images.size(); ++i)
    if ((roles.images[i] == roles.query) == of_query)
      parts.push_back(rows(attention, roles.texts[i]).mean(0).index_select(0, int64_tensor(roles.images[i])));
  return at::cat(parts);
}

// Areas under the curve of the scores that a cut before layer k may use, and two facts of geometry.
Json scores_at(const Anatomy& seen, const Roles& roles, int k) {
  const at::Tensor h = seen.hidden[static_cast<size_t>(k)];
  const at::Tensor before = seen.attention[static_cast<size_t>(k - 1)], ahead = seen.attention[static_cast<size_t>(k)];
  const at::Tensor last = before[-1], growth = (last - seen.attention[static_cast<size_t>(k - 2)][-1]).clamp_min(0);
  const at::Tensor query = rows(h, roles.query), typicality = cosines(query, query.mean(0));
  Json out;
  std::map<std::string, at::Tensor> q = {
      {"own mean (typicality)", typicality},
      {"attention, last row, layer before", last.index_select(0, int64_tensor(roles.query))},
      {"attention, last row, layer behind", ahead[-1].index_select(0, int64_tensor(roles.query))},
      {"attention, own text, layer before", own_text(before, roles, true)},
      {"attention, own text, layer behind", own_text(ahead, roles, true)},
      {"growth of the last row", growth.index_select(0, int64_tensor(roles.query))}};
  if (!roles.examples.empty()) {
    Tokens context = roles.examples;
    context.insert(context.end(), roles.example_texts.begin(), roles.example_texts.end());
    q["published: cosine with the examples"] = cosines(query, rows(h, context).mean(0));
    out["rank correlation of the published score with typicality"] =
        rank_correlation(q.at("published: cosine with the examples"), typicality);
    Tokens sample = roles.query;
    sample.insert(sample.end(), roles.query_text.begin(), roles.query_text.end());
    const at::Tensor g = growth.index_select(0, int64_tensor(roles.examples)),
                     c = cosines(rows(h, roles.examples), rows(h, sample).mean(0));
    out["spread of growth over spread of 0.6 cos"] = rounded((g.std() / (0.6 * c.std())).item<double>());
    for (const auto& [name, score] : std::map<std::string, at::Tensor>{
             {"published: growth + 0.6 cos", g + 0.6 * c},
             {"growth of the last row", g},
             {"attention, last row, layer before", last.index_select(0, int64_tensor(roles.examples))},
             {"attention, own text, layer before", own_text(before, roles, false)},
             {"attention, own text, layer behind", own_text(ahead, roles, false)}})
      out["examples"][name] = area_under_curve(score, roles.example_kinds);
  }
  for (const auto& [name, score] : q) out["query"][name] = area_under_curve(score, roles.query_kinds);
  return out;
}

// ---- what a policy leaves ----

double divergence(const at::Tensor& from, const at::Tensor& to) {  // nats
  const at::Tensor a = at::log_softmax(from.to(at::kDouble), 0), b = at::log_softmax(to.to(at::kDouble), 0);
  return rounded((a.exp() * (a - b)).sum().item<double>());
}

// Shares of the tokens of each kind that are kept, of some images.
std::array<double, 4> kept_shares(const Roles& roles, const std::vector<std::vector<int>>& kinds, const Tokens& kept,
                                  bool of_query) {
  std::array<double, 4> all{}, left{};
  for (size_t i = 0; i < roles.images.size(); ++i) {
    if ((roles.images[i] == roles.query) != of_query) continue;
    for (size_t p = 0; p < kinds[i].size(); ++p) {
      const auto kind = static_cast<size_t>(kinds[i][p]);
      all[kind] += 1;
      left[kind] += std::ranges::binary_search(kept, roles.images[i][p]) ? 1 : 0;
    }
  }
  for (size_t kind = 0; kind < 4; ++kind) left[kind] = rounded(left[kind] / std::max(1.0, all[kind]));
  return left;
}

double tokens_a_layer(const Stats& stats) {
  int64_t sum = 0;
  for (const auto& layer : stats.image_tokens_per_layer) sum += std::accumulate(layer.begin(), layer.end(), int64_t{0});
  return rounded(static_cast<double>(sum) / static_cast<double>(stats.image_tokens_per_layer.size()));
}

struct Study {
  const Engine& engine;
  std::vector<std::string> policies;  // "none" is the first
  std::vector<int> cuts;              // layers before which scores are taken
  std::ofstream& out;

  void ask(const Question& question) {
    const LoadedModel& model = engine.impl().model;
    Anatomy seen(model.config.decoder);
    std::vector<LogitsWatcher> logits(policies.size());
    std::vector<Request> requests;
    std::vector<RunExtras> extras;
    for (size_t i = 0; i < policies.size(); ++i) {
      Request& request = requests.emplace_back();
      request.prompt = question.prompt;
      request.policy = policies[i];
      request.options.greedy = true;
      request.options.max_new_tokens = 1;
      RunWatcher* watcher = i == 0 ? static_cast<RunWatcher*>(&seen) : &logits[i];
      extras.push_back({.watcher = watcher});
    }
    std::vector<Result> results;
    engine.impl().compute->run([&] { results = generate(model, requests, {}, extras, nullptr); });
    logits[0].logits = seen.logits;
    engine.impl().compute->run([&] {
      const Roles roles(*seen.prompt, question.kinds);
      for (size_t i = 0; i < policies.size(); ++i) write(question, seen, roles, i, results[i], logits[i].logits);
    });
    out.flush();
  }

 private:
  void write(const Question& question, const Anatomy& seen, const Roles& roles, size_t i, const Result& result,
             const at::Tensor& logits) {
    const at::Tensor of_choices = logits.index_select(0, int64_tensor(question.choices));
    Json line = {{"policy", policies[i]},
                 {"tokens", tokens_a_layer(result.stats)},
                 {"right", of_choices.argmax().item<int64_t>() == 0},
                 {"choices", question.choices.size()},
                 {"first", logits.argmax().item<int64_t>() == question.choices[0]},
                 {"kl", i == 0 ? 0.0 : divergence(seen.logits, logits)},
                 {"prefill_gflop", rounded(result.stats.prefill_flops / 1e9)},
                 {"probe_gflop", rounded(result.stats.probe_flops / 1e9)}};
    for (const char* name : {"id", "task", "shots", "background", "objects"}) line[name] = question.line.at(name);
    const auto query = kept_shares(roles, question.kinds, result.kept, true),
               examples = kept_shares(roles, question.kinds, result.kept, false);
    line["kept"] = {{"query", {query[3], query[2], query[1]}}, {"examples", {examples[3], examples[2], examples[1]}}};
    if (i == 0)
      for (const int k : cuts) line["scores"][std::to_string(k)] = scores_at(seen, roles, k);
    out << line.dump() << "\n";
  }
};

int run(int argc, char** argv) {
  CLI::App app("Asks a pretrained decoder about pictures made of words (bench/word_pictures.py)");
  std::string folder, prompts, out_file;
  std::vector<std::string> policies;
  std::vector<int> cuts = {2, 4, 6, 8, 10, 16, 20, 24};
  double minutes = 1e9;
  int threads = 1;
  app.add_option("--model", folder, "what `word_pictures.py model` wrote")->required();
  app.add_option("--prompts", prompts, "what `word_pictures.py prompts` wrote")->required();
  app.add_option("--out", out_file, "lines of JSON, written as they come")->required();
  app.add_option("--policy", policies, "may be given several times")->required();
  app.add_option("--cuts", cuts, "layers before which scores of the unpruned run are judged")->delimiter(',');
  app.add_option("--minutes", minutes, "begin no prompt after so many");
  app.add_option("--threads", threads);
  CLI11_PARSE(app, argc, argv);
  policies.insert(policies.begin(), "none");
  std::ifstream in(prompts);
  if (!in) throw Error(prompts + ": cannot be read");
  std::ofstream out(out_file);
  if (!out) throw Error(out_file + ": cannot be written");
  const Engine engine = Engine::load(folder, {.dtype = ComputeDtype::kFloat32, .threads = threads, .on_progress = {}});
  Study study{.engine = engine, .policies = policies, .cuts = cuts, .out = out};
  const Clock::time_point begin = Clock::now();
  int asked = 0;
  for (std::string line; std::getline(in, line);) {
    if (std::chrono::duration<double>(Clock::now() - begin).count() > 60 * minutes) break;
    study.ask(read_question(line));
    std::fprintf(stderr, "\r%d prompts", ++asked);
  }
  std::fprintf(stderr, "\n");
  return 0;
}

}  // namespace
}  // namespace espalier

int main(int argc, char** argv) {
  try {
    return espalier::run(argc, argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "word_pictures: %s\n", e.what());
    return 1;
  }
}
