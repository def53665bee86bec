// SPDX-License-Identifier: Apache-2.0
#include "espalier/tokenizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "espalier/error.h"
#include "tests/support/folders.h"
#include "tests/support/temporary_folder.h"
#include "text/added_tokens.h"

namespace espalier {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

const fs::path kData = test::golden_folder();

fs::path folder_of(const std::string& pipeline) {
  return pipeline == "llava15" ? kData / pipeline : kData / "tokenizer" / pipeline;
}

json read_json(const fs::path& file) {
  return json::parse(std::ifstream(file));
}

std::string streamed(const Tokenizer& tokenizer, const std::vector<int32_t>& ids, bool skip_special) {
  Tokenizer::Stream stream(tokenizer, skip_special);
  std::string text;
  for (int32_t id : ids) text += stream.add(id);
  return text + stream.finish();
}

void expect_decodes(const Tokenizer& tokenizer, const json& c) {
  const auto ids = c["ids"].get<std::vector<int32_t>>();
  EXPECT_EQ(tokenizer.decode(ids), c["decoded"].get<std::string>());
  EXPECT_EQ(tokenizer.decode(ids, true), c["decoded_skip_special"].get<std::string>());
  EXPECT_EQ(streamed(tokenizer, ids, false), c["decoded"].get<std::string>());
  EXPECT_EQ(streamed(tokenizer, ids, true), c["decoded_skip_special"].get<std::string>());
}

void expect_ends(const std::vector<Tokenizer::Token>& tokens, const json& c, bool loses_text) {
  size_t last = 0;
  for (const Tokenizer::Token& token : tokens) {
    EXPECT_GE(token.end, last);
    last = token.end;
  }
  if (!loses_text) {
    EXPECT_EQ(last, c["text"].get<std::string>().size());
  }
  if (!c.contains("ends")) return;
  std::vector<size_t> ends;
  for (const Tokenizer::Token& token : tokens) ends.push_back(token.end);
  EXPECT_EQ(ends, c["ends"].get<std::vector<size_t>>());
}

void expect_as_golden(const Tokenizer& tokenizer, const json& golden, bool decode = true) {
  const auto around =
      golden["prefix"].get<std::vector<int32_t>>();  // of an empty text: all that the post-processor adds
  for (const json& c : golden["texts"]) {
    SCOPED_TRACE(c["text"].dump());
    const auto text = c["text"].get<std::string>();
    const auto ids = c["ids"].get<std::vector<int32_t>>();
    EXPECT_EQ(tokenizer.encode(text, false), ids);
    EXPECT_EQ(tokenizer.encode(text).size(), ids.size() + around.size());
    expect_ends(tokenizer.encode_with_ends(text, false), c, golden.value("loses_text", false));
    if (decode) expect_decodes(tokenizer, c);
  }
  for (const json& c : golden["sequences"]) {
    SCOPED_TRACE(c["ids"].dump());
    if (decode) expect_decodes(tokenizer, c);
  }
  EXPECT_EQ(tokenizer.encode(""), around);
}

class Pipeline : public testing::TestWithParam<const char*> {};

TEST_P(Pipeline, EncodesAndDecodesAsTheTokenizersLibrary) {
  expect_as_golden(Tokenizer::load(folder_of(GetParam())),
                   read_json(kData / "tokenizer" / (std::string(GetParam()) + ".json")));
}

// Ten times the length may take some twenty times as long where merging is n log n; a hundred times where it is
// quadratic.
TEST_P(Pipeline, TakesNearLinearTimeForHugePieces) {
  const Tokenizer tokenizer = Tokenizer::load(folder_of(GetParam()));
  for (const std::string unit : {"a", " ", "the", "\n", "\xCC\x81\xCC\xA3", "<", "the dog is running "}) {
    const auto seconds_for = [&](size_t size) {
      std::string text;
      while (text.size() < size) text += unit;
      const auto begin = std::chrono::steady_clock::now();
      EXPECT_FALSE(tokenizer.encode(text).empty());
      return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    };
    const double small = seconds_for(50'000);
    EXPECT_LT(seconds_for(500'000), 40 * small + 1) << json(unit);
  }
}

TEST_P(Pipeline, IsSafeToShareBetweenThreads) {
  const Tokenizer tokenizer = Tokenizer::load(folder_of(GetParam()));
  std::string text;
  for (int i = 0; i < 500; ++i) text += "What's in the picture? caf\xC3\xA9 42\n";
  const auto expected = tokenizer.encode(text);
  std::vector<std::vector<int32_t>> results(4);
  std::vector<std::thread> threads;
  for (auto& result : results) threads.emplace_back([&] { result = tokenizer.encode(text); });
  for (auto& thread : threads) thread.join();
  for (const auto& result : results) EXPECT_EQ(result, expected);
}

TEST_P(Pipeline, RefusesTextThatIsNotUtf8) {
  const Tokenizer tokenizer = Tokenizer::load(folder_of(GetParam()));
  const std::vector<std::pair<std::string, std::string>> cases = {{"abc\xFF", "3"},        {"\x80", "0"},
                                                                  {"a\xC3", "1"},          {"\xC0\xAF", "0"},
                                                                  {"ok\xED\xA0\x80", "2"}, {"\xF4\x90\x80\x80", "0"},
                                                                  {"\xE4\xBD", "0"},       {"\xC3\xA9\xE2\x82x", "2"}};
  for (const auto& [text, offset] : cases) {
    try {
      tokenizer.encode(text);
      ADD_FAILURE() << "accepted";
    } catch (const Error& error) {
      EXPECT_TRUE(std::string(error.what()).ends_with("offset " + offset)) << error.what();
    }
  }
}

TEST_P(Pipeline, IdsOutsideTheVocabularyDecodeToNothing) {
  const Tokenizer tokenizer = Tokenizer::load(folder_of(GetParam()));
  const auto ids = tokenizer.encode("a picture", false);
  std::vector<int32_t> with_holes = {-1, tokenizer.size()};
  for (int32_t id : ids) with_holes.insert(with_holes.end(), {id, 1 << 30, tokenizer.size()});
  EXPECT_EQ(tokenizer.decode(with_holes), tokenizer.decode(ids));
  EXPECT_EQ(streamed(tokenizer, with_holes, true), tokenizer.decode(ids));
}

INSTANTIATE_TEST_SUITE_P(Tokenizer, Pipeline, testing::Values("llava15", "llava_next_vicuna", "qwen25vl"),
                         [](const auto& pipeline) { return std::string(pipeline.param); });

// The parts of published files of a family, around a small vocabulary (tests/golden/tokenizer/make_style_goldens.py).
class Style : public testing::TestWithParam<std::string> {};

TEST_P(Style, EncodesAndDecodesAsTheTokenizersLibrary) {
  const json golden = read_json(kData / "tokenizer" / "styles" / (GetParam() + ".json"));
  const TemporaryFolder folder;
  folder.write("tokenizer.json", golden["tokenizer"].dump());
  expect_as_golden(Tokenizer::load(folder.path()), golden);
}

std::vector<std::string> styles() {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(kData / "tokenizer" / "styles"))
    names.push_back(entry.path().stem().string());
  std::ranges::sort(names);
  return names;
}

INSTANTIATE_TEST_SUITE_P(Tokenizer, Style, testing::ValuesIn(styles()), [](const auto& style) { return style.param; });

TEST(Tokenizer, ReadsTheOtherOptionsOfATokenizerJson) {
  const json variants = read_json(kData / "tokenizer" / "variants.json");
  for (const auto& [name, variant] : variants.items()) {
    SCOPED_TRACE(name);
    json content = read_json(folder_of(variant["base"]) / "tokenizer.json");
    content.merge_patch(variant["patch"]);
    const TemporaryFolder folder;
    folder.write("tokenizer.json", content.dump());
    // The library shows an added token with "normalized" in its normalized form and no longer knows that it is special.
    expect_as_golden(Tokenizer::load(folder.path()), variant, name != "normalized added tokens");
  }
}

TEST(Tokenizer, PutsTheTokensOfThePostProcessorAroundAText) {
  const Tokenizer llama = Tokenizer::load(folder_of("llava15"));
  const auto tokens = llama.encode_with_ends("a <image>");
  EXPECT_EQ(tokens.front().id, 1);
  EXPECT_EQ(tokens.front().end, 0u);
  EXPECT_EQ(tokens.back().id, 1600);
  EXPECT_EQ(tokens.back().end, 9u);
}

TEST(Tokenizer, KnowsItsTokens) {
  const Tokenizer llama = Tokenizer::load(folder_of("llava15"));
  EXPECT_EQ(llama.id_of("</s>"), 2);
  EXPECT_EQ(llama.id_of("<image>"), 1600);
  EXPECT_EQ(llama.id_of("<pad>"), 1601);
  EXPECT_EQ(llama.id_of("<imag"), std::nullopt);
  EXPECT_EQ(llama.size(), 1602);
}

TEST(Tokenizer, StreamHoldsBackIncompleteCharacters) {
  const Tokenizer qwen = Tokenizer::load(folder_of("qwen25vl"));
  const auto ids = qwen.encode("\xF0\x9F\x98\x80!", false);  // an emoji in four byte tokens
  ASSERT_EQ(ids.size(), 5u);
  Tokenizer::Stream stream(qwen);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(stream.add(ids[static_cast<size_t>(i)]), "");
  EXPECT_EQ(stream.add(ids[3]), "\xF0\x9F\x98\x80");
  EXPECT_EQ(stream.add(ids[4]), "!");
  EXPECT_EQ(stream.add(ids[0]), "");
  EXPECT_EQ(stream.finish(), "\xEF\xBF\xBD");
}

// What a load of the llava15 tokenizer.json, changed by `patch`, complains of.
std::string complaint(const json& patch, const std::string& base = "llava15") {
  json content = read_json(folder_of(base) / "tokenizer.json");
  content.merge_patch(patch);
  const TemporaryFolder folder;
  folder.write("tokenizer.json", content.dump());
  try {
    Tokenizer::load(folder.path());
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(Tokenizer, RefusesByNameWhatItDoesNotImplement) {
  const std::vector<std::pair<json, std::string>> cases = {
      {{{"model", {{"type", "WordPiece"}}}}, "model WordPiece"},
      {{{"model", {{"dropout", 0.1}}}}, "dropout"},
      {{{"model", {{"end_of_word_suffix", "</w>"}}}}, "end_of_word_suffix"},
      {{{"normalizer", {{"type", "NFKC"}, {"normalizers", nullptr}}}}, "normalizer NFKC"},
      {{{"pre_tokenizer", {{"type", "Whitespace"}}}}, "pre-tokenizer Whitespace"},
      {{{"pre_tokenizer",
         {{"type", "Sequence"},
          {"pretokenizers", {{{"type", "ByteLevel"}}, {{"type", "Metaspace"}, {"replacement", "_"}}}}}}},
       "pre-tokenizer Metaspace after ByteLevel"},
      {{{"post_processor", {{"type", "BertProcessing"}}}}, "post-processor BertProcessing"},
      {{{"decoder", {{"type", "WordPiece"}}}}, "decoder WordPiece"},
      {{{"decoder", {{"decoders", {{{"type", "CTC"}}}}}}}, "decoder CTC"},
      {{{"decoder", {{"decoders", {{{"type", "Fuse"}}, {{"type", "ByteFallback"}}}}}}}, "ByteFallback after Fuse"},
      {{{"model", {{"vocab", {{"<0x41>", nullptr}}}}}}, "byte_fallback without all"},
      {{{"pre_tokenizer", {{"type", "Split"}, {"behavior", "Lost"}, {"pattern", {{"String", "x"}}}}}}, "behavior"},
      {{{"pre_tokenizer", {{"type", "Split"}, {"behavior", "Isolated"}, {"pattern", {{"Regex", "[a[^b]]"}}}}}},
       "a negated class within a class"},
      {{{"pre_tokenizer", {{"type", "Split"}, {"behavior", "Isolated"}, {"pattern", {{"Regex", "\\h"}}}}}},
       "\\h is not"},
      {{{"pre_tokenizer", {{"type", "Split"}, {"behavior", "Isolated"}, {"pattern", {{"Regex", "(["}}}}}},
       "pre_tokenizer.pattern"}};
  for (const auto& [patch, expected] : cases) {
    const std::string error = complaint(patch);
    EXPECT_NE(error.find("tokenizer.json: "), std::string::npos) << error;
    EXPECT_NE(error.find(expected), std::string::npos) << patch << "\n" << error;
  }
}

// ---- files that would take minutes or gigabytes: the limits are those of base/limits.h ----

Tokenizer patched(const json& patch, const std::string& base = "llava15") {
  json content = read_json(folder_of(base) / "tokenizer.json");
  content.merge_patch(patch);
  const TemporaryFolder folder;
  folder.write("tokenizer.json", content.dump());
  return Tokenizer::load(folder.path());
}

TEST(Tokenizer, NormalizersGrowTextToALimit) {
  const json doubling = {{"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", "aa"}};
  const Tokenizer tokenizer =
      patched({{"added_tokens", json::array()},
               {"post_processor", nullptr},
               {"normalizer", {{"type", "Sequence"}, {"normalizers", json::array_t(40, doubling)}}}});
  EXPECT_EQ(
      tokenizer.encode("b"),
      patched({{"added_tokens", json::array()}, {"post_processor", nullptr}, {"normalizer", nullptr}}).encode("b"));
  EXPECT_ERROR(tokenizer.encode("a"), "makes a text of 33554432 bytes, at most 16777216 are taken");
  EXPECT_ERROR(tokenizer.encode(std::string((1 << 24) + 1, 'x')), "the text to tokenize has 16777217 bytes");
}

TEST(Tokenizer, DecodersGrowTokensToALimit) {
  const json doubling = {{"type", "Replace"}, {"pattern", {{"String", "e"}}}, {"content", "ee"}};
  json steps = json::array_t(40, doubling);
  steps.push_back({{"type", "Fuse"}});
  const Tokenizer tokenizer = patched({{"decoder", {{"type", "Sequence"}, {"decoders", steps}}}});
  EXPECT_ERROR(tokenizer.decode(std::vector<int32_t>{*tokenizer.id_of("he")}), "bytes of the token \"h");
}

TEST(Tokenizer, WhatAStepPutsInIsLimited) {
  const json prepend = {{"type", "Prepend"}, {"prepend", std::string(257, 'a')}};
  EXPECT_NE(complaint({{"normalizer", prepend}}).find("field \"normalizer.prepend\": expected text of up to 256 bytes"),
            std::string::npos);
  const json steps = {{"type", "Sequence"}, {"normalizers", json::array_t(65, json{{"type", "NFC"}})}};
  EXPECT_NE(complaint({{"normalizer", steps}}).find("65 steps, at most 64 are taken"), std::string::npos);
  const json token = {{"id", 5000}, {"content", std::string(513, 'x')}};
  EXPECT_NE(complaint({{"added_tokens", {token}}}).find("expected text of up to 512 bytes, got"), std::string::npos);
}

TEST(Tokenizer, TakesManyAddedTokens) {
  json tokens = json::array();
  for (int i = 0; i < 200000; ++i)
    tokens.push_back({{"id", 100000 + i},
                      {"content", "<t" + std::to_string(i) + ">"},
                      {"special", true},
                      {"normalized", i % 2 == 0}});
  const std::clock_t start = std::clock();  // of the processor: other programs do not count
  const Tokenizer tokenizer = patched({{"added_tokens", tokens}, {"normalizer", nullptr}, {"post_processor", nullptr}});
  std::string text;
  for (int i = 0; i < 20000; ++i) text += "<t" + std::to_string(7 * i) + ">";
  const std::vector<int32_t> ids = tokenizer.encode(text);
  EXPECT_LT(std::clock() - start, 15 * CLOCKS_PER_SEC);  // it took minutes
  ASSERT_EQ(ids.size(), 20000u);
  for (int i = 0; i < 20000; ++i) EXPECT_EQ(ids[static_cast<size_t>(i)], 100000 + 7 * i);
}

TEST(AddedTokens, TheLongestAtTheLeftmostPlaceIsFound) {
  AddedTokens tokens;
  for (const auto& [content, id] : {std::pair("ab", 1), {"abcd", 2}, {"bc", 3}, {"c", 4}, {"", 5}, {"ab", 6}})
    tokens.add(content, id);
  const auto found = [&](std::string_view text) {
    std::vector<std::tuple<size_t, size_t, int>> out;
    for (const AddedTokens::Match& m : tokens.find_all(text)) out.emplace_back(m.begin, m.end, m.id);
    return out;
  };
  using Found = std::vector<std::tuple<size_t, size_t, int>>;
  EXPECT_EQ(found("xabcdab"), (Found{{1, 5, 2}, {5, 7, 1}}));
  EXPECT_EQ(found("abce"), (Found{{0, 2, 1}, {2, 3, 4}}));  // the longer one does not end: the shorter is taken
  EXPECT_EQ(found("bcb"), (Found{{0, 2, 3}}));
  EXPECT_EQ(found(""), Found{});
}

TEST(Tokenizer, RefusesAKeyThatIsThereTwice) {
  const TemporaryFolder folder;
  std::string text = read_json(folder_of("llava15") / "tokenizer.json").dump();
  const size_t place = text.find("\"<0xED>\":");
  ASSERT_NE(place, std::string::npos);
  folder.write("tokenizer.json", text.insert(place, "\"<0xED>\":7,"));
  EXPECT_ERROR(Tokenizer::load(folder.path()), "tokenizer.json: key \"<0xED>\" appears twice");
}

TEST(Tokenizer, SaysWhatIsWrongWithABrokenFile) {
  const std::vector<std::pair<json, std::string>> cases = {
      {{{"model", nullptr}}, "field \"model\": expected an object, got nothing"},
      {{{"model", {{"vocab", nullptr}}}}, "field \"model.vocab\": expected an object"},
      {{{"model", {{"vocab", {{"he", -1}}}}}}, "field \"model.vocab.he\": expected a token id"},
      {{{"model", {{"vocab", {{"he", 4000000000}}}}}}, "field \"model.vocab.he\""},
      {{{"model", {{"vocab", {{"extra", 7}}}}}}, "id 7 is given to two tokens"},
      {{{"model", {{"merges", nullptr}}}}, "field \"model.merges\": expected a list"},
      {{{"model", {{"merges", {"nosuch token"}}}}}, "merges[0]: \"nosuch\", \"token\" or the two together"},
      {{{"model", {{"merges", {"h e", "a b c"}}}}}, "merges[1]: expected"},
      {{{"model", {{"merges", {3}}}}}, "merges[0]: expected"},
      {{{"model", {{"unk_token", "<none>"}}}}, "field \"model.unk_token\""},
      {{{"added_tokens", {{{"content", "<x>"}}}}}, "field \"added_tokens[0].id\""},
      {{{"added_tokens", {{{"id", 5}, {"content", "</s>"}}}}}, "field \"added_tokens[0].id\": expected 2"},
      {{{"decoder", nullptr}}, "field \"decoder\""},
      {{{"post_processor", {{"single", json::array()}}}}, "field \"post_processor.single\""},
      {{{"post_processor", {{"special_tokens", {{"<s>", nullptr}}}}}}, "field \"post_processor.special_tokens.<s>\""}};
  for (const auto& [patch, expected] : cases) {
    const std::string error = complaint(patch);
    EXPECT_NE(error.find(expected), std::string::npos) << patch << "\n" << error;
  }
  EXPECT_THROW(Tokenizer::load(kData / "nowhere"), Error);
  for (const char* content : {"", "{", "[]", "null", "{\"model\": {}}", "\xFF"}) {
    const TemporaryFolder folder;
    folder.write("tokenizer.json", content);
    EXPECT_THROW(Tokenizer::load(folder.path()), Error) << content;
  }
}

TEST(Tokenizer, NamesACharacterThatTheModelCannotWrite) {
  json content = read_json(folder_of("llava15") / "tokenizer.json");
  content["model"]["byte_fallback"] = false;
  content["model"]["unk_token"] = nullptr;
  const TemporaryFolder folder;
  folder.write("tokenizer.json", content.dump());
  const Tokenizer tokenizer = Tokenizer::load(folder.path());
  EXPECT_FALSE(tokenizer.encode("plain").empty());
  EXPECT_THROW(tokenizer.encode("\xF0\x9F\xA6\x93"), Error);
}

}  // namespace
}  // namespace espalier
