// SPDX-License-Identifier: Apache-2.0
// The arena and the runs in it against plain lists of rows, under random orders of everything that can happen.
#include "runtime/kv_arena.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <gtest/gtest.h>

#include <limits>
#include <optional>
#include <random>
#include <vector>

#include "tests/support/tensors.h"

namespace espalier {
namespace {

using test::int64_tensor;

constexpr int64_t kHeads = 2, kWidth = 3;

DecoderConfig config_of(int64_t window) {
  DecoderConfig config;
  config.num_layers = 2;
  config.num_kv_heads = kHeads;
  config.head_dim = kWidth;
  config.sliding_window = window;
  return config;
}

// Sequences whose every row is known: key[h] = id, value[h] = -id, position = id of the token that head h sees there.
class Model {
 public:
  explicit Model(int64_t window) : arena(config_of(window), at::kFloat, at::kCPU) {}

  struct Known {
    SequenceKv kv{2};
    std::vector<std::vector<std::vector<int64_t>>> ids{2, std::vector<std::vector<int64_t>>(kHeads)};  // [layer][head]
    std::vector<int64_t> own{0, 0};  // rows of its own, the last ones
  };

  void extend(Known& s, int layer, int64_t count, int64_t room) {
    const int64_t first = s.kv.extend(arena, layer, count, room, most);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t id = next_id_++;
      arena.key(layer)[first + i].fill_(static_cast<double>(id));
      arena.value(layer)[first + i].fill_(static_cast<double>(-id));
      if (arena.position_id(layer).defined()) arena.position_id(layer)[first + i].fill_(id);
      for (auto& of_head : s.ids[layer]) of_head.push_back(id);
    }
    s.own[layer] += count;
  }

  // Each head keeps rows of its own choice among the sequence's own.
  void keep(Known& s, int layer, std::mt19937& random) {
    const int64_t n = s.own[layer], kept = std::uniform_int_distribution<int64_t>(0, n)(random);
    at::Tensor rows = at::empty({kHeads, kept}, at::kLong);
    for (int64_t h = 0; h < kHeads; ++h) {
      std::vector<int64_t> all(static_cast<size_t>(n));
      for (int64_t i = 0; i < n; ++i) all[i] = i;
      std::ranges::shuffle(all, random);
      all.resize(static_cast<size_t>(kept));
      std::ranges::sort(all);
      auto& ids = s.ids[layer][h];
      std::vector<int64_t> left(ids.begin(), ids.end() - n);
      for (int64_t i = 0; i < kept; ++i) {
        rows[h][i] = all[i];
        left.push_back(ids[ids.size() - static_cast<size_t>(n - all[i])]);
      }
      ids = std::move(left);
    }
    s.kv.keep(arena, layer, rows, 2);
    s.own[layer] = kept;
  }

  Known share(Known& s, const std::vector<int64_t>& lengths) {
    Known other;
    other.kv = s.kv.share(lengths);
    for (size_t layer = 0; layer < lengths.size(); ++layer) {
      const int64_t shared_before = std::ssize(s.ids[layer][0]) - s.own[layer];
      s.own[layer] -= std::max<int64_t>(0, lengths[layer] - shared_before);
      for (int64_t h = 0; h < kHeads; ++h)
        other.ids[layer][h].assign(s.ids[layer][h].begin(), s.ids[layer][h].begin() + lengths[layer]);
    }
    return other;
  }

  void expect_holds(const Known& s) const {
    for (int layer = 0; layer < 2; ++layer) {
      ASSERT_EQ(s.kv.length(layer), std::ssize(s.ids[layer][0]));
      size_t row = 0;
      for (const KvRun& run : s.kv.runs(layer))
        for (int64_t r = run.begin; r < run.begin + run.length; ++r, ++row)
          for (int64_t h = 0; h < kHeads; ++h) {
            const auto id = static_cast<float>(s.ids[layer][h][row]);
            ASSERT_EQ(arena.key(layer)[r][h][kWidth - 1].item<float>(), id) << "layer " << layer << " row " << row;
            ASSERT_EQ(arena.value(layer)[r][h][0].item<float>(), -id);
          }
    }
  }

  KvArena arena;
  int64_t most = std::numeric_limits<int64_t>::max();  // rows that may follow

 private:
  int64_t next_id_ = 1;
};

TEST(KvArena, HoldsEveryRowUnderRandomOrders) {
  for (uint32_t seed = 0; seed < 20; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    const auto draw = [&](int64_t low, int64_t high) {
      return std::uniform_int_distribution<int64_t>(low, high)(random);
    };
    {
      Model model(seed % 2 == 0 ? 0 : 16);
      std::vector<Model::Known> sequences;
      for (int step = 0; step < 120; ++step) {
        const int64_t what = draw(0, 9);
        if (sequences.empty() || what == 0) {
          sequences.emplace_back();
          for (int layer = 0; layer < 2; ++layer) model.extend(sequences.back(), layer, draw(0, 9), draw(0, 4));
          continue;
        }
        Model::Known& s = sequences[static_cast<size_t>(draw(0, std::ssize(sequences) - 1))];
        const int layer = static_cast<int>(draw(0, 1));
        if (what == 1) {
          std::swap(s, sequences.back());
          sequences.pop_back();
        } else if (what == 2) {
          if (seed % 2 == 0 && s.own[layer] > 0) model.keep(s, layer, random);
        } else if (what == 3) {
          Model::Known other = model.share(s, {draw(0, s.kv.length(0)), draw(0, s.kv.length(1))});
          sequences.push_back(std::move(other));
        } else {
          for (int l = 0; l < 2; ++l) model.extend(s, l, draw(1, 3), draw(0, 8));
        }
        if (step % 10 == 9)
          for (const Model::Known& each : sequences) model.expect_holds(each);
      }
      for (const Model::Known& each : sequences) model.expect_holds(each);
      sequences.clear();
      EXPECT_EQ(model.arena.bytes_in_use(), 0);
      EXPECT_EQ(model.arena.bytes_reserved(), 0);
    }
  }
}

TEST(KvArena, FreedRowsServeAgain) {
  Model model(0);
  auto first = model.arena.allocate(0, 10), second = model.arena.allocate(0, 10), third = model.arena.allocate(0, 10);
  const int64_t reserved = model.arena.bytes_reserved(), generation = model.arena.generation();
  first.reset();
  second.reset();  // one range of 20 with the first
  const auto both = model.arena.allocate(0, 20);
  EXPECT_EQ(both->begin(), 0);
  EXPECT_EQ(model.arena.bytes_reserved(), reserved);
  EXPECT_EQ(model.arena.generation(), generation);
  EXPECT_EQ(model.arena.bytes_in_use(), 30 * 2 * kHeads * kWidth * 4);
}

TEST(KvArena, SharedRowsAreNotWrittenAgain) {
  Model model(0);
  Model::Known a;
  for (int layer = 0; layer < 2; ++layer) model.extend(a, layer, 6, 4);
  Model::Known b = model.share(a, {4, 4});
  const Model::Known c = model.share(b, {4, 2});
  for (int layer = 0; layer < 2; ++layer) {
    model.extend(b, layer, 3, 2);
    model.extend(a, layer, 3, 2);
  }
  EXPECT_EQ(b.kv.runs(0).size(), 2U);
  for (const Model::Known* each : std::initializer_list<const Model::Known*>{&a, &b, &c}) model.expect_holds(*each);
}

// ---- cut again while decoding ----

constexpr int64_t kRowBytes = 2 * kHeads * kWidth * 4;

// A prompt's rows, of which a random part is attended to, again and again; behind them an answer that grows.
void select_at_random(bool holds, uint32_t seed) {
  std::mt19937 random(seed);
  Model model(0);
  Model::Known s;
  constexpr int64_t kPrompt = 9;
  model.extend(s, 0, kPrompt, 5);
  const auto prompt = s.ids[0];  // [head][token]
  std::vector<std::vector<int64_t>> left(kHeads), answer(kHeads);
  for (auto& of_head : left)
    for (int64_t t = 0; t < kPrompt; ++t) of_head.push_back(t);
  for (int turn = 0; turn < 12; ++turn) {
    const int64_t kept = std::uniform_int_distribution<int64_t>(1, std::ssize(left[0]))(random);
    at::Tensor tokens = at::empty({kHeads, kept}, at::kLong);
    for (int64_t h = 0; h < kHeads; ++h) {
      std::vector<int64_t> chosen = left[h];
      std::ranges::shuffle(chosen, random);
      chosen.resize(static_cast<size_t>(kept));
      std::ranges::sort(chosen);
      s.ids[0][h].clear();
      for (int64_t i = 0; i < kept; ++i) {
        tokens[h][i] = chosen[i];
        s.ids[0][h].push_back(prompt[h][chosen[i]]);
      }
      s.ids[0][h].insert(s.ids[0][h].end(), answer[h].begin(), answer[h].end());
      if (!holds) left[h] = chosen;
    }
    s.kv.select(model.arena, 0, tokens, kPrompt, holds);
    ASSERT_EQ(s.kv.rows(0), std::ssize(left[0]) + std::ssize(answer[0]));
    model.most = 0;  // each row its own memory
    model.extend(s, 0, 1, 0);
    for (int64_t h = 0; h < kHeads; ++h) answer[h].push_back(s.ids[0][h].back());
    model.expect_holds(s);
    ASSERT_EQ(s.kv.length(0), kept + turn + 1);
    ASSERT_EQ(model.arena.bytes_in_use(), s.kv.rows(0) * kRowBytes);
  }
}

TEST(KvArena, HeldRowsComeBack) {
  for (uint32_t seed = 0; seed < 20; ++seed) select_at_random(/*holds=*/true, seed);
}

TEST(KvArena, FreedRowsGiveTheirMemoryBack) {
  for (uint32_t seed = 0; seed < 20; ++seed) select_at_random(/*holds=*/false, seed);
}

TEST(KvArena, ACutAtTheCacheGivesItsMemoryBackButForTheRoom) {
  Model model(0);
  Model::Known s;
  for (int layer = 0; layer < 2; ++layer) model.extend(s, layer, 10, 4);
  EXPECT_EQ(model.arena.bytes_in_use(), 28 * kRowBytes);
  s.kv.keep(model.arena, 0, int64_tensor({0, 3, 4, 9}).expand({kHeads, 4}), 4);
  EXPECT_EQ(model.arena.bytes_in_use(), 22 * kRowBytes);
}

TEST(KvArena, NoMoreRoomThanRowsThatMayFollow) {
  Model model(0);
  Model::Known s;
  model.most = 3;
  model.extend(s, 0, 40, 64);
  EXPECT_EQ(model.arena.bytes_in_use(), 43 * kRowBytes);
  model.most = 2;
  model.extend(s, 0, 4, 64);  // moves
  EXPECT_EQ(model.arena.bytes_in_use(), 46 * kRowBytes);
  model.expect_holds(s);
}

}  // namespace
}  // namespace espalier
