// SPDX-License-Identifier: Apache-2.0
// The pseudocode of docs/specs/catp.md, section 9, in float64 loops over a made-up or a recorded run.
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
  int k;
  std::vector<Segment::Kind> kind;
  std::vector<int> image, crop, example;
  std::vector<bool> alive;
  bool has_near_tie = false;  // two gains of stage 1 closer than float32 tells apart

  CatpLoops(const PromptLayout& p, const ArraySignals& s, CatpOptions o, int k_)
      : prompt(p), signals(s), options(std::move(o)), k(k_) {
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

  Tokens stage1_of(int i) {
    const Matrix& h = signals.hidden.at(0);
    const Tokens tokens = where([&](int64_t t) { return competes(t) && image[t] == i; });
    const size_t s = tokens.size();
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
    const int64_t budget =
        count(1 - (1 - keep_ratio()) * stage1_share(), unpruned([&](int64_t t) { return image[t] == i; }));
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
    const int64_t last = static_cast<int64_t>(kind.size()) - 1;
    const auto &lower = signals.attention.at(k - 2), &upper = signals.attention.at(k - 1);
    std::vector<double> growth;
    for (const int64_t c : context) {
      double mean = 0, clipped = 0, attention = 0;
      for (size_t head = 0; head < upper.size(); ++head) {
        const double d = (upper[head].at(last, c) - lower[head].at(last, c)) / static_cast<double>(upper.size());
        mean += d;
        clipped += std::max(0.0, d);
        attention += upper[head].at(last, c) / static_cast<double>(upper.size());
      }
      const bool is_plain = options.importance == CatpOptions::Importance::kAttention;
      growth.push_back(is_plain ? attention : options.relu_per_head ? clipped : std::max(0.0, mean));
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
    const int64_t context_size = unpruned([&](int64_t t) { return in_context(t); });
    const int64_t query_size = unpruned([&](int64_t t) { return in_query(t); });
    int64_t context_kept = 0;
    if (!context.empty() && stage1_share() < 1) {
      const auto scored = context_scores(context);
      Tokens kept;
      if (options.ranking == CatpOptions::Ranking::kGlobal) {
        kept = best(scored, count(keep_ratio(), context_size));
      } else {
        for (int i = 0; i < static_cast<int>(prompt.images.size()); ++i) {
          auto own = scored;
          std::erase_if(own, [&](const auto& s) { return image[s.second] != i; });
          const Tokens of_image = best(own, count(keep_ratio(), unpruned([&](int64_t t) { return image[t] == i; })));
          kept.insert(kept.end(), of_image.begin(), of_image.end());
        }
      }
      context_kept = static_cast<int64_t>(kept.size());
      drop(context, kept);
    }
    after[k] = image_tokens();
    const Tokens query = where([&](int64_t t) { return competes(t) && in_query(t); });
    Tokens pool = where([&](int64_t t) {
      return in_context(t) && (options.context_pool == CatpOptions::ContextPool::kAll || competes(t));
    });
    if (context_size == 0) pool = where([&](int64_t t) { return example[t] >= 0 && kind[t] == Segment::Kind::kText; });
    if (!query.empty() && !pool.empty() && stage1_share() < 1) {
      const auto vc = mean_of(signals.hidden.at(k + 1), pool);
      std::vector<std::pair<double, int64_t>> scored;
      for (const int64_t q : query) scored.emplace_back(cosine(signals.hidden.at(k + 1), q, vc), q);
      int64_t number = count(keep_ratio(), query_size);
      if (options.counts == CatpOptions::Counts::kExactTotal)
        number = std::max<int64_t>(1, count(keep_ratio(), context_size + query_size) - context_kept);
      drop(query, best(scored, number));
    }
    after[k + 1] = image_tokens();
    return after;
  }
};

}  // namespace espalier::test
