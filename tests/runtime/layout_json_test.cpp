// SPDX-License-Identifier: Apache-2.0
// layout.json as the contract writes it, there and back, and every field that can be wrong.
#include "layout/layout_json.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "espalier/error.h"
#include "runtime/prompt_packer.h"
#include "tests/runtime/scratch_folder.h"
#include "tests/support/tiny_llava.h"

namespace espalier {
namespace {

using Json = nlohmann::json;
using test::expect_says;
using test::message_of;

// The example of docs/formats.md, made whole: two images, the second of two crops with a stitched row and its
// row break.
Json example() {
  return Json::parse(R"({
    "schema": 1, "num_tokens": 60, "query_example": 1,
    "model": {"num_layers": 32, "vision_layers": 24, "vision_feature_layer": 22},
    "images": [{"grid": [6, 6]}, {"grid": [2, 3], "tiling": [1, 1]}],
    "segments": [{"kind": "text", "begin": 0, "end": 5, "example": -1},
                 {"kind": "patches", "begin": 5, "end": 41, "image": 0, "crop": 0, "example": 0, "grid": [6, 6]},
                 {"kind": "text", "begin": 41, "end": 44, "example": 0},
                 {"kind": "patches", "begin": 44, "end": 50, "image": 1, "crop": 0, "example": 1, "grid": [2, 3]},
                 {"kind": "patches", "begin": 50, "end": 53, "image": 1, "crop": 1, "example": 1, "grid": [1, 3]},
                 {"kind": "row_break", "begin": 53, "end": 54, "image": 1, "example": 1},
                 {"kind": "patches", "begin": 54, "end": 56, "image": 1, "crop": 1, "example": 1, "grid": [1, 2], "origin": [1, 1]},
                 {"kind": "row_break", "begin": 56, "end": 57, "image": 1, "example": 1},
                 {"kind": "text", "begin": 57, "end": 60, "example": 1}]})");
}

RecordedLayout read(const Json& json) {
  const test::ScratchFolder folder;
  return read_layout(folder.write("layout.json", json.dump()));
}

TEST(LayoutJson, ReadsTheContractsForm) {
  const RecordedLayout layout = read(example());
  EXPECT_EQ(layout.model.num_layers, 32);
  EXPECT_EQ(layout.model.vision_layers, 24);
  EXPECT_EQ(layout.model.vision_feature_layer, 22);
  const PromptLayout& p = *layout.prompt;
  EXPECT_EQ(p.num_tokens, 60);
  EXPECT_EQ(p.query_example, 1);
  ASSERT_EQ(p.images.size(), 2U);
  EXPECT_EQ(p.images[0].grid, (GridSize{6, 6}));
  EXPECT_FALSE(p.images[0].tiling);
  EXPECT_EQ(p.images[1].tiling, (GridSize{1, 1}));
  ASSERT_EQ(p.segments.size(), 9U);
  EXPECT_EQ(p.segments[6].origin, (GridSize{1, 1}));
  EXPECT_EQ(p.segments[6].crop, 1);
  EXPECT_EQ(p.segments[7].kind, Segment::Kind::kRowBreak);
  EXPECT_EQ(p.num_image_tokens(false), 36 + 11);
  EXPECT_EQ(p.num_image_tokens(true), 36 + 13);
  EXPECT_EQ(p.grid_col[54].item<int64_t>(), 1);
  EXPECT_EQ(p.grid_row[55].item<int64_t>(), 1);
}

TEST(LayoutJson, ThereAndBack) {
  const RecordedLayout layout = read(example());
  EXPECT_EQ(Json::parse(layout_to_json(*layout.prompt, layout.model)), example());
}

TEST(LayoutJson, OfAPackedPrompt) {
  for (const int shots : {0, 3}) {
    const PackedPrompt packed = pack_prompt(test::tiny_llava(), test::in_context_prompt(shots), 0);
    const Json json = Json::parse(layout_to_json(*packed.layout, test::tiny_llava().facts));
    EXPECT_EQ(json.at("model"), (Json{{"num_layers", 8}, {"vision_layers", 4}, {"vision_feature_layer", 2}}));
    const RecordedLayout back = read(json);
    EXPECT_TRUE(back.prompt->kind.equal(packed.layout->kind));
    EXPECT_TRUE(back.prompt->image.equal(packed.layout->image));
    EXPECT_TRUE(back.prompt->crop.equal(packed.layout->crop));
    EXPECT_TRUE(back.prompt->example.equal(packed.layout->example));
    EXPECT_TRUE(back.prompt->grid_row.equal(packed.layout->grid_row));
    EXPECT_TRUE(back.prompt->grid_col.equal(packed.layout->grid_col));
    EXPECT_EQ(back.prompt->query_example, shots);
  }
}

TEST(LayoutJson, OfTiles) {
  const LoadedModel& model = test::tiny_model("llava_next_mistral");
  const PackedPrompt packed = pack_prompt(model, test::in_context_prompt(1), 0);
  const RecordedLayout back = read(Json::parse(layout_to_json(*packed.layout, model.facts)));
  ASSERT_EQ(back.prompt->segments.size(), packed.layout->segments.size());
  EXPECT_TRUE(back.prompt->kind.equal(packed.layout->kind));
  EXPECT_TRUE(back.prompt->crop.equal(packed.layout->crop));
  EXPECT_TRUE(back.prompt->grid_row.equal(packed.layout->grid_row));
  EXPECT_TRUE(back.prompt->grid_col.equal(packed.layout->grid_col));
  for (size_t i = 0; i < 2; ++i) EXPECT_EQ(back.prompt->images[i].tiling, packed.layout->images[i].tiling);
}

TEST(LayoutJson, ATextWithoutImages) {
  const RecordedLayout layout = read({{"num_tokens", 3},
                                      {"query_example", 0},
                                      {"model", {{"num_layers", 2}}},
                                      {"images", Json::array()},
                                      {"segments", {{{"kind", "text"}, {"begin", 0}, {"end", 3}, {"example", 0}}}}});
  EXPECT_EQ(layout.prompt->num_image_tokens(true), 0);
}

// A JSON pointer, what is put there ("-": taken away), and what the message must hold.
struct Damage {
  const char* pointer;
  Json value;
  std::vector<const char*> says;
};

TEST(LayoutJson, EveryFieldThatCanBeWrong) {
  const Json gone = "-";
  const Damage damages[] = {
      {"/num_tokens", gone, {"num_tokens", "an integer", "nothing"}},
      {"/num_tokens", 61, {"num_tokens", "expected 60, where the segments end, got 61"}},
      {"/num_tokens", "60", {"num_tokens", "\"60\""}},
      {"/num_tokens", 60.5, {"num_tokens", "60.5"}},
      {"/query_example", gone, {"query_example"}},
      {"/query_example", -2, {"query_example", "-2"}},
      {"/query_example", 1e18, {"query_example"}},
      {"/query_example", int64_t{1} << 40, {"query_example", "1099511627776"}},
      {"/model", gone, {"model"}},
      {"/model", 3, {"model", "an object", "3"}},
      {"/model/num_layers", gone, {"model.num_layers\""}},
      {"/model/num_layers", 0, {"model.num_layers\"", "0"}},
      {"/model/vision_layers", "x", {"model.vision_layers\"", "x"}},
      {"/images", gone, {"images", "a list"}},
      {"/images", 4, {"images", "4"}},
      {"/images/0", 4, {"images[0]", "an object"}},
      {"/images/0/grid", gone, {"images[0].grid\"", "a list of integers from 1"}},
      {"/images/1/grid", {6}, {"images[1].grid\"", "[6]"}},
      {"/images/1/grid", {2, 0}, {"images[1].grid\"", "[2,0]"}},
      {"/images/1/grid", {2, 3.5}, {"images[1].grid\"", "3.5"}},
      {"/images/1/tiling", {0, 1}, {"images[1].tiling\""}},
      {"/images/1", gone, {"names image 1 of 1"}},
      {"/segments", gone, {"segments", "a list"}},
      {"/segments/0", "text", {"segments[0]", "an object"}},
      {"/segments/0/kind", gone, {"segments[0].kind\"", "a string"}},
      {"/segments/0/kind", "video", {"segments[0].kind\"", "video"}},
      {"/segments/1/begin", gone, {"segments[1].begin\""}},
      {"/segments/1/begin", 6, {"segment [6, 41)", "(5)"}},
      {"/segments/1/begin", 4, {"segment [4, 41)", "(5)"}},
      {"/segments/0/begin", -5, {"segments[0].begin\"", "-5"}},
      {"/segments/0/end", -1, {"segments[0].end\"", "-1"}},
      {"/segments/2/end", 40, {"segment [41, 40)"}},
      {"/segments/8/end", int64_t{1} << 60, {"segments[8].end\"", "1152921504606846976"}},
      {"/segments/8/end", uint64_t{1} << 63, {"segments[8].end\"", "9223372036854775808"}},
      {"/segments/8/example", "one", {"segments[8].example\"", "one"}},
      {"/segments/8/example", -2, {"segments[8].example\"", "-2"}},
      {"/segments/1/image", gone, {"segments[1].image\""}},
      {"/segments/1/image", 2, {"names image 2 of 2"}},
      {"/segments/1/image", -1, {"segments[1].image\"", "-1"}},
      {"/segments/1/image", int64_t{1} << 32, {"segments[1].image\"", "4294967296"}},
      {"/segments/1/crop", -1, {"segments[1].crop\"", "-1"}},
      {"/segments/1/grid", gone, {"segments[1].grid\""}},
      {"/segments/1/grid", {6, 5}, {"36 patches", "6 x 5"}},
      {"/segments/1/grid", {9, 4}, {"reaches out of its crop of 6 x 6"}},
      {"/segments/1/grid", {-6, -6}, {"segments[1].grid\""}},
      {"/segments/1/grid", {int64_t{1} << 32, (int64_t{1} << 32) + 9}, {"segments[1].grid\""}},
      {"/segments/6/origin", {1, 2}, {"reaches out of its crop of 2 x 3"}},
      {"/segments/6/origin", {-1, 1}, {"segments[6].origin\""}},
      {"/segments/6/origin", "x", {"segments[6].origin\""}},
      {"/segments/5/end", 55, {"row break is one token"}},
  };
  for (const Damage& damage : damages) {
    SCOPED_TRACE(std::string(damage.pointer) + " = " + damage.value.dump());
    Json json = example();
    const Json::json_pointer pointer(damage.pointer);
    if (damage.value == gone) {
      Json& parent = json[pointer.parent_pointer()];
      parent.is_array() ? parent.erase(static_cast<size_t>(std::stoi(pointer.back())))
                        : (void)parent.erase(pointer.back());
    } else {
      json[pointer] = damage.value;
    }
    const std::string message = message_of<Error>([&] { read(json); });
    expect_says(message, {"layout.json: "});
    for (const char* part : damage.says) expect_says(message, {part});
  }
}

// Of one token each: what is done for a picture would be done hundreds of thousands of times.
TEST(LayoutJson, HasNoMorePicturesThanAPromptCan) {
  Json json = example();
  json["images"] = Json(200'000, {{"grid", {1, 1}}});
  expect_says(message_of<Error>([&] { read(json); }), {"\"images\"", "200000 pictures, at most 4096"});
}

TEST(LayoutJson, NotJsonOrNotThere) {
  const test::ScratchFolder folder;
  expect_says(message_of<Error>([&] { read_layout(folder.path() / "absent.json"); }), {"absent.json"});
  for (const char* text : {"", "{", "[]", "3"})
    expect_says(message_of<Error>([&] { read_layout(folder.write("layout.json", text)); }), {"layout.json"});
}

}  // namespace
}  // namespace espalier
