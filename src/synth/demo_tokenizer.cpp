// SPDX-License-Identifier: Apache-2.0
#include "synth/demo_tokenizer.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>

#include "synth/wording.h"

namespace espalier::synth {

namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kSpace = "\u2581";  // how SentencePiece writes a space

// Pieces in the order of their ids, and merges in the order of their ranks.
class Vocabulary {
 public:
  Vocabulary() {
    for (const char* special : {"<unk>", "<s>", "</s>"}) add(special);
    for (int byte = 0; byte < 256; ++byte) {
      std::array<char, 8> name{};
      std::snprintf(name.data(), name.size(), "<0x%02X>", byte);
      add(name.data());
    }
    add(std::string(kSpace));
  }

  // One chain of merges: every prefix of the word behind `start` becomes a piece ("▁r", "▁re", "▁red").
  void add_word(std::string_view start, std::string_view word) {
    std::string prefix(start);
    for (const char c : word) {
      const std::string letter(1, c);
      add(letter);
      if (!prefix.empty()) merge(prefix, letter);
      prefix += letter;
    }
  }

  void merge(const std::string& left, const std::string& right) {
    if (add(left + right)) merges_.push_back({left, right});
  }

  // Pieces without a merge, up to `size` of them.
  void fill(size_t size) {
    while (pieces_.size() < size) add(std::string(kSpace) + std::to_string(pieces_.size()));
  }

  const std::vector<std::string>& pieces() const { return pieces_; }
  const std::vector<std::array<std::string, 2>>& merges() const { return merges_; }

 private:
  bool add(const std::string& piece) {
    const bool is_new = known_.insert(piece).second;
    if (is_new) pieces_.push_back(piece);
    return is_new;
  }

  std::vector<std::string> pieces_;
  std::vector<std::array<std::string, 2>> merges_;
  std::set<std::string> known_;
};

// Ranks matter. Chains that begin with a space come first, so that nothing can merge inside such a word before it is
// whole; then the words behind the newline of an image; last what the template puts around an image, so that the space
// of "USER: red" goes to the word when no image stands there.
Vocabulary make_vocabulary(Words words) {
  Vocabulary v;
  for (const std::string_view word : other_words(words)) v.add_word(kSpace, word);
  for (const std::string_view word : {"USER:", "ASSISTANT:"}) v.add_word(kSpace, word);
  for (const std::string_view word : question_openers()) v.add_word(kSpace, word);
  for (const std::string_view word : question_openers()) v.add_word("", word);
  v.add_word("", "?");
  v.add_word(kSpace, "\n");
  v.merge(std::string(kSpace) + "USER:", std::string(kSpace));
  return v;
}

// LLaVA-1.5's template, with the end token that it was trained with behind each answer.
constexpr const char* kTemplate =
    "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['role'].upper() + ': ' }}{% endif %}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{{ m['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join(' ') }}"
    "{{ '</s>' if m['role'] == 'assistant' else ' ' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}";

Json special_token(int32_t id, const char* content) {
  return {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", true}};
}

Json normalizer_json() {
  return {{"type", "Sequence"},
          {"normalizers",
           {{{"type", "Prepend"}, {"prepend", kSpace}},
            {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", kSpace}}}}};
}

// <s> in front.
Json post_processor_json() {
  const auto begin = [](int type) { return Json{{"SpecialToken", {{"id", "<s>"}, {"type_id", type}}}}; };
  const auto text = [](const char* id, int type) { return Json{{"Sequence", {{"id", id}, {"type_id", type}}}}; };
  return {{"type", "TemplateProcessing"},
          {"single", {begin(0), text("A", 0)}},
          {"pair", {begin(0), text("A", 0), begin(1), text("B", 1)}},
          {"special_tokens", {{"<s>", {{"id", "<s>"}, {"ids", {DemoTokenizer::kBegin}}, {"tokens", {"<s>"}}}}}}};
}

Json decoder_json() {
  return {{"type", "Sequence"},
          {"decoders",
           {{{"type", "Replace"}, {"pattern", {{"String", kSpace}}}, {"content", " "}},
            {{"type", "ByteFallback"}},
            {{"type", "Fuse"}},
            {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}}}}};
}

Json tokenizer_json(const Vocabulary& v, const DemoTokenizer& ids) {
  Json vocab = Json::object();
  for (size_t i = 0; i < v.pieces().size(); ++i) vocab[v.pieces()[i]] = i;
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens",
           {special_token(DemoTokenizer::kUnknown, "<unk>"), special_token(DemoTokenizer::kBegin, "<s>"),
            special_token(DemoTokenizer::kEnd, "</s>"), special_token(ids.image, "<image>"),
            special_token(ids.padding, "<pad>")}},
          {"normalizer", normalizer_json()},
          {"pre_tokenizer", nullptr},
          {"post_processor", post_processor_json()},
          {"decoder", decoder_json()},
          {"model",
           {{"type", "BPE"},
            {"dropout", nullptr},
            {"unk_token", "<unk>"},
            {"continuing_subword_prefix", nullptr},
            {"end_of_word_suffix", nullptr},
            {"fuse_unk", true},
            {"byte_fallback", true},
            {"ignore_merges", false},
            {"vocab", vocab},
            {"merges", v.merges()}}}};
}

Json tokenizer_config_json(const Json& tokenizer) {
  Json added = Json::object();
  for (const Json& token : tokenizer.at("added_tokens")) {
    Json entry = token;
    entry.erase("id");
    added[std::to_string(token.at("id").get<int64_t>())] = entry;
  }
  return {{"add_bos_token", true},
          {"add_eos_token", false},
          {"added_tokens_decoder", added},
          {"bos_token", "<s>"},
          {"eos_token", "</s>"},
          {"image_token", "<image>"},
          {"extra_special_tokens", {{"image_token", "<image>"}}},
          {"legacy", true},
          {"model_max_length", 4096},
          {"pad_token", "<pad>"},
          {"padding_side", "left"},
          {"processor_class", "LlavaProcessor"},
          {"tokenizer_class", "LlamaTokenizer"},
          {"unk_token", "<unk>"}};
}

}  // namespace

DemoTokenizer demo_tokenizer(int64_t size, Words words) {
  constexpr int32_t kBehind = 2;  // <image> and <pad>
  Vocabulary vocabulary = make_vocabulary(words);
  vocabulary.fill(static_cast<size_t>(std::max<int64_t>(0, size - kBehind)));
  DemoTokenizer result;
  result.image = static_cast<int32_t>(vocabulary.pieces().size());
  result.padding = result.image + 1;
  result.size = result.image + kBehind;
  const Json tokenizer = tokenizer_json(vocabulary, result);
  const auto add = [&](const char* name, const Json& json, int indent) {
    result.files.push_back({name, json.dump(indent) + "\n"});
  };
  add("tokenizer.json", tokenizer, 1);
  add("tokenizer_config.json", tokenizer_config_json(tokenizer), 2);
  add("special_tokens_map.json",
      {{"bos_token", "<s>"}, {"eos_token", "</s>"}, {"pad_token", "<pad>"}, {"unk_token", "<unk>"}}, 2);
  add("chat_template.json", {{"chat_template", kTemplate}}, 2);
  return result;
}

}  // namespace espalier::synth
