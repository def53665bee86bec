// SPDX-License-Identifier: Apache-2.0
// A signal source for policy tests: full-length float64 arrays of one made-up run, from which any Signal is answered on
// any layout by plain loops. Rows and columns of survivors are read where they stand in the unpruned sequence; nothing
// is renormalised. Not a model.
#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "espalier/pruning.h"
#include "layout/layout_builder.h"
#include "layout/policy_walk.h"

namespace espalier::test {

struct Matrix {
  int64_t rows = 0, cols = 0;
  std::vector<double> values = {};  // row by row

  Matrix() = default;
  Matrix(int64_t r, int64_t c) : rows(r), cols(c), values(static_cast<size_t>(r * c)) {}
  Matrix(std::initializer_list<std::initializer_list<double>> lists)
      : rows(static_cast<int64_t>(lists.size())), cols(static_cast<int64_t>(lists.begin()->size())) {
    for (const auto& row : lists) values.insert(values.end(), row);
  }
  double& at(int64_t r, int64_t c) { return values[static_cast<size_t>(r * cols + c)]; }
  double at(int64_t r, int64_t c) const { return values[static_cast<size_t>(r * cols + c)]; }
};

inline std::vector<int64_t> to_vector(const at::Tensor& t) {
  const at::Tensor host = t.cpu().to(at::kLong).contiguous();
  return {host.const_data_ptr<int64_t>(), host.const_data_ptr<int64_t>() + host.numel()};
}

inline std::vector<double> to_doubles(const at::Tensor& t) {
  const at::Tensor host = t.cpu().to(at::kDouble).contiguous();
  return {host.const_data_ptr<double>(), host.const_data_ptr<double>() + host.numel()};
}

inline at::Tensor to_floats(const std::vector<double>& values, at::IntArrayRef sizes) {
  at::Tensor t = at::empty(sizes, at::kFloat);
  std::copy(values.begin(), values.end(), t.data_ptr<float>());
  return t;
}

inline double cosine(const Matrix& m, int64_t row, const std::vector<double>& v) {
  double dot = 0, a = 0, b = 0;
  for (int64_t c = 0; c < m.cols; ++c) {
    dot += m.at(row, c) * v[c];
    a += m.at(row, c) * m.at(row, c);
    b += v[c] * v[c];
  }
  return std::sqrt(a) < 1e-12 || std::sqrt(b) < 1e-12 ? 0.0 : dot / (std::sqrt(a) * std::sqrt(b));
}

inline std::vector<double> mean_of(const Matrix& m, const std::vector<int64_t>& rows) {
  std::vector<double> mean(m.cols, 0.0);
  for (const int64_t r : rows)
    for (int64_t c = 0; c < m.cols; ++c) mean[c] += m.at(r, c) / static_cast<double>(rows.size());
  return mean;
}

struct ArraySignals {
  std::map<int, Matrix> hidden;                  // by layer entered: [n, d]
  std::map<int, Matrix> final_norm;              // the same
  std::map<int, Matrix> class_attention;         // by vision layer: [n, heads], of the class row of each patch's crop
  std::map<int, Matrix> joint_attention;         // the same with all heads as one: [n, 1]
  std::map<int, Matrix> vision_key;              // by vision layer: [n, d_v], heads behind each other
  Matrix vision_output, vision_class;            // [n, d_v]; [crops, d_v]
  std::map<int, std::vector<Matrix>> attention;  // by layer: [heads] of [n, n]
  std::map<int, std::vector<Matrix>> generated;  // by layer: [heads] of [answer, n + answer]
  std::map<int, Matrix> key;                     // by layer: [n, KV heads · head size], heads behind each other
  int64_t kv_heads = 2;

  // A signal at a point, on the tokens of `layout`.
  at::Tensor answer(const Signal& signal, const ActPoint& point, const TokenLayout& layout) const {
    const std::vector<int64_t> source = to_vector(layout.source_index), columns = to_vector(layout.image_tokens);
    if (const auto* probe = std::get_if<AttentionProbe>(&signal);
        probe && probe->rows == AttentionProbe::Rows::kClass) {
      const bool is_joint = probe->heads == AttentionProbe::Heads::kJoint;
      return rows_of((is_joint ? joint_attention : class_attention).at(probe->layer), patches_of(layout)).mean(1);
    }
    if (const auto* probe = std::get_if<AttentionProbe>(&signal)) return answer_probe(*probe, source, columns);
    if (const auto* growth = std::get_if<AttentionGrowth>(&signal))
      return answer_growth(*growth, point, source, columns);
    const auto& tap = std::get<Tap>(signal);
    if (tap.what == Tap::What::kVisionOutput) return rows_of(vision_output, patches_of(layout));
    if (tap.what == Tap::What::kVisionKey) return rows_of(vision_key.at(tap.layer), patches_of(layout));
    if (tap.what == Tap::What::kVisionClass)
      return to_floats(vision_class.values, {vision_class.rows, vision_class.cols}).slice(0, class_rows_before(layout));
    const bool is_key = tap.what == Tap::What::kKey;
    if (!is_key && tap.what != Tap::What::kHidden && tap.what != Tap::What::kFinalNorm)
      throw std::logic_error("no such array");
    const int layer = is_key ? tap.layer : point.site == Site::kProjectorOutput ? 0 : point.layer;
    const Matrix& m = (is_key ? key : tap.what == Tap::What::kHidden ? hidden : final_norm).at(layer);
    std::vector<double> values;
    for (const int64_t s : source)
      for (int64_t c = 0; c < m.cols; ++c) values.push_back(m.at(s, c));
    const at::Tensor rows = to_floats(values, {static_cast<int64_t>(source.size()), m.cols});
    return is_key ? rows.view({rows.size(0), kv_heads, -1}) : rows;
  }

 private:
  // Class rows of the pictures of a cached prefix.
  static int64_t class_rows_before(const TokenLayout& layout) {
    int64_t rows = 0;
    int image = -1;
    for (const Segment& s : layout.prompt->segments) {
      if (s.begin >= layout.begin || s.image <= image) continue;
      image = s.image;
      const auto& tiling = layout.prompt->images[static_cast<size_t>(image)].tiling;
      rows += 1 + (tiling ? tiling->rows * tiling->cols : 0);
    }
    return rows;
  }

  // Source indices of the patches, in the order of the sequence.
  static std::vector<int64_t> patches_of(const TokenLayout& layout) {
    const std::vector<int64_t> source = to_vector(layout.source_index), kind = to_vector(layout.kind);
    std::vector<int64_t> patches;
    for (size_t i = 0; i < source.size(); ++i)
      if (kind[i] == static_cast<int64_t>(Segment::Kind::kPatches)) patches.push_back(source[i]);
    return patches;
  }
  static at::Tensor rows_of(const Matrix& m, const std::vector<int64_t>& rows) {
    std::vector<double> values;
    for (const int64_t r : rows)
      for (int64_t c = 0; c < m.cols; ++c) values.push_back(m.at(r, c));
    return to_floats(values, {static_cast<int64_t>(rows.size()), m.cols});
  }

  at::Tensor answer_probe(const AttentionProbe& probe, const std::vector<int64_t>& source,
                          const std::vector<int64_t>& image_tokens) const {
    const std::vector<Matrix>& heads = attention.at(probe.layer);
    std::vector<std::pair<std::vector<int64_t>, std::vector<int64_t>>> groups;
    if (probe.rows == AttentionProbe::Rows::kLastToken || probe.rows == AttentionProbe::Rows::kGenerated) {
      groups = {{{static_cast<int64_t>(source.size()) - 1}, image_tokens}};
      for (size_t i = 0; probe.with_others && i < source.size(); ++i)
        if (std::ranges::count(image_tokens, static_cast<int64_t>(i)) == 0)
          groups[0].second.push_back(static_cast<int64_t>(i));
    }
    for (const auto& group : probe.groups)
      groups.emplace_back(to_vector(group.rows), group.columns.defined() ? to_vector(group.columns) : image_tokens);
    if (!probe.reduce_rows) return rows_apart(probe, heads, groups.at(0).first, groups.at(0).second, source);
    const bool is_each = probe.heads == AttentionProbe::Heads::kEach;
    std::vector<std::vector<Matrix>> reductions = {heads};  // heads that are reduced together
    if (is_each) {
      reductions.clear();
      for (const Matrix& a : heads) reductions.push_back({a});
    }
    std::vector<double> out;
    for (const std::vector<Matrix>& together : reductions)
      for (const auto& [rows, columns] : groups)
        for (const int64_t c : columns) {
          double sum = 0;
          for (const int64_t r : rows) {
            double all = 0, largest = 0;
            for (const Matrix& a : together) {
              all += a.at(source[r], source[c]);
              largest = std::max(largest, a.at(source[r], source[c]));
            }
            sum += probe.heads == AttentionProbe::Heads::kMax ? largest : all / static_cast<double>(together.size());
          }
          out.push_back(sum / static_cast<double>(rows.size()));
        }
    const auto total = static_cast<int64_t>(out.size()), h = static_cast<int64_t>(reductions.size());
    return is_each ? to_floats(out, {h, total / h}) : to_floats(out, {total});
  }

  // Means over heads, one row per query: [r, c].
  static at::Tensor rows_apart(const AttentionProbe& probe, const std::vector<Matrix>& heads,
                               const std::vector<int64_t>& rows, const std::vector<int64_t>& columns,
                               const std::vector<int64_t>& source) {
    if (probe.heads != AttentionProbe::Heads::kMean) throw std::logic_error("not needed so far");
    std::vector<double> out;
    for (const int64_t r : rows)
      for (const int64_t c : columns) {
        double sum = 0;
        for (const Matrix& a : heads) sum += a.at(source[r], source[c]) / static_cast<double>(heads.size());
        out.push_back(sum);
      }
    return to_floats(out, {static_cast<int64_t>(rows.size()), static_cast<int64_t>(columns.size())});
  }

  at::Tensor answer_growth(const AttentionGrowth& growth, const ActPoint& point, const std::vector<int64_t>& source,
                           const std::vector<int64_t>& columns) const {
    const auto &lower = attention.at(growth.lower), &upper = attention.at(growth.upper);
    std::vector<double> direction;
    if (growth.pool.defined()) {
      std::vector<int64_t> pool;
      for (const int64_t i : to_vector(growth.pool)) pool.push_back(source[i]);
      direction = mean_of(hidden.at(point.layer), pool);
    }
    std::vector<double> out;
    for (const int64_t c : columns) {
      double sum = 0;
      for (size_t h = 0; h < upper.size(); ++h) {
        const double difference = upper[h].at(source.back(), source[c]) - lower[h].at(source.back(), source[c]);
        sum += growth.relu_per_head ? std::max(0.0, difference) : difference;
      }
      double value = std::max(0.0, sum / static_cast<double>(upper.size()));
      if (growth.pool.defined()) value += growth.cosine_weight * cosine(hidden.at(point.layer), source[c], direction);
      out.push_back(value);
    }
    return to_floats(out, {static_cast<int64_t>(out.size())});
  }
};

// What a probe of a step that is asked again reads of `arrays` with a generated token, in plain loops.
inline at::Tensor answer_again(const ArraySignals& arrays, const AttentionProbe& probe, const StepAgain& again,
                               int64_t token) {
  const std::vector<Matrix>& heads = arrays.generated.at(probe.layer);
  const std::vector<int64_t> source = to_vector(again.layout.source_index),
                             image = to_vector(again.layout.image_tokens);
  const int64_t n = heads[0].cols - heads[0].rows, m = std::ssize(image), h = std::ssize(heads);
  std::vector<int64_t> columns;
  for (const int64_t t : image) columns.push_back(source[t]);
  for (size_t i = 0; probe.with_others && i < source.size(); ++i)
    if (std::ranges::count(image, static_cast<int64_t>(i)) == 0) columns.push_back(source[i]);
  for (int64_t t = 0; probe.with_others && t < token; ++t) columns.push_back(n + t);
  const int64_t first = probe.rows == AttentionProbe::Rows::kGenerated ? token - again.step().every + 1 : token;
  const auto is_freed = [&](int64_t head, int64_t column) {
    if (column >= m || !again.left.mask.defined()) return false;
    return !again.left.mask[head / (h / again.left.mask.size(0))][column].item<bool>();
  };
  const bool is_each = probe.heads == AttentionProbe::Heads::kEach;
  std::vector<double> out(columns.size() * static_cast<size_t>(is_each ? h : 1));
  for (int64_t c = 0; c < std::ssize(columns); ++c)
    for (int64_t row = first; row <= token; ++row)
      for (int64_t head = 0; head < h; ++head) {
        const double p = is_freed(head, c) ? 0 : heads[head].at(row - 1, columns[c]);
        out[static_cast<size_t>(is_each ? head * std::ssize(columns) + c : c)] +=
            p / static_cast<double>((token - first + 1) * (is_each ? 1 : h));
      }
  const auto width = static_cast<int64_t>(columns.size());
  return is_each ? to_floats(out, {h, width}) : to_floats(out, {width});
}

// Softmax of causal logits, row by row: the attention of a made-up head.
inline Matrix causal_softmax(int64_t n, const std::function<double(int64_t, int64_t)>& logit) {
  Matrix a(n, n);
  for (int64_t q = 0; q < n; ++q) {
    double sum = 0;
    for (int64_t k = 0; k <= q; ++k) sum += a.at(q, k) = std::exp(logit(q, k));
    for (int64_t k = 0; k <= q; ++k) a.at(q, k) /= sum;
  }
  return a;
}

inline Matrix random_matrix(int64_t rows, int64_t cols, uint64_t seed) {
  std::mt19937_64 generator(seed);
  std::normal_distribution<double> normal;
  Matrix m(rows, cols);
  for (double& v : m.values) v = normal(generator);
  return m;
}

// States and attention of every layer, without near-ties.
inline ArraySignals random_signals(int64_t n, int num_layers, int heads, int64_t width, uint64_t seed) {
  ArraySignals signals;
  signals.vision_output = random_matrix(n, width, seed + 7001);
  signals.vision_class = random_matrix(32, width, seed + 7002);  // as many crops as a test may have
  for (int layer = 0; layer < 4; ++layer) {
    signals.vision_key[layer] = random_matrix(n, width, seed + 7010 + static_cast<uint64_t>(layer));
    signals.class_attention[layer] = random_matrix(n, 2, seed + 7020 + static_cast<uint64_t>(layer));
    signals.joint_attention[layer] = random_matrix(n, 1, seed + 7030 + static_cast<uint64_t>(layer));
    for (auto* attention : {&signals.class_attention[layer], &signals.joint_attention[layer]})
      for (double& a : attention->values) a = std::exp(a) / static_cast<double>(n);
  }
  for (int layer = 0; layer <= num_layers; ++layer) {
    signals.hidden[layer] = random_matrix(n, width, seed + static_cast<uint64_t>(100 * layer));
    signals.final_norm[layer] = random_matrix(n, width, seed + static_cast<uint64_t>(100 * layer + 1));
    signals.key[layer] = random_matrix(n, width, seed + static_cast<uint64_t>(100 * layer + 99));
    for (int h = 0; h < heads; ++h) {
      const Matrix logits = random_matrix(n, n, seed + static_cast<uint64_t>(100 * layer + 2 + h));
      signals.attention[layer].push_back(causal_softmax(n, [&](int64_t q, int64_t k) { return logits.at(q, k); }));
    }
  }
  return signals;
}

// ---- layouts ----

using ::espalier::LayoutBuilder;

inline ModelFacts facts(int num_layers) {
  ModelFacts model;
  model.num_layers = num_layers;
  model.hidden_size = 8;
  model.num_heads = model.num_kv_heads = 2;
  model.head_dim = 4;
  model.vision_layers = 4;
  model.vision_feature_layer = 2;
  model.vision_heads = 2;
  model.vision_hidden_size = 6;
  model.has_class_token = true;
  return model;
}

// ---- running a policy on arrays ----

// All points of the policy, one after the other.
inline std::vector<PointTrace> run(const PolicyPtr& policy, const ModelFacts& model,
                                   std::shared_ptr<const PromptLayout> prompt, const ArraySignals& arrays) {
  PolicyWalk walk(policy, model, std::move(prompt));
  while (const ActPoint* point = walk.next()) {
    std::vector<at::Tensor> signals;
    for (const Signal& s : walk.needs()) signals.push_back(arrays.answer(s, *point, walk.layout()));
    walk.act(signals);
  }
  const int64_t answer = arrays.generated.empty() ? 0 : arrays.generated.begin()->second.at(0).rows;
  for (int64_t token = 1; token <= answer; ++token)
    for (size_t i = 0; i < walk.again().size(); ++i) {
      const StepAgain& again = walk.again()[i];
      if (!again.is_due(token)) continue;
      std::vector<at::Tensor> signals;
      for (const Signal& s : again.needs)
        signals.push_back(answer_again(arrays, std::get<AttentionProbe>(s), again, token));
      walk.act_again(i, token, signals);
    }
  return walk.trace(true);
}

// Where the policy acts for a request.
inline std::vector<ActPoint> points_of(const PolicyPtr& policy, const ModelFacts& model, const PromptLayout& prompt) {
  return PolicyWalk(policy, model, std::make_shared<const PromptLayout>(prompt)).points();
}

inline std::vector<int64_t> image_tokens_of(const PromptLayout& prompt, bool with_row_breaks = false) {
  std::vector<int64_t> tokens;
  for (const Segment& s : prompt.segments)
    if (s.kind == Segment::Kind::kPatches || (with_row_breaks && s.kind == Segment::Kind::kRowBreak))
      for (int64_t t = s.begin; t < s.end; ++t) tokens.push_back(t);
  return tokens;
}

// What is left at the end: source indices of image tokens, ascending.
inline std::vector<int64_t> kept_at_end(const PolicyPtr& policy, const ModelFacts& model,
                                        const std::shared_ptr<const PromptLayout>& prompt, const ArraySignals& arrays) {
  const auto points = run(policy, model, prompt, arrays);
  return points.empty() ? image_tokens_of(*prompt, policy->row_breaks_compete()) : points.back().kept;
}

}  // namespace espalier::test
