// SPDX-License-Identifier: Apache-2.0
// The pseudocode of docs/specs/catp.md, section 9, and the other choices of docs/specs/catp_plus.md, in float64 loops
// over a made-up or a recorded run.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <numeric>
#include <utility>
#include <vector>

#include "espalier/policies/catp.h"
#include "tests/support/array_signals.h"

namespace espalier::test {

struct CatpLoops {
  using Tokens = std::vector<int64_t>;

  const PromptLayout& prompt;
  const ArraySignals& signals;
  CatpOptions options;
  int k, num_layers;
  std::vector<Segment::Kind> kind;
  std::vector<int> image, crop, example;
  std::vector<bool> alive;
  bool has_near_tie = false;  // two gains of stage 1 closer than float32 tells apart

  CatpLoops(const PromptLayout& p, const ArraySignals& s, CatpOptions o, int k_, int num_layers_ = 8)
      : prompt(p), signals(s), options(std::move(o)), k(k_), num_layers(num_layers_) {
    for (const Segment& segment : p.segments)
      for (int64_t t = segment.begin; t < segment.end; ++t) {
        kind.push_back(segment.kind);
        image.push_back(segment.image);
        crop.push_back(segment.crop);
        example.push_back(segment.example);
      }
    alive.assign(kind.size(), true);
  }

  double keep_ratio() const {
    return static_cast<double>(options.amount.keep_ratio->num) / static_cast<double>(options.amount.keep_ratio->den);
  }
  double stage1_share() const {
    return static_cast<double>(options.stage1_share.num) / static_cast<double>(options.stage1_share.den);
  }

  bool is_mean() const { return options.budget == CatpOptions::BudgetOf::kMean && stage1_share() < 1; }
  // Of the unpruned tokens: what stage 1 leaves, and what stays from layer `cut` on.
  double share_before() const {
    return is_mean() ? std::min(1.0, keep_ratio() * 10 / 7) : 1 - (1 - keep_ratio()) * stage1_share();
  }
  double share_behind(int cut) const {
    return is_mean() ? (keep_ratio() * num_layers - cut * share_before()) / (num_layers - cut) : keep_ratio();
  }

  int64_t count(double ratio, int64_t size) const {
    double x = ratio * static_cast<double>(size);
    x = options.rounding == Rounding::kFloor  ? std::floor(x + 1e-9)
        : options.rounding == Rounding::kCeil ? std::ceil(x - 1e-9)
                                              : std::nearbyint(x);
    return std::clamp<int64_t>(static_cast<int64_t>(x), std::min<int64_t>(1, size), size);
  }

  Tokens where(const std::function<bool(int64_t)>& test) const {
    Tokens tokens;
    for (int64_t t = 0; t < static_cast<int64_t>(kind.size()); ++t)
      if (alive[t] && test(t)) tokens.push_back(t);
    return tokens;
  }
  bool competes(int64_t t) const {
    return kind[t] == Segment::Kind::kPatches || (options.row_breaks_compete && kind[t] == Segment::Kind::kRowBreak);
  }
  bool in_context(int64_t t) const { return example[t] >= 0 && example[t] != prompt.query_example; }
  bool in_query(int64_t t) const { return example[t] == prompt.query_example; }
  int64_t unpruned(const std::function<bool(int64_t)>& test) const {
    int64_t n = 0;
    for (int64_t t = 0; t < static_cast<int64_t>(kind.size()); ++t) n += competes(t) && test(t);
    return n;
  }

  // Drops what is not in `kept` of the tokens that competed, and row breaks that lost their row.
  void drop(const Tokens& competed, const Tokens& kept) {
    for (const int64_t t : competed) alive[t] = std::find(kept.begin(), kept.end(), t) != kept.end();
    if (options.row_breaks_compete) return;
    for (size_t t = 0; t < kind.size(); ++t) {
      if (kind[t] != Segment::Kind::kRowBreak) continue;
      bool has_patch = false;
      for (size_t p = t; p-- > 0 && kind[p] == Segment::Kind::kPatches && crop[p] > 0;) has_patch |= alive[p];
      alive[t] = has_patch;
    }
  }

  static Tokens best(std::vector<std::pair<double, int64_t>> scored, int64_t number) {
    std::stable_sort(scored.begin(), scored.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
    Tokens kept;
    for (int64_t i = 0; i < std::min<int64_t>(number, static_cast<int64_t>(scored.size())); ++i)
      kept.push_back(scored[i].second);
    std::sort(kept.begin(), kept.end());
    return kept;
  }

  void rescale(std::vector<double>& cosines) const {
    const auto [low, high] = std::minmax_element(cosines.begin(), cosines.end());
    const double l = *low, range = *high - *low;
    for (double& c : cosines) {
      if (options.similarity == ops::Similarity::kAffine) c = (1 + c) / 2;
      if (options.similarity == ops::Similarity::kClamp) c = std::max(c, 0.0);
      if (options.similarity == ops::Similarity::kMinmax) c = range < 1e-12 ? 0.5 : (c - l) / range;
    }
  }

  Tokens text_of(int i) const {
    Tokens text;
    int last = -1;
    for (int64_t t = 0; t < static_cast<int64_t>(kind.size()); ++t) {
      if (image[t] >= 0) last = image[t];
      if (kind[t] == Segment::Kind::kText && last == i && example[t] == prompt.example_of_image(i)) text.push_back(t);
    }
    return text;
  }

  // Each pick is the token that adds most volume, by Gram-Schmidt on unit rows times their relevance; where none adds
  // anything, by relevance.
  Tokens volume(const Matrix& h, const Tokens& tokens, const std::vector<double>& relevance, int64_t number) {
    const size_t n = tokens.size();
    std::vector<std::vector<double>> rest(n);
    std::vector<double> gain(n);
    const auto dot = [](const std::vector<double>& a, const std::vector<double>& b) {
      return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
    };
    double largest_entry = 0;
    for (size_t j = 0; j < n; ++j) {
      rest[j].assign(h.values.begin() + tokens[j] * h.cols, h.values.begin() + (tokens[j] + 1) * h.cols);
      const double length = std::sqrt(dot(rest[j], rest[j]));
      for (double& v : rest[j]) v *= length < 1e-12 ? 0 : relevance[j] / length;
      gain[j] = length < 1e-12 ? 0 : relevance[j] * relevance[j];
      largest_entry = std::max(largest_entry, gain[j]);
    }
    std::vector<bool> taken(n, false);
    Tokens kept;
    while (static_cast<int64_t>(kept.size()) < std::min<int64_t>(number, static_cast<int64_t>(n))) {
      size_t best = n;
      double most = -1, second = -1;
      for (size_t j = 0; j < n; ++j) {
        if (taken[j]) continue;
        second = std::max(second, std::min(gain[j], most));
        if (gain[j] > most) most = gain[j], best = j;
      }
      if (most <= 1e-6 * largest_entry) {
        best = n;
        for (size_t j = 0; j < n; ++j)
          if (!taken[j] && (best == n || relevance[j] > relevance[best])) best = j;
      } else {
        has_near_tie |= most > second && most - second < 1e-5 * largest_entry;
        const std::vector<double> axis = rest[best];
        for (auto& row : rest) {
          const double along = dot(row, axis) / dot(axis, axis);
          for (size_t c = 0; c < row.size(); ++c) row[c] -= along * axis[c];
        }
        for (size_t j = 0; j < n; ++j) gain[j] = dot(rest[j], rest[j]);
      }
      taken[best] = true;
      kept.push_back(tokens[best]);
    }
    std::sort(kept.begin(), kept.end());
    return kept;
  }

  // Mean over heads and rows of the attention that a token gets in a layer.
  double looked_at(int layer, const Tokens& rows, int64_t column) const {
    double sum = 0;
    const auto& heads = signals.attention.at(layer);
    for (const Matrix& head : heads)
      for (const int64_t row : rows)
        sum += head.at(row, column) / static_cast<double>(heads.size()) / static_cast<double>(rows.size());
    return sum;
  }
  int64_t last() const {  // row; a prompt that ends with a picture may have lost the end of it
    return std::find(alive.rbegin(), alive.rend(), true).base() - alive.begin() - 1;
  }
  Tokens text_rows_of(int64_t token) const {
    const Tokens text = text_of(image[token]);
    return text.empty() ? Tokens{last()} : text;
  }
  int layer_read(int cut) const {
    if (!options.rank) return cut == 2 ? 2 : cut - 1;
    return *options.rank == CatpOptions::Rank::kNext ? cut : cut - 1;
  }

  // Scores of tokens of one image for r, and for query_score=both: as shares of the largest.
  static std::vector<double> shares(std::vector<double> scores) {
    double largest = 0;
    for (const double s : scores) largest = std::max(largest, s);
    for (double& s : scores) s = largest <= 0 ? 0 : std::max(0.0, s) / largest;
    return scores;
  }

  std::vector<std::pair<double, int64_t>> query_scores(const Tokens& query, const Tokens& pool, int cut) const {
    using enum CatpOptions::QueryScore;
    std::vector<std::pair<double, int64_t>> scored;
    if (options.query_score == kCosine) {
      const auto vc = mean_of(signals.hidden.at(cut), pool);
      for (const int64_t q : query) scored.emplace_back(cosine(signals.hidden.at(cut), q, vc), q);
      return scored;
    }
    for (int i = 0; i < static_cast<int>(prompt.images.size()); ++i) {
      std::vector<double> by_last, by_text;
      Tokens own;
      for (const int64_t q : query)
        if (image[q] == i) {
          own.push_back(q);
          by_last.push_back(looked_at(layer_read(cut), {last()}, q));
          by_text.push_back(looked_at(layer_read(cut), text_rows_of(q), q));
        }
      const auto last_shares = shares(by_last), text_shares = shares(by_text);
      for (size_t j = 0; j < own.size(); ++j)
        scored.emplace_back(options.query_score == kAttention ? by_last[j]
                            : options.query_score == kText    ? by_text[j]
                                                              : std::max(last_shares[j], text_shares[j]),
                            own[j]);
    }
    return scored;
  }

  // What stays of scored tokens that are cut image by image.
  Tokens chosen_by_image(const std::vector<std::pair<double, int64_t>>& scored, int cut) {
    Tokens kept;
    for (int i = 0; i < static_cast<int>(prompt.images.size()); ++i) {
      auto own = scored;
      std::erase_if(own, [&](const auto& s) { return image[s.second] != i; });
      const int64_t number = count(share_behind(cut), unpruned([&](int64_t t) { return image[t] == i; }));
      Tokens of_image;
      if (options.selection == CatpOptions::Selection::kTop) {
        of_image = best(own, number);
      } else {
        std::vector<double> relevance;
        for (const auto& [score, token] : own) of_image.push_back(token), relevance.push_back(score);
        relevance = shares(relevance);
        for (double& r : relevance) r += options.relevance_floor;
        of_image = volume(signals.hidden.at(cut), of_image, relevance, number);
      }
      kept.insert(kept.end(), of_image.begin(), of_image.end());
    }
    return kept;
  }

  Tokens stage1_of(int i) {
    const Matrix& h = signals.hidden.at(0);
    const Tokens tokens = where([&](int64_t t) { return competes(t) && image[t] == i; });
    const size_t s = tokens.size();
    const int64_t budget = count(share_before(), unpruned([&](int64_t t) { return image[t] == i; }));
    if (options.coverage == CatpOptions::Coverage::kDpp) return volume(h, tokens, std::vector<double>(s, 1.0), budget);
    std::vector<double> m, a(s, 0.0);
    for (const int64_t x : tokens)
      for (const int64_t y : tokens)
        m.push_back(cosine(h, x, {h.values.begin() + y * h.cols, h.values.begin() + (y + 1) * h.cols}));
    rescale(m);
    const Tokens text = text_of(i);
    if (!text.empty()) {
      const auto v = mean_of(h, text);
      for (size_t j = 0; j < s; ++j) a[j] = cosine(h, tokens[j], v);
      rescale(a);
    }
    const double scale = options.scale == CatpOptions::Scale::kDivMean ? 1.0 / static_cast<double>(s) : 1.0;
    std::vector<double> cover(s, 0.0);
    std::vector<bool> chosen(s, false);
    Tokens kept;
    for (int64_t step = std::min(budget, static_cast<int64_t>(s)); step > 0; --step) {
      size_t pick = s;
      double largest = -1e300, second = -1e300;
      for (size_t j = 0; j < s; ++j) {
        double gain = options.lambda1 * a[j];
        for (size_t x = 0; x < s; ++x) gain += scale * std::max(0.0, m[x * s + j] - cover[x]);
        if (chosen[j]) continue;
        second = std::max(second, std::min(gain, largest));
        if (gain > largest + 1e-9) {
          largest = gain;
          pick = j;
        }
      }
      has_near_tie |= largest - second < 1e-4;
      chosen[pick] = true;
      kept.push_back(tokens[pick]);
      for (size_t x = 0; x < s; ++x) cover[x] = std::max(cover[x], m[x * s + pick]);
    }
    return kept;
  }

  std::vector<std::pair<double, int64_t>> context_scores(const Tokens& context) const {
    const Tokens query = where([&](int64_t t) { return in_query(t); });
    Tokens pool = query;
    if (options.query_pool == CatpOptions::QueryPool::kText)
      std::erase_if(pool, [&](int64_t t) { return kind[t] != Segment::Kind::kText; });
    if (options.query_pool == CatpOptions::QueryPool::kLast) pool = {static_cast<int64_t>(kind.size()) - 1};
    const auto vq = mean_of(signals.hidden.at(k), pool);
    const auto &lower = signals.attention.at(k - 2), &upper = signals.attention.at(k - 1);
    std::vector<double> growth;
    for (const int64_t c : context) {
      double mean = 0, clipped = 0;
      for (size_t head = 0; head < upper.size(); ++head) {
        const double d = (upper[head].at(last(), c) - lower[head].at(last(), c)) / static_cast<double>(upper.size());
        mean += d;
        clipped += std::max(0.0, d);
      }
      growth.push_back(options.relu_per_head ? clipped : std::max(0.0, mean));
      if (options.importance == CatpOptions::Importance::kAttention)
        growth.back() = looked_at(layer_read(k), {last()}, c);
      if (options.importance == CatpOptions::Importance::kOwnText)
        growth.back() = looked_at(layer_read(k), text_rows_of(c), c);
    }
    const double largest = *std::max_element(growth.begin(), growth.end()),
                 least = *std::min_element(growth.begin(), growth.end());
    const double sum = std::accumulate(growth.begin(), growth.end(), 0.0);
    std::vector<std::pair<double, int64_t>> scored;
    for (size_t i = 0; i < context.size(); ++i) {
      double g = growth[i];
      if (options.delta_norm == CatpOptions::DeltaNorm::kMax) g /= largest;
      if (options.delta_norm == CatpOptions::DeltaNorm::kSum) g /= sum;
      if (options.delta_norm == CatpOptions::DeltaNorm::kMinmax) g = (g - least) / (largest - least);
      double c = cosine(signals.hidden.at(k), context[i], vq);
      if (options.similarity2 == CatpOptions::StageTwoSimilarity::kAffine) c = (1 + c) / 2;
      scored.emplace_back(g + options.lambda2 * c, context[i]);
    }
    return scored;
  }

  // Image tokens alive after each of the three steps, by name of the place ("0" for the projector's output).
  std::map<int, Tokens> run_all() {
    std::map<int, Tokens> after;
    const auto image_tokens = [&] { return where([&](int64_t t) { return competes(t); }); };
    if (stage1_share() > 0) {
      const Tokens all = image_tokens();
      Tokens kept;
      for (int i = 0; i < static_cast<int>(prompt.images.size()); ++i)
        for (const int64_t t : stage1_of(i)) kept.push_back(t);
      drop(all, kept);
    }
    after[0] = image_tokens();
    const Tokens context = where([&](int64_t t) { return competes(t) && in_context(t); });
    const Tokens query = where([&](int64_t t) { return competes(t) && in_query(t); });
    const int64_t context_size = unpruned([&](int64_t t) { return in_context(t); });
    const int64_t query_size = unpruned([&](int64_t t) { return in_query(t); });
    const bool is_together = options.query_cut == CatpOptions::QueryCut::kTogether;
    const bool is_by_image = options.ranking == CatpOptions::Ranking::kPerImage;
    const bool query_by_image = options.selection == CatpOptions::Selection::kDpp || (is_together && is_by_image);
    int64_t context_kept = 0;
    const auto cut_context = [&] {
      Tokens kept;
      if (context.empty()) return kept;
      const auto scored = context_scores(context);
      kept = is_by_image ? chosen_by_image(scored, k) : best(scored, count(share_behind(k), context_size));
      context_kept = static_cast<int64_t>(kept.size());
      return kept;
    };
    const auto cut_query = [&](int cut) {
      Tokens pool = where([&](int64_t t) {
        return in_context(t) && (options.context_pool == CatpOptions::ContextPool::kAll || competes(t));
      });
      if (context_size == 0)
        pool = where([&](int64_t t) { return example[t] >= 0 && kind[t] == Segment::Kind::kText; });
      if (query.empty() || (pool.empty() && options.query_score == CatpOptions::QueryScore::kCosine)) return query;
      const auto scored = query_scores(query, pool, cut);
      if (query_by_image) return chosen_by_image(scored, cut);
      int64_t number = count(share_behind(cut), query_size);
      if (options.counts == CatpOptions::Counts::kExactTotal)
        number = std::max<int64_t>(1, count(share_behind(k), context_size + query_size) - context_kept);
      return best(scored, number);
    };
    if (stage1_share() < 1 && is_together) {
      Tokens kept = cut_context(), both = context;
      const Tokens of_query = cut_query(k);
      kept.insert(kept.end(), of_query.begin(), of_query.end());
      both.insert(both.end(), query.begin(), query.end());
      drop(both, kept);
    } else if (stage1_share() < 1) {
      drop(context, cut_context());
    }
    after[k] = image_tokens();
    if (stage1_share() < 1 && !is_together) drop(query, cut_query(k + 1));
    after[k + 1] = image_tokens();
    return after;
  }
};

}  // namespace espalier::test
