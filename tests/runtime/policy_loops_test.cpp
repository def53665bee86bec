// SPDX-License-Identifier: Apache-2.0
// Each policy against its method written out in plain loops, float64, on what a run of each tiny checkpoint recorded.
// The loops know the recording and the layout, and share nothing with the policies. Recordings are of the pruned run,
// so every point is judged on what it saw.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "espalier/policies/table.h"
#include "layout/layout_json.h"
#include "recording/record.h"
#include "recording/replay.h"
#include "tests/runtime/arrays.h"
#include "tests/runtime/scratch_folder.h"
#include "tests/support/catp_loops.h"
#include "tests/support/hiprune_loops.h"
#include "tests/support/made_up_files.h"
#include "tests/support/prumerge_loops.h"
#include "tests/support/scope_loops.h"
#include "tests/support/tiny_llava.h"
#include "tests/support/vispruner_loops.h"

namespace espalier {
namespace {

using Json = nlohmann::json;
using test::ArraySignals;
using test::Matrix;
using Tokens = std::vector<int64_t>;
using Values = std::vector<double>;
using Score = std::function<double(int64_t)>;

// What a policy leaves behind one point.
struct Left {
  std::string site;
  int layer = -1;
  int64_t generated = 0;
  Tokens kept = {};
  std::vector<Tokens> heads = {};  // at the cache
  Tokens sources = {};             // of merged tokens
  Values vectors = {};
};

Tokens first_of(Tokens pool, int64_t number, const Score& score) {  // the best, ascending; ties to the lower index
  std::stable_sort(pool.begin(), pool.end(), [&](int64_t a, int64_t b) { return score(a) > score(b); });
  pool.resize(static_cast<size_t>(std::min<int64_t>(number, std::ssize(pool))));
  std::sort(pool.begin(), pool.end());
  return pool;
}

bool holds(const Tokens& tokens, int64_t t) {
  return std::find(tokens.begin(), tokens.end(), t) != tokens.end();
}

Tokens joined(const std::vector<Tokens>& lists) {
  Tokens all;
  for (const Tokens& list : lists) all.insert(all.end(), list.begin(), list.end());
  std::sort(all.begin(), all.end());
  return all;
}

int64_t nearest(double x) {  // halves to even
  return static_cast<int64_t>(std::nearbyint(x));
}
int64_t below(double x) {
  return static_cast<int64_t>(std::floor(x + 1e-9));
}

// A recording with its layout, as loops read it.
class Run {
 public:
  Run(const std::filesystem::path& signals, const std::filesystem::path& layout)
      : arrays_(test::read_arrays(signals)), recorded_(read_layout(layout)) {
    for (const Segment& s : prompt().segments)
      for (int64_t t = s.begin; t < s.end; ++t) {
        segment.push_back(s);
        const bool is_patch = s.kind == Segment::Kind::kPatches;
        row.push_back(is_patch ? s.origin.rows + (t - s.begin) / s.grid.cols : -1);
        col.push_back(is_patch ? s.origin.cols + (t - s.begin) % s.grid.cols : -1);
        patch.push_back(is_patch ? num_patches_++ : -1);
      }
  }

  const PromptLayout& prompt() const { return *recorded_.prompt; }
  std::shared_ptr<const PromptLayout> shared_prompt() const { return recorded_.prompt; }
  const ModelFacts& model() const { return recorded_.model; }
  int layers() const { return model().num_layers; }
  int64_t size() const { return prompt().num_tokens; }
  int images() const { return static_cast<int>(prompt().images.size()); }

  // Source indices for which `test` holds.
  Tokens tokens(const std::function<bool(int64_t)>& test) const {
    Tokens found;
    for (int64_t t = 0; t < size(); ++t)
      if (test(t)) found.push_back(t);
    return found;
  }
  bool is_text(int64_t t) const { return segment[t].kind == Segment::Kind::kText; }
  Tokens pool() const {  // row breaks compete
    return tokens([&](int64_t t) { return !is_text(t); });
  }
  Tokens pool(int image) const {
    return tokens([&](int64_t t) { return !is_text(t) && segment[t].image == image; });
  }
  Tokens text_behind(int64_t t) const {
    return tokens([&](int64_t x) { return x > t && is_text(x); });
  }
  // Patches of each crop that has some, image by image.
  std::vector<Tokens> crops() const {
    std::map<std::pair<int, int>, Tokens> found;
    for (int64_t t = 0; t < size(); ++t)
      if (patch[t] >= 0) found[{segment[t].image, segment[t].crop}].push_back(t);
    std::vector<Tokens> lists;
    for (auto& [key, list] : found) lists.push_back(list);
    return lists;
  }

  double attention(int layer, int64_t head, int64_t q, int64_t k) const {
    return at("attention.", layer, {head, q, k});
  }
  int64_t heads(int layer) const { return arrays_.at("attention." + std::to_string(layer)).size(0); }
  double mean_attention(int layer, int64_t q, int64_t k) const {
    double sum = 0;
    for (int64_t h = 0; h < heads(layer); ++h) sum += attention(layer, h, q, k) / static_cast<double>(heads(layer));
    return sum;
  }
  // Of generated token number `generated`, 1, 2, …, to column k: the prompt's, then those that were generated.
  double generated_attention(int layer, int64_t head, int64_t generated, int64_t k) const {
    return at("generated.attention.", layer, {head, generated - 1, k});
  }
  double mean_generated_attention(int layer, int64_t generated, int64_t k) const {
    double sum = 0;
    for (int64_t h = 0; h < heads(layer); ++h)
      sum += generated_attention(layer, h, generated, k) / static_cast<double>(heads(layer));
    return sum;
  }
  // Token 0 is the prompt's last.
  double newest_attention(int layer, int64_t head, int64_t generated, int64_t k) const {
    return generated == 0 ? attention(layer, head, size() - 1, k) : generated_attention(layer, head, generated, k);
  }
  double most_attention(int layer, int64_t q, int64_t k) const {
    double most = 0;
    for (int64_t h = 0; h < heads(layer); ++h) most = std::max(most, attention(layer, h, q, k));
    return most;
  }
  Values hidden(int layer, int64_t t) const { return row_of("hidden." + std::to_string(layer), t); }
  Values final_norm(int layer, int64_t t) const { return row_of("final_norm." + std::to_string(layer), t); }
  Values vision(const std::string& name, int64_t t) const { return row_of(name, patch[t]); }
  Values class_row(int64_t crop) const { return row_of("vision.cls_output", crop); }
  double class_attention(int layer, int64_t t) const {
    const std::string name = "vision.cls_attention." + std::to_string(layer);
    double sum = 0;
    for (int64_t h = 0; h < arrays_.at(name).size(0); ++h) sum += at("vision.cls_attention.", layer, {h, patch[t]});
    return sum / static_cast<double>(arrays_.at(name).size(0));
  }
  int64_t vision_heads() const { return arrays_.at("vision.cls_attention.0").size(0); }
  double key_length(int layer, int64_t t) const {  // L1, all heads
    const at::Tensor& key = arrays_.at("key." + std::to_string(layer));
    double sum = 0;
    for (int64_t g = 0; g < key.size(0); ++g)
      for (int64_t c = 0; c < key.size(2); ++c) sum += std::abs(at("key.", layer, {g, t, c}));
    return sum;
  }
  int64_t kv_heads() const { return arrays_.at("key.0").size(0); }

  // For loops that tests/support has: all of these arrays, by source index.
  ArraySignals signals() const {
    ArraySignals s;
    for (int layer = 0; layer <= layers(); ++layer) s.hidden[layer] = matrix("hidden." + std::to_string(layer), false);
    for (int layer = 0; layer < layers(); ++layer)
      for (int64_t h = 0; h < heads(layer); ++h) {
        Matrix& a = s.attention[layer].emplace_back(size(), size());
        for (int64_t q = 0; q < size(); ++q)
          for (int64_t k = 0; k < size(); ++k) a.at(q, k) = attention(layer, h, q, k);
      }
    return s;
  }
  ArraySignals vision_signals(int layer) const {
    ArraySignals s;
    s.vision_output = matrix("vision.output", true);
    s.vision_key[layer] = matrix("vision.key." + std::to_string(layer), true);
    s.joint_attention[layer] = Matrix(size(), 1);
    for (int64_t t = 0; t < size(); ++t)
      if (patch[t] >= 0) s.joint_attention[layer].at(t, 0) = at("vision.cls_attention_joint.", layer, {patch[t]});
    return s;
  }

  std::vector<Segment> segment;
  Tokens row, col, patch;  // patch: ordinal among patches, -1 where there is none

 private:
  double at(const std::string& family, int layer, const Tokens& index) const {
    const at::Tensor& t = arrays_.at(family + std::to_string(layer));
    int64_t flat = 0;
    for (size_t d = 0; d < index.size(); ++d) flat = flat * t.size(static_cast<int64_t>(d)) + index[d];
    return t.const_data_ptr<float>()[flat];
  }
  Values row_of(const std::string& name, int64_t i) const {
    const at::Tensor& t = arrays_.at(name);
    const float* begin = t.const_data_ptr<float>() + i * t.size(1);
    return {begin, begin + t.size(1)};
  }
  Matrix matrix(const std::string& name, bool of_patches) const {
    Matrix m(size(), arrays_.at(name).size(1));
    for (int64_t t = 0; t < size(); ++t) {
      if (of_patches && patch[t] < 0) continue;
      const Values values = row_of(name, of_patches ? patch[t] : t);
      for (int64_t c = 0; c < m.cols; ++c) m.at(t, c) = values[c];
    }
    return m;
  }

  test::Arrays arrays_;
  RecordedLayout recorded_;
  int64_t num_patches_ = 0;
};

double dot(const Values& a, const Values& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}
double cosine(const Values& a, const Values& b) {
  const double lengths = std::sqrt(dot(a, a)) * std::sqrt(dot(b, b));
  return lengths < 1e-12 ? 0.0 : dot(a, b) / lengths;
}
void add(Values& sum, const Values& x, double weight) {
  sum.resize(x.size());
  for (size_t c = 0; c < x.size(); ++c) sum[c] += weight * x[c];
}
Values mean_of(const Tokens& tokens, const std::function<Values(int64_t)>& row) {
  Values mean;
  for (const int64_t t : tokens) add(mean, row(t), 1.0 / static_cast<double>(tokens.size()));
  return mean;
}

// ---- the methods ----

using Method = std::vector<Left> (*)(const Run&);

std::vector<Left> nothing(const Run&) {
  return {};
}

// docs/specs/random.md, 2: the (stream + 1)-th output of SplitMix64(seed) seeds an image's own generator.
std::vector<Left> random(const Run& run) {
  const auto next = [](uint64_t& state) {
    uint64_t z = state += 0x9E3779B97F4A7C15;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return z ^ (z >> 31);
  };
  std::vector<Tokens> kept;
  uint64_t seeds = 3;
  for (int i = 0; i < run.images(); ++i) {
    uint64_t state = next(seeds);
    Tokens order = run.pool(i);
    const auto n = order.size();
    for (size_t j = 0; j < n; ++j) {
      const uint64_t m = n - j, reject = (0 - m) % m;
      uint64_t draw = next(state);
      while (draw < reject) draw = next(state);
      std::swap(order[j], order[j + draw % m]);
    }
    order.resize(static_cast<size_t>(nearest(static_cast<double>(n) / 4)));
    kept.push_back(order);
  }
  return {{.site = "projector_output", .kept = joined(kept)}};
}

std::vector<Left> uniform(const Run& run) {
  Tokens kept;
  for (int i = 0; i < run.images(); ++i) {
    const Tokens pool = run.pool(i);
    const auto n = static_cast<double>(pool.size());
    const int64_t k = nearest(n / 4);
    for (int64_t j = 0; j < k; ++j)
      kept.push_back(pool[static_cast<size_t>((static_cast<double>(j) + 0.5) * n / static_cast<double>(k))]);
  }
  return {{.site = "projector_output", .kept = kept}};
}

std::vector<Left> vtw(const Run&) {
  return {{.site = "before_layer", .layer = 5}};
}

std::vector<Left> fastv(const Run& run) {
  const Tokens pool = run.pool();
  const auto score = [&](int64_t t) { return run.mean_attention(2, run.size() - 1, t); };
  return {{.site = "before_layer", .layer = 3, .kept = first_of(pool, nearest(double(pool.size()) / 4), score)}};
}

std::vector<Left> attention_own_text(const Run& run) {
  std::vector<Tokens> kept;
  for (int i = 0; i < run.images(); ++i) {
    const Tokens pool = run.pool(i);
    const int example = run.segment[pool[0]].example;
    Tokens rows;  // between this picture and the next
    for (int64_t t = pool.back() + 1; t < run.size() && run.is_text(t); ++t)
      if (run.segment[t].example == example) rows.push_back(t);
    const auto score = [&](int64_t t) {
      double sum = 0;
      for (const int64_t r : rows) sum += run.mean_attention(1, r, t);
      return sum;
    };
    kept.push_back(first_of(pool, nearest(double(pool.size()) / 3), score));
  }
  return {{.site = "before_layer", .layer = 2, .kept = joined(kept)}};
}

std::vector<Left> divprune(const Run& run) {
  std::vector<Tokens> kept;
  for (int i = 0; i < run.images(); ++i) {
    const Tokens pool = run.pool(i);
    Tokens picks;
    while (std::ssize(picks) < nearest(double(pool.size()) / 3)) {
      int64_t best = -1;
      double farthest = -1;
      for (const int64_t t : pool) {
        if (holds(picks, t)) continue;
        double closest = 1e9;
        for (const int64_t other : picks.empty() ? pool : picks)
          if (other != t) closest = std::min(closest, 1 - cosine(run.hidden(0, t), run.hidden(0, other)));
        if (closest > farthest) farthest = closest, best = t;
      }
      picks.push_back(best);
    }
    kept.push_back(picks);
  }
  return {{.site = "projector_output", .kept = joined(kept)}};
}

// Each pick is the token that adds most volume, by Gram-Schmidt on the unit rows times their relevance.
std::vector<Left> cdpruner(const Run& run) {
  const Tokens query =
      run.tokens([&](int64_t t) { return run.is_text(t) && run.segment[t].example == run.prompt().query_example; });
  const Values question = mean_of(query, [&](int64_t t) { return run.hidden(0, t); });
  std::map<int, std::pair<double, double>> range;  // of the cosines of an image
  for (int64_t t = 0; t < run.size(); ++t) {
    if (run.patch[t] < 0) continue;
    const double c = cosine(run.hidden(0, t), question);
    auto& [low, high] = range.try_emplace(run.segment[t].image, c, c).first->second;
    low = std::min(low, c), high = std::max(high, c);
  }
  std::vector<Tokens> kept;
  for (const Tokens& crop : run.crops()) {
    std::map<int64_t, Values> rest;
    const auto [low, high] = range.at(run.segment[crop[0]].image);
    for (const int64_t t : crop) {
      const Values x = run.hidden(0, t);
      add(rest[t], x, (cosine(x, question) - low + 1e-6) / (high - low) / std::sqrt(dot(x, x)));
    }
    Tokens picks;
    while (std::ssize(picks) < nearest(double(crop.size()) / 4)) {
      int64_t best = -1;
      for (const int64_t t : crop)
        if (!holds(picks, t) && (best < 0 || dot(rest[t], rest[t]) > dot(rest[best], rest[best]))) best = t;
      picks.push_back(best);
      const Values axis = rest[best];
      for (const int64_t t : crop) add(rest[t], axis, -dot(rest[t], axis) / dot(axis, axis));
    }
    kept.push_back(picks);
  }
  return {{.site = "projector_output", .kept = joined(kept)}};
}

std::vector<Left> catp(const Run& run) {
  CatpOptions options;
  options.amount.keep_ratio = Fraction{2, 9};
  const ArraySignals signals = run.signals();
  test::CatpLoops loops(run.prompt(), signals, options, 2);
  auto after = loops.run_all();
  return {{.site = "projector_output", .kept = after.at(0)},
          {.site = "before_layer", .layer = 2, .kept = after.at(2)},
          {.site = "before_layer", .layer = 3, .kept = after.at(3)}};
}

std::vector<Left> catp_plus(const Run& run) {
  CatpPlusOptions options;
  options.amount.keep_ratio = Fraction{2, 9};
  const ArraySignals signals = run.signals();
  test::CatpLoops loops(run.prompt(), signals, options, 2, run.layers());
  auto after = loops.run_all();
  return {{.site = "projector_output", .kept = after.at(0)}, {.site = "before_layer", .layer = 2, .kept = after.at(2)}};
}

std::vector<Left> m3(const Run& run) {
  Left left{.site = "projector_output"};
  for (const Tokens& crop : run.crops()) {
    std::map<std::pair<int64_t, int64_t>, Tokens> cells;
    for (const int64_t t : crop) cells[{run.row[t] / 2, run.col[t] / 2}].push_back(t);
    for (const auto& [place, cell] : cells) {
      left.sources.push_back(cell[0]);
      const Values mean = mean_of(cell, [&](int64_t t) { return run.hidden(0, t); });
      left.vectors.insert(left.vectors.end(), mean.begin(), mean.end());
    }
  }
  return {left};
}

std::vector<Left> hired(const Run& run) {
  std::vector<Tokens> kept;
  const auto rank = [&](int64_t t) { return run.class_attention(run.model().vision_feature_layer, t); };
  for (int i = 0; i < run.images(); ++i) {
    std::map<int, Tokens> crops;
    for (const int64_t t : run.pool(i))
      if (run.patch[t] >= 0) crops[run.segment[t].crop].push_back(t);
    const ImageShape& shape = run.prompt().images[i];
    const int64_t n = shape.grid.rows * shape.grid.cols, total = below(double(std::ssize(crops) * n) / 4);
    if (crops.size() == 1) {
      kept.push_back(first_of(crops.begin()->second, total, rank));
      continue;
    }
    const int64_t full_view = total / 2;
    std::map<int, double> mass;
    double sum = 0;
    for (const int64_t t : crops.at(0)) {
      const double look = run.class_attention(0, t);
      const int64_t tile_row = run.row[t] * shape.tiling->rows / shape.grid.rows,
                    tile_col = run.col[t] * shape.tiling->cols / shape.grid.cols;
      mass[static_cast<int>(1 + tile_row * shape.tiling->cols + tile_col)] += look;
      sum += look;
    }
    for (const auto& [crop, tokens] : crops) {
      const int64_t budget = crop == 0 ? full_view : below(double(total - full_view) * mass[crop] / sum);
      kept.push_back(first_of(tokens, std::min(budget, n), rank));
    }
  }
  return {{.site = "vision_output", .kept = joined(kept)}};
}

std::vector<Left> pyramiddrop(const Run& run) {
  std::vector<Left> points;
  std::vector<Tokens> alive;
  for (int i = 0; i < run.images(); ++i) alive.push_back(run.pool(i));
  for (int stage = 1; stage <= 3; ++stage) {
    const int layer = 2 * stage;  // 8, 16 and 24 of 32
    for (int i = 0; i < run.images(); ++i)
      alive[i] = first_of(alive[i], std::max<int64_t>(1, below(double(run.pool(i).size()) / double(1 << stage))),
                          [&](int64_t t) { return run.mean_attention(layer, run.size() - 1, t); });
    points.push_back({.site = "before_layer", .layer = layer, .kept = joined(alive)});
  }
  return points;
}

std::vector<Left> dart(const Run& run) {
  const auto length = [&](int64_t t) { return run.key_length(1, t); };
  const auto longest = [&](Tokens tokens, int64_t number) {  // in the order they vote
    std::stable_sort(tokens.begin(), tokens.end(), [&](int64_t a, int64_t b) { return length(a) > length(b); });
    tokens.resize(static_cast<size_t>(std::min<int64_t>(number, std::ssize(tokens))));
    return tokens;
  };
  const Tokens words = longest(run.text_behind(run.pool().back()), 4);
  std::vector<Tokens> kept;
  for (int i = 0; i < run.images(); ++i) {
    Tokens candidates = run.pool(i);
    int64_t budget = std::max<int64_t>(1, nearest(double(candidates.size()) / 3));
    Tokens voters = longest(candidates, std::min<int64_t>(4, budget));
    Tokens own = voters;
    budget -= std::ssize(own);
    voters.insert(voters.end(), words.begin(), words.end());
    for (int64_t v = 0; v < std::ssize(voters); ++v) {
      std::erase_if(candidates, [&](int64_t t) { return holds(own, t); });
      const Values direction = run.final_norm(2, voters[v]);
      const int64_t share = budget / std::ssize(voters) + (v < budget % std::ssize(voters) ? 1 : 0);
      const Tokens taken =
          first_of(candidates, share, [&](int64_t t) { return -cosine(run.final_norm(2, t), direction); });
      own.insert(own.end(), taken.begin(), taken.end());
    }
    kept.push_back(own);
  }
  return {{.site = "before_layer", .layer = 2, .kept = joined(kept)}};
}

constexpr int64_t kGenerated = 6;  // tokens of the answer that are recorded

// Asks with these tokens; 0 is prefill.
std::vector<int64_t> asks(int64_t every) {
  std::vector<int64_t> list;
  for (int64_t t = 0; t <= kGenerated; t += every) list.push_back(t);
  return list;
}

// The same in every KV head.
Left at_cache(const Run& run, int layer, int64_t generated, const Tokens& kept) {
  return {.site = "cache",
          .layer = layer,
          .generated = generated,
          .heads = std::vector<Tokens>(static_cast<size_t>(run.kv_heads()), kept)};
}

// fastv:keep_ratio=1/4,layer=3,every=2
std::vector<Left> fastv_again(const Run& run) {
  std::vector<Left> points;
  const Tokens pool = run.pool();
  for (const int64_t generated : asks(2))
    for (int layer = 3; layer < run.layers(); ++layer)
      points.push_back(at_cache(run, layer, generated, first_of(pool, nearest(double(pool.size()) / 4), [&](int64_t t) {
                                  double sum = 0;
                                  for (int64_t h = 0; h < run.heads(2); ++h)
                                    sum += run.newest_attention(2, h, generated, t);
                                  return sum;
                                })));
  return points;
}

// persistence:keep_ratio=1/3,every=2: what is freed is in the recording as 0.
std::vector<Left> persistence(const Run& run) {
  std::vector<Left> points;
  const Tokens pool = run.pool();
  const int64_t amount = nearest(double(pool.size()) / 3);
  std::map<int, std::map<int64_t, double>> votes;  // [layer][token]
  std::map<int, Tokens> alive;
  for (const int64_t generated : asks(2))
    for (int layer = 2; layer < run.layers(); ++layer) {
      for (const int64_t t : pool)
        votes[layer][t] += generated == 0 ? run.mean_attention(layer, run.size() - 1, t)
                                          : (run.mean_generated_attention(layer, generated - 1, t) +
                                             run.mean_generated_attention(layer, generated, t)) /
                                                2;
      const int64_t number = std::max<int64_t>(0, amount - (generated + 1));
      alive[layer] = first_of(generated == 0 ? pool : alive[layer], number, [&](int64_t t) {
        double sum = 0;
        for (auto& [from, of_layer] : votes) sum += of_layer[t];
        return sum;
      });
      points.push_back(at_cache(run, layer, generated, alive[layer]));
    }
  return points;
}

// persistence:num_kept=5,every=3,decay=0.5,revival=yes
std::vector<Left> persistence_with_revival(const Run& run) {
  std::vector<Left> points;
  std::map<int, std::map<int64_t, double>> votes;
  for (const int64_t generated : asks(3))
    for (int layer = 2; layer < run.layers(); ++layer) {
      for (const int64_t t : run.pool()) {
        double vote = 0;
        if (generated == 0) vote = run.mean_attention(layer, run.size() - 1, t);
        for (int64_t g = generated - 2; generated > 0 && g <= generated; ++g)
          vote += run.mean_generated_attention(layer, g, t) / 3;
        votes[layer][t] = votes[layer][t] / 2 + vote;
      }
      points.push_back(at_cache(run, layer, generated, first_of(run.pool(), 5, [&](int64_t t) {
                                  double sum = 0;
                                  for (auto& [from, of_layer] : votes) sum += of_layer[t];
                                  return sum;
                                })));
    }
  return points;
}

// The anchor of 8 layers is 4 (17 of 36).
std::vector<Left> visionpulse(const Run& run) {
  std::vector<Left> points;
  const Tokens pool = run.pool();
  const auto m = double(pool.size());
  for (const int64_t generated : asks(1)) {
    double mass = 0;
    for (int64_t h = 0; h < run.heads(4); ++h) {
      double of_image = 0, of_all = 0;
      for (int64_t k = 0; k < run.size() + generated; ++k) {
        const double warm = std::pow(run.newest_attention(4, h, generated, k), 1 / 0.4);
        of_all += warm;
        if (holds(pool, k)) of_image += warm;
      }
      mass = std::max(mass, of_image / of_all);
    }
    const int64_t number = std::max<int64_t>(1, std::clamp(below(mass * m), below(m / 20), below(m / 10)));
    const Tokens kept = first_of(pool, number, [&](int64_t t) {
      double sum = 0;
      for (int64_t h = 0; h < run.heads(4); ++h) sum += std::log(run.newest_attention(4, h, generated, t));
      return sum;
    });
    for (int layer = 4; layer < run.layers(); ++layer) points.push_back(at_cache(run, layer, generated, kept));
  }
  return points;
}

std::vector<Left> plphp_at(const Run& run, const std::vector<int64_t>& with_tokens) {
  std::vector<Left> points;
  const Tokens pool = run.pool();
  for (const int64_t generated : with_tokens)
    for (int layer = 0; layer < run.layers(); ++layer) {
      double mass = 0;
      for (const int64_t t : pool)
        for (int64_t h = 0; h < run.heads(layer); ++h)
          mass += run.newest_attention(layer, h, generated, t) / double(run.heads(layer));
      const double rate = mass > 0.25 ? 0.7 : mass < 0.1 ? 0.1 : 0.4;
      const int64_t k = std::max<int64_t>(1, below(rate * double(pool.size()))),
                    group = run.heads(layer) / run.kv_heads();
      Left& left = points.emplace_back(Left{.site = "cache", .layer = layer, .generated = generated});
      for (int64_t g = 0; g < run.kv_heads(); ++g)
        left.heads.push_back(first_of(pool, k, [&](int64_t t) {
          double sum = 0;
          for (int64_t h = g * group; h < (g + 1) * group; ++h) sum += run.newest_attention(layer, h, generated, t);
          return sum;
        }));
    }
  return points;
}

std::vector<Left> plphp(const Run& run) {
  return plphp_at(run, {0});
}
std::vector<Left> plphp_again(const Run& run) {
  return plphp_at(run, asks(3));
}

// Without recycling: who rates is decided once, on the embeddings.
std::vector<Left> sparsevlm(const Run& run) {
  const Tokens pool = run.pool(), text = run.text_behind(pool.back());
  std::map<int64_t, double> rating;
  for (const int64_t v : pool) {
    std::map<int64_t, double> e;
    double sum = 0;
    for (const int64_t t : text) sum += e[t] = std::exp(dot(run.hidden(0, v), run.hidden(0, t)));
    for (const int64_t t : text) rating[t] += e[t] / sum / double(pool.size());
  }
  std::vector<Left> points;
  Tokens alive = pool;
  constexpr int kLayers[] = {1, 2, 4};  // 3, 7 and 16 of 32
  for (int stage = 0; stage < 3; ++stage) {
    const auto score = [&](int64_t v) {
      double sum = 0;
      for (const int64_t t : text)
        if (rating[t] > 1.0 / double(text.size())) sum += run.mean_attention(kLayers[stage] - 1, t, v);
      return sum;
    };
    alive = first_of(alive, nearest(double(pool.size()) / double(2 << stage)), score);
    points.push_back({.site = "before_layer", .layer = kLayers[stage], .kept = alive});
  }
  return points;
}

std::vector<Left> fitprune(const Run& run) {
  constexpr int kDeleted[] = {3, 0, 4, 2, 0, 1, 3, 2};  // of 16
  std::vector<Left> points;
  const Tokens pool = run.pool(), text = run.text_behind(pool.back());
  Tokens alive = pool;
  auto left = std::ssize(pool);
  for (int layer = 0; layer < 8; ++layer) {
    const int64_t leave = below(double(kDeleted[layer]) / 16 * double(pool.size()));
    if (leave == 0) continue;
    left -= leave;
    std::map<int64_t, double> score;
    for (const int64_t v : alive) {
      double of_text = 0, of_images = 0;
      for (const int64_t t : text) of_text += run.most_attention(layer, t, v);
      for (const int64_t t : alive) of_images += run.most_attention(layer, t, v);
      score[v] = of_text * of_images;
    }
    alive = first_of(alive, left, [&](int64_t v) { return score.at(v); });
    points.push_back({.site = "after_attention", .layer = layer, .kept = alive});
  }
  return points;
}

std::vector<Left> atp(const Run& run) {
  std::vector<Left> points;
  std::vector<Tokens> crops = run.crops();
  for (const int layer : {1, 4, 6}) {
    for (Tokens& crop : crops) {
      const Tokens text = run.text_behind(run.pool(run.segment[crop[0]].image).back());
      std::map<int64_t, double> received;
      for (const int64_t v : crop) {
        for (const int64_t q : crop) received[v] += run.mean_attention(layer - 1, q, v) / double(crop.size()) / 2;
        for (const int64_t q : text) received[v] += run.mean_attention(layer - 1, q, v) / double(text.size()) / 2;
      }
      const auto by_score = [](const auto& a, const auto& b) { return a.second < b.second; };
      const auto [low, high] = std::minmax_element(received.begin(), received.end(), by_score);
      const double least = low->second, range = high->second - least;
      Tokens stay;
      for (const int64_t v : crop) {
        double place = 0;
        for (const int64_t stride : {2, 4, 8})
          if (run.row[v] % stride == 0 && run.col[v] % stride == 0)
            place = std::max(place, 1 - 3.0 / double(stride * stride));
        if ((range < 1e-12 ? 0.5 : (received[v] - least) / range) > 0.3 || place > 0.9) stay.push_back(v);
      }
      crop = stay.empty() ? Tokens{high->first} : stay;
    }
    points.push_back({.site = "before_layer", .layer = layer, .kept = joined(crops)});
  }
  return points;
}

std::vector<Left> prumerge_of(const Run& run, int64_t budget, bool plus) {
  const int layer = run.model().vision_layers - 1;
  const ArraySignals signals = run.vision_signals(layer);
  Left left{.site = "vision_output"};
  for (const Tokens& crop : run.crops()) {
    const test::PrumergeLoops expected = test::prumerge_loops(signals, layer, crop, budget, plus, 32);
    left.sources.insert(left.sources.end(), expected.chosen.begin(), expected.chosen.end());
    left.sources.push_back(-1);
    left.vectors.insert(left.vectors.end(), expected.survivors.begin(), expected.survivors.end());
    left.vectors.insert(left.vectors.end(), expected.extra.begin(), expected.extra.end());
  }
  return {left};
}
std::vector<Left> prumerge(const Run& run) {
  return prumerge_of(run, 0, false);
}
std::vector<Left> prumerge_plus(const Run& run) {
  return prumerge_of(run, 5, true);
}

std::vector<Left> visionzip(const Run& run) {
  constexpr int64_t kBudget = 9, kContextual = 3;  // with the class row
  const int layer = run.model().vision_feature_layer;
  const std::string keys = "vision.key." + std::to_string(layer);
  const int64_t heads = run.vision_heads();
  const auto mean_key = [&](int64_t t) {
    const Values key = run.vision(keys, t);
    const auto width = std::ssize(key) / heads;
    Values mean(static_cast<size_t>(width), 0.0);
    for (int64_t c = 0; c < std::ssize(key); ++c) mean[c % width] += key[c] / double(heads);
    return mean;
  };
  Left left{.site = "vision_output"};
  std::vector<Tokens> all;
  int64_t class_row = 0;
  for (const Tokens& crop : run.crops()) {
    const int64_t number = std::min(kBudget, std::ssize(crop)) - kContextual - 1;
    const Tokens dominant = first_of(crop, number, [&](int64_t t) { return run.class_attention(layer, t); });
    all.push_back(dominant);
    Tokens rest = crop;
    std::erase_if(rest, [&](int64_t t) { return holds(dominant, t); });
    const int64_t contextual = std::min<int64_t>(kContextual, std::ssize(rest));
    left.sources.push_back(-1);
    const Values of_class = run.class_row(class_row++);
    left.vectors.insert(left.vectors.end(), of_class.begin(), of_class.end());
    for (const int64_t t : dominant) {
      const Values x = run.vision("vision.output", t);
      left.vectors.insert(left.vectors.end(), x.begin(), x.end());
      left.sources.push_back(t);
    }
    Tokens targets;
    for (int64_t c = 0; c < contextual; ++c)
      targets.push_back(rest[c * std::max<int64_t>(1, std::ssize(rest) / contextual)]);
    std::map<int64_t, Tokens> members;
    for (const int64_t t : rest) {
      if (holds(targets, t)) continue;
      int64_t best = targets[0];
      for (const int64_t target : targets)
        if (cosine(mean_key(t), mean_key(target)) > cosine(mean_key(t), mean_key(best))) best = target;
      members[best].push_back(t);
    }
    for (const int64_t target : targets) {
      Values x = run.vision("vision.output", target);
      if (!members[target].empty())
        add(x, mean_of(members[target], [&](int64_t t) { return run.vision("vision.output", t); }), 1);
      left.vectors.insert(left.vectors.end(), x.begin(), x.end());
      left.sources.push_back(target);
    }
  }
  left.kept = joined(all);
  return {left};
}

std::vector<Left> vispruner(const Run& run) {
  const int layer = run.model().vision_feature_layer;
  const Matrix output = run.vision_signals(layer).vision_output;
  std::vector<Tokens> kept;
  for (const Tokens& crop : run.crops())
    kept.push_back(test::vispruner_loops(
        output, [&](int64_t t) { return run.class_attention(layer, t); }, crop, nearest(double(crop.size()) / 2), 0.5,
        2));
  return {{.site = "vision_output", .kept = joined(kept)}};
}

std::vector<Left> hiprune(const Run& run) {
  const auto look = [&](int layer) { return [&run, layer](int64_t t) { return run.class_attention(layer, t); }; };
  const test::HipruneLooks looks{look(0), look(run.model().vision_feature_layer), [&](int64_t t) { return run.row[t]; },
                                 [&](int64_t t) { return run.col[t]; }};
  std::vector<Tokens> kept;
  for (const Tokens& crop : run.crops())
    kept.push_back(test::hiprune_loops(looks, crop, nearest(double(crop.size()) / 2), 0.6));
  return {{.site = "vision_output", .kept = joined(kept)}};
}

std::vector<Left> scope(const Run& run) {
  const int layer = run.model().vision_feature_layer;
  const Matrix output = run.vision_signals(layer).vision_output;
  std::vector<Tokens> kept;
  for (const Tokens& crop : run.crops())
    kept.push_back(test::scope_loops(
        output, [&](int64_t t) { return run.class_attention(layer, t); }, crop, nearest(double(crop.size()) / 3), 1));
  return {{.site = "vision_output", .kept = joined(kept)}};
}

// ---- the comparison ----

// By policy; the spec is the table's first example, where none is given.
const std::vector<std::pair<std::string, Method>> kMethods = {
    {"none", nothing},
    {"random", random},
    {"uniform", uniform},
    {"vtw", vtw},
    {"fastv", fastv},
    {"catp", catp},
    {"catp+", catp_plus},
    {"divprune", divprune},
    {"cdpruner", cdpruner},
    {"m3", m3},
    {"hired", hired},
    {"attention", attention_own_text},
    {"pyramiddrop", pyramiddrop},
    {"dart", dart},
    {"plphp", plphp},
    {"sparsevlm", sparsevlm},
    {"fitprune", fitprune},
    {"atp", atp},
    {"prumerge", prumerge},
    {"prumerge+", prumerge_plus},
    {"visionzip", visionzip},
    {"vispruner", vispruner},
    {"hiprune", hiprune},
    {"scope", scope},
    {"persistence", persistence},
    {"visionpulse", visionpulse},
    {"fastv:keep_ratio=1/4,layer=3,every=2", fastv_again},
    {"plphp:every=3", plphp_again},
    {"persistence:num_kept=5,every=3,decay=0.5,revival=yes", persistence_with_revival},
};

Chat prompt_of_three() {  // LLaVA-NeXT cuts padding from the second
  const auto picture = [](int width, int height, uint32_t seed) {
    return ImagePart{.image = test::picture(width, height, seed), .pins = {}};
  };
  const std::vector<Example> examples = {
      {.image = picture(112, 120, 5), .question = "What is the red cat doing?", .answer = "sitting"},
      {.image = picture(224, 48, 6), .question = "What is it?", .answer = "near the wall"}};
  return in_context_chat(examples, picture(112, 56, 7), "What colour is the kite?");
}

class PolicyLoops : public ::testing::TestWithParam<std::tuple<const char*, std::pair<std::string, Method>>> {};

TEST_P(PolicyLoops, KeepTheSameOfWhatWasRecorded) {
  const LoadedModel& model = test::tiny_model(std::get<0>(GetParam()));
  const auto& [written, method] = std::get<1>(GetParam());
  const std::string name = written.substr(0, written.find(':'));
  const test::ScratchFolder folder;
  const auto at = [&](const char* file) { return folder.path() / file; };
  folder.write(
      "recipe.json",
      R"({"method": "fitprune", "model": "made up", "layers": 8, "n_visual": 16, "delete": [3,0,4,2,0,1,3,2]})");
  std::string spec(std::ranges::find(policy_table(), name, &PolicyEntry::name)->examples[0].spec);
  if (written != name) spec = written;
  if (const size_t file = spec.find("recipe.json"); file != std::string::npos)
    spec.replace(file, 11, at("recipe.json").string());
  if (name != "fitprune")
    if (const auto reason = std::ranges::find(policy_table(), name, &PolicyEntry::name)->refusal(model.facts);
        !reason.empty())
      GTEST_SKIP() << reason;
  if (spec.find("every=") != std::string::npos && model.facts.sliding_window > 0)
    GTEST_SKIP() << "a cache with a sliding window cannot be pruned";
  const Request request{.prompt = prompt_of_three(), .policy = spec, .custom = {}, .options = {}, .trace = false};
  record(model, request,
         {.signals = at("s.safetensors"),
          .layout = at("l.json"),
          .only = {},
          .generated = model.facts.sliding_window > 0 ? 0 : kGenerated},
         {});
  replay(make_policy(spec), {.signals = at("s.safetensors"), .layout = at("l.json"), .out = at("out.json")});
  const Json points = Json::parse(test::read_file(at("out.json"))).at("points");
  const std::vector<Left> expected = method({at("s.safetensors"), at("l.json")});
  size_t next = 0;
  for (const Json& point : points) {
    SCOPED_TRACE(point.value("site", "") + " " + std::to_string(point.value("layer", -1)));
    if (name == "sparsevlm" && point.at("site") == "projector_output") continue;  // it only reads there
    ASSERT_LT(next, expected.size());
    const Left& left = expected[next++];
    EXPECT_EQ(point.at("site"), left.site);
    EXPECT_EQ(point.value("layer", -1), left.layer);
    EXPECT_EQ(point.value("generated", 0), left.generated);
    if (left.heads.empty())
      EXPECT_EQ(point.at("kept").get<Tokens>(), left.kept);
    else
      EXPECT_EQ(point.at("kept").get<std::vector<Tokens>>(), left.heads);
    EXPECT_EQ(point.value("merged_source", Tokens{}), left.sources);
    if (!point.contains("merged")) continue;
    const at::Tensor vectors = test::read_arrays(at("out.safetensors")).at(point.at("merged").get<std::string>());
    ASSERT_EQ(vectors.numel(), std::ssize(left.vectors));
    for (int64_t i = 0; i < vectors.numel(); ++i)
      ASSERT_NEAR(vectors.const_data_ptr<float>()[i], left.vectors[i], 1e-5 * (1 + std::abs(left.vectors[i]))) << i;
  }
  EXPECT_EQ(next, expected.size());
}

INSTANTIATE_TEST_SUITE_P(Table, PolicyLoops,
                         ::testing::Combine(::testing::Values("llava15", "llava_next_mistral", "llava_next_vicuna",
                                                              "qwen25vl"),
                                            ::testing::ValuesIn(kMethods)),
                         [](const auto& test) {
                           return std::string(std::get<0>(test.param)) + "_" +
                                  test::test_name(std::get<1>(test.param).first);
                         });

// resize changes pictures before anything is recorded, and keepmask judges nothing.
TEST(PolicyLoops, NoneOfTheTableIsMissing) {
  std::set<std::string> cases = {"resize", "keepmask"}, table;
  for (const auto& [name, method] : kMethods) cases.insert(name.substr(0, name.find(':')));
  for (const PolicyEntry& entry : policy_table()) table.insert(std::string(entry.name));
  EXPECT_EQ(cases, table);
}

}  // namespace
}  // namespace espalier
