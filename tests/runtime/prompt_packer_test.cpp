// SPDX-License-Identifier: Apache-2.0
// Prompts to ids and layout: against the goldens' ids and image spans, and by hand for examples, pins and limits.
#include "runtime/prompt_packer.h"

#include <gtest/gtest.h>

#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "espalier/error.h"
#include "tests/runtime/golden_case.h"
#include "tests/runtime/scratch_folder.h"
#include "tests/support/tensors.h"

namespace espalier {
namespace {

using test::expect_says;
using test::GoldenCase;
using test::message_of;
using test::picture;
using test::tiny_llava;
using Tokens = std::vector<int64_t>;

constexpr int32_t kImageId = 1600;
constexpr int64_t kPatches = 16;  // 4 x 4 of 14 pixels

Tokens values_of(const at::Tensor& t) {
  const at::Tensor wide = t.to(at::kLong).contiguous();
  return {wide.const_data_ptr<int64_t>(), wide.const_data_ptr<int64_t>() + wide.numel()};
}

ImagePart part(int width = 56, int height = 56) {
  return {.image = picture(width, height, 3), .pins = {}};
}

// Segments lie gapless over the ids, patches exactly where the image ids are, and the per-token tensors repeat them.
void expect_consistent(const PackedPrompt& packed) {
  const PromptLayout& layout = *packed.layout;
  ASSERT_EQ(layout.num_tokens, std::ssize(packed.ids));
  int64_t end = 0;
  int image = -1;
  for (const Segment& s : layout.segments) {
    EXPECT_EQ(s.begin, end);
    end = s.end;
    const bool is_image = s.kind == Segment::Kind::kPatches;
    for (int64_t t = s.begin; t < s.end; ++t) EXPECT_EQ(packed.ids[t] == kImageId, is_image) << t;
    if (!is_image) continue;
    EXPECT_EQ(s.image, ++image);
    EXPECT_EQ(s.crop, 0);
    EXPECT_EQ(s.grid, (GridSize{4, 4}));
    EXPECT_EQ(s.end - s.begin, kPatches);
  }
  EXPECT_EQ(end, layout.num_tokens);
  EXPECT_EQ(image + 1, std::ssize(layout.images));
  const Tokens positions = values_of(layout.position_id);
  for (int64_t t = 0; t < layout.num_tokens; ++t) EXPECT_EQ(positions[t], t);
}

class PackedGolden : public testing::TestWithParam<const char*> {};

TEST_P(PackedGolden, IdsAndImageSpansEqualTransformers) {
  const GoldenCase golden(GetParam());
  const PackedPrompt packed = pack_prompt(tiny_llava(), golden.prompt(), 16);
  EXPECT_EQ(packed.ids, golden.json.at("input_ids").get<std::vector<int32_t>>());
  EXPECT_EQ(packed.text, golden.json.at("prompt").get<std::string>());
  expect_consistent(packed);
  std::vector<std::vector<int64_t>> spans;
  for (const Segment& s : packed.layout->segments)
    if (s.kind == Segment::Kind::kPatches) spans.push_back({s.begin, s.end - s.begin});
  EXPECT_EQ(spans, golden.json.at("image_spans").get<std::vector<std::vector<int64_t>>>());
}

INSTANTIATE_TEST_SUITE_P(Llava15, PackedGolden,
                         testing::Values("single", "small_square", "pair_raw", "icl4", "wide", "tall", "text_only"),
                         [](const auto& name) { return std::string(name.param); });

// Each turn begins with " USER:", one token whose blank still belongs to the turn before: it counts with its last byte.
TEST(PromptPacker, ExamplesOfAChat) {
  const GoldenCase golden("icl4");
  const PackedPrompt packed = pack_prompt(tiny_llava(), golden.prompt(), 0);
  const int32_t user = packed.ids[1];
  EXPECT_EQ(tiny_llava().tokenizer.decode(std::vector<int32_t>{user}), "USER:");
  EXPECT_EQ(packed.layout->query_example, 4);
  const Tokens example = values_of(packed.layout->example);
  int64_t expected = -1;  // <s>
  for (size_t t = 0; t < packed.ids.size(); ++t) {
    expected += packed.ids[t] == user;
    EXPECT_EQ(example[t], expected) << t;
  }
  for (int i = 0; i < 5; ++i) EXPECT_EQ(packed.layout->example_of_image(i), i);
  EXPECT_EQ(packed.layout->segments.size(), 1U + 5 * 3);  // <s>; then of each turn text, patches, text
}

TEST(PromptPacker, SystemTurnBelongsToNoExample) {
  Chat chat = test::in_context_prompt(1);
  chat.messages.insert(chat.messages.begin(), {"system", {TextPart{"Be short. "}}});
  const PackedPrompt packed = pack_prompt(tiny_llava(), chat, 0);
  ASSERT_TRUE(packed.text.starts_with("Be short. ")) << packed.text;
  const Segment& first = packed.layout->segments[0];
  EXPECT_EQ(first.example, -1);
  EXPECT_GT(first.end, 2);
  EXPECT_EQ(packed.layout->segments[1].example, 0);
  EXPECT_EQ(packed.layout->query_example, 1);
}

TEST(PromptPacker, RawPromptIsOneExample) {
  const RawPrompt raw{"a<image><image>b", {part(), part()}, {}};
  const PackedPrompt packed = pack_prompt(tiny_llava(), raw, 0);
  expect_consistent(packed);
  EXPECT_EQ(packed.layout->query_example, 0);
  const Tokens example = values_of(packed.layout->example);
  EXPECT_EQ(example[0], -1);
  for (size_t t = 1; t < example.size(); ++t) EXPECT_EQ(example[t], 0);
  EXPECT_EQ(packed.layout->num_image_tokens(false), 2 * kPatches);
}

TEST(PromptPacker, RawPromptWithMarkedExamples) {
  const std::string text = "Look. <image> red cat <image> blue dog";
  const size_t second = text.find(" <image> blue");
  const RawPrompt raw{text, {part(), part()}, {text.find("<image>"), second}};
  const PackedPrompt packed = pack_prompt(tiny_llava(), raw, 0);
  expect_consistent(packed);
  EXPECT_EQ(packed.layout->query_example, 1);
  EXPECT_EQ(packed.layout->example_of_image(0), 0);
  EXPECT_EQ(packed.layout->example_of_image(1), 1);
  // Ends of the tokens decide, and an image token ends behind its placeholder.
  const std::vector<Tokenizer::Token> tokens = tiny_llava().tokenizer.encode_with_ends(text);
  const Tokens example = values_of(packed.layout->example);
  size_t t = 0;
  for (const Tokenizer::Token& token : tokens) {
    const int expected = token.end > second ? 1 : token.end > text.find("<image>") ? 0 : -1;
    for (int64_t i = 0; i < (token.id == kImageId ? kPatches : 1); ++i) EXPECT_EQ(example[t++], expected) << token.end;
  }
  EXPECT_EQ(t, example.size());
}

TEST(PromptPacker, RefusesExampleBeginsThatAreNone) {
  for (const std::vector<size_t>& begins : {std::vector<size_t>{3, 1}, std::vector<size_t>{0, 9}})
    expect_says(message_of<Error>([&] {
                  pack_prompt(tiny_llava(), RawPrompt{"red cat", {}, begins}, 0);
                }),
                {"example_begins"});
  EXPECT_NO_THROW(pack_prompt(tiny_llava(), RawPrompt{"red cat", {}, {0, 7}}, 0));
}

TEST(PromptPacker, PlaceholdersAndImagesMustAgree) {
  const auto refused = [](const Prompt& prompt) {
    return message_of<Error>([&] { pack_prompt(tiny_llava(), prompt, 0); });
  };
  expect_says(refused(RawPrompt{"<image> a <image>", {part()}, {}}), {"2 image placeholders", "1 images"});
  expect_says(refused(RawPrompt{"<image> a", {part(), part()}, {}}), {"1 image placeholders", "2 images"});
  expect_says(refused(RawPrompt{"a", {part()}, {}}), {"0 image placeholders", "1 images"});
  expect_says(refused(RawPrompt{"<image>", {}, {}}), {"1 image placeholders", "0 images"});
  // One that a user wrote into a chat's text is a placeholder too.
  expect_says(refused(Chat{{{"user", {part(), TextPart{"What is <image>?"}}}}}), {"2 image placeholders", "1 images"});
}

TEST(PromptPacker, RefusesWhatHoldsNothing) {
  const auto refused = [](const Prompt& prompt) {
    return message_of<Error>([&] { pack_prompt(tiny_llava(), prompt, 0); });
  };
  expect_says(refused(Chat{}), {"prompt", "no messages"});
  // A grey frame in place of RGB is the mistake that people make.
  const auto grey = std::make_shared<const Image>(Image{10, 10, std::vector<uint8_t>(100)});
  expect_says(refused(RawPrompt{"<image>", {{.image = grey}}}), {"prompt: image 0", "10x10", "300 bytes", "got 100"});
  expect_says(refused(RawPrompt{"<image>", {{.image = nullptr, .pins = {}}}, {}}), {"image 0 has no pixels"});
  expect_says(refused(RawPrompt{"<image>", {{.image = std::make_shared<const Image>(), .pins = {}}}, {}}),
              {"prompt: image 0", "no pixels"});
  EXPECT_EQ(pack_prompt(tiny_llava(), RawPrompt{"", {}, {}}, 0).ids, std::vector<int32_t>{1});  // <s> alone is a prompt
}

TEST(PromptPacker, RefusesTurnsThatNobodyCanAnswer) {
  const auto refused = [](const Prompt& prompt) {
    return message_of<Error>([&] { pack_prompt(tiny_llava(), prompt, 0); });
  };
  const Message question{"user", {TextPart{"What?"}}};
  expect_says(refused(Chat{{{"tool", {TextPart{"x"}}}, question}}),
              {"message 0", "system, user or assistant", "\"tool\""});
  expect_says(refused(Chat{{question, {"us\ner", {TextPart{"x"}}}}}), {"message 1", "\"us\\ner\""});
  expect_says(refused(Chat{{question, {"assistant", {TextPart{"This."}}}}}), {"the last message must be the user's"});
}

// wanted_shape of a policy of the caller's own.
class Wanting : public PruningPolicy {
 public:
  explicit Wanting(GridSize grid, std::optional<GridSize> tiling = {}) : grid_(grid), tiling_(tiling) {}
  std::string spec() const override { return "wanting"; }
  std::vector<Step> steps(const ModelFacts&, const PromptLayout&) const override { return {}; }
  ImageShape wanted_shape(const ModelFacts&, const ImageShape& shape) const override {
    ImageShape wanted = shape;
    wanted.grid = grid_;
    wanted.tiling = tiling_;
    return wanted;
  }

 private:
  GridSize grid_;
  std::optional<GridSize> tiling_;
};

TEST(PromptPacker, RefusesShapesThatNoPictureHas) {
  const int64_t most = std::numeric_limits<int64_t>::max();
  for (const GridSize grid :
       {GridSize{0, 0}, {-3, -3}, {1, 0}, {1 << 20, 1 << 20}, {most, most}, {int64_t{1} << 40, 2}}) {
    const Wanting policy(grid);
    expect_says(message_of<Error>([&] { pack_prompt(tiny_llava(), test::in_context_prompt(0), 0, &policy); }),
                {"\"wanting\"", "wanted_shape", ("was expected, got " + std::to_string(grid.rows)).c_str()});
  }
  const Wanting tiled({1, 1}, GridSize{0, 2});
  expect_says(message_of<Error>([&] { pack_prompt(tiny_llava(), test::in_context_prompt(0), 0, &tiled); }),
              {"wanted_shape", "no tiles", "0x2"});
}

// The limit is on prompt and answer together, and reached exactly.
TEST(PromptPacker, PositionLimit) {
  const RawPrompt raw{"<image> red cat", {part()}, {}};
  const int64_t n = pack_prompt(tiny_llava(), raw, 0).layout->num_tokens,
                limit = tiny_llava().config.decoder.max_positions;
  EXPECT_NO_THROW(pack_prompt(tiny_llava(), raw, limit - n));
  expect_says(
      message_of<Error>([&] { pack_prompt(tiny_llava(), raw, limit - n + 1); }),
      {std::to_string(n).c_str(), std::to_string(limit - n + 1).c_str(), std::to_string(limit).c_str(), "positions"});
  expect_says(message_of<Error>([&] { pack_prompt(tiny_llava(), raw, std::numeric_limits<int64_t>::max()); }),
              {"positions"});
  std::string many = "a";
  for (int64_t i = 0; i < limit; ++i) many += "<image>";
  expect_says(message_of<Error>([&] {
                pack_prompt(tiny_llava(), RawPrompt{many, std::vector<ImagePart>(limit, part()), {}}, 0);
              }),
              {"positions"});
}

// ---- pins ----

std::vector<int64_t> pinned_patches(const ImagePart& image) {
  const PackedPrompt packed = pack_prompt(tiny_llava(), RawPrompt{"<image>", {image}, {}}, 0);
  std::vector<int64_t> patches;
  const Tokens pinned = values_of(packed.layout->pinned);
  for (size_t t = 0; t < pinned.size(); ++t)
    if (pinned[t]) patches.push_back(static_cast<int64_t>(t) - packed.layout->segments[1].begin);
  EXPECT_EQ(packed.layout->pinned_per_image, Tokens{std::ssize(patches)});
  return patches;
}

TEST(Pins, RegionsOfASquarePicture) {  // 56 x 56: patch (r, c) is pixels 14r … 14r+13
  ImagePart image = part(56, 56);
  EXPECT_EQ(pinned_patches(image), Tokens{});
  image.pins = {{0, 0, 14, 14}};
  EXPECT_EQ(pinned_patches(image), Tokens{0});
  image.pins = {{13, 13, 15, 15}};
  EXPECT_EQ(pinned_patches(image), (Tokens{0, 1, 4, 5}));
  image.pins = {{55, 55, 56, 56}, {0, 20, 56, 21}};
  EXPECT_EQ(pinned_patches(image), (Tokens{4, 5, 6, 7, 15}));
  image.pins = {{14, 14, 28, 28}};  // ends are exclusive
  EXPECT_EQ(pinned_patches(image), Tokens{5});
  image.pins = {};
  image.pin_all = true;
  EXPECT_EQ(pinned_patches(image), (Tokens{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}));
}

// The short side becomes 56 and the centre is cut out: 224 x 112 shows its middle 112 x 112, patches of 28 pixels.
TEST(Pins, RegionsOfAWidePicture) {
  ImagePart image = part(224, 112);
  image.pins = {{56, 0, 57, 1}};
  EXPECT_EQ(pinned_patches(image), Tokens{0});
  image.pins = {{167, 111, 224, 112}};
  EXPECT_EQ(pinned_patches(image), Tokens{15});
  image.pins = {{0, 0, 56, 112}, {168, 0, 224, 112}};  // what the crop cuts away
  EXPECT_EQ(pinned_patches(image), Tokens{});
  image.pins = {{84, 28, 112, 56}};
  EXPECT_EQ(pinned_patches(image), Tokens{5});
}

TEST(Pins, OnlyOfTheirOwnImage) {
  ImagePart pinned = part();
  pinned.pin_all = true;
  const PackedPrompt packed =
      pack_prompt(tiny_llava(), RawPrompt{"<image>a<image>b<image>", {part(), pinned, part()}, {}}, 0);
  EXPECT_EQ(packed.layout->pinned_per_image, (Tokens{0, kPatches, 0}));
  EXPECT_TRUE(packed.layout->pinned.equal(packed.layout->image == 1));
}

}  // namespace
}  // namespace espalier
