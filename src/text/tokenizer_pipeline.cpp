// SPDX-License-Identifier: Apache-2.0
#include "text/tokenizer_pipeline.h"

#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "base/json_file.h"
#include "base/utf8.h"
#include "espalier/error.h"

namespace espalier {
namespace {

using nlohmann::json;

constexpr int64_t kMaxTokenId =
    (1 << 24) - 1;  // tables are as long as the largest id: a broken file must not fill the memory

// One object of the file, with its path in it. "model.vocab" and "decoder.decoders[1].type" are such paths.
class Section {
 public:
  Section(const json& value, const std::string& file, const std::string& path)
      : value_(&value), file_(&file), path_(path), fields_(value, file, path.empty() ? "" : path + ".") {}

  std::string string(const char* key) const { return required(key, fields_.string(key), "a string"); }
  std::string string(const char* key, std::string fallback) const { return fields_.string(key).value_or(fallback); }
  bool boolean(const char* key, bool fallback) const { return fields_.boolean(key).value_or(fallback); }
  int64_t integer(const char* key, int64_t lowest, int64_t highest) const {
    const int64_t value = required(key, fields_.integer(key), "an integer");
    if (value < lowest || value > highest)
      fields_.fail(key, "an integer from " + std::to_string(lowest) + " to " + std::to_string(highest));
    return value;
  }
  int32_t token_id(const char* key) const { return static_cast<int32_t>(integer(key, 0, kMaxTokenId)); }

  bool has(const char* key) const { return fields_.find(key) != nullptr; }
  Section object(const char* key) const {
    const json* value = fields_.find(key);
    if (!value || !value->is_object()) fields_.fail(key, "an object");
    return {*value, *file_, path_of(key)};
  }
  std::vector<Section> objects(const char* key) const {
    const json& list = array(key);
    std::vector<Section> out;
    for (size_t i = 0; i < list.size(); ++i)
      out.emplace_back(list[i], *file_, path_of(key) + "[" + std::to_string(i) + "]");
    return out;
  }
  const json& array(const char* key) const {
    const json* value = fields_.find(key);
    if (!value || !value->is_array()) fields_.fail(key, "a list");
    return *value;
  }

  const json& value() const { return *value_; }
  std::string path_of(const char* key) const { return path_.empty() ? key : path_ + "." + key; }
  [[noreturn]] void fail(const std::string& what) const { throw Error(*file_ + ": " + path_ + ": " + what); }
  [[noreturn]] void unsupported(const std::string& what) const { fail(what + " is not supported"); }
  void require(bool condition, const std::string& what) const {
    if (!condition) unsupported(what);
  }
  const JsonFields& fields() const { return fields_; }
  std::string place() const { return *file_ + ": " + path_; }

 private:
  template <typename T>
  T required(const char* key, std::optional<T> value, const std::string& expected) const {
    if (!value) fields_.fail(key, expected);
    return *value;
  }
  const json* value_;
  const std::string* file_;
  std::string path_;
  JsonFields fields_;
};

// The steps of a part of the pipeline: those of a Sequence in order, or the one that stands there, or none for null.
std::vector<Section> steps_of(const Section& root, const char* key, const char* list_key) {
  if (!root.has(key)) return {};
  const Section part = root.object(key);
  if (part.string("type") != "Sequence") return {part};
  return part.objects(list_key);
}

// Replace has {"pattern": {"String": …}} or {"Regex": …}.
std::string plain_pattern(const Section& replace) {
  const Section pattern = replace.object("pattern");
  replace.require(!pattern.has("Regex"), "Replace of a regular expression");
  std::string text = pattern.string("String");
  if (text.empty()) pattern.fields().fail("String", "text that is not empty");
  return text;
}

Normalizer read_normalizer(const Section& root) {
  Normalizer normalizer;
  for (const Section& step : steps_of(root, "normalizer", "normalizers")) {
    const std::string type = step.string("type");
    if (type == "Prepend") {
      normalizer.add(Normalizer::Prepend{step.string("prepend")});
    } else if (type == "Replace") {
      normalizer.add(Normalizer::Replace{plain_pattern(step), step.string("content")});
    } else if (type == "NFC") {
      normalizer.add(Normalizer::Nfc{});
    } else {
      step.unsupported("normalizer " + type);
    }
  }
  return normalizer;
}

Metaspace read_metaspace(const Section& step) {
  Metaspace metaspace;
  metaspace.replacement = step.string("replacement");
  if (metaspace.replacement.empty()) step.fields().fail("replacement", "a character");
  // Files from before 2024 have add_prefix_space in place of prepend_scheme.
  const std::string scheme = step.string("prepend_scheme", step.boolean("add_prefix_space", true) ? "always" : "never");
  if (scheme == "first") {
    metaspace.prepend = Metaspace::Prepend::kFirst;
  } else if (scheme == "never") {
    metaspace.prepend = Metaspace::Prepend::kNever;
  } else if (scheme != "always") {
    step.fields().fail("prepend_scheme", "\"first\", \"always\" or \"never\"");
  }
  metaspace.split = step.boolean("split", true);
  return metaspace;
}

SplitPattern read_split(const Section& step) {
  const std::string behavior = step.string("behavior");
  step.require(behavior == "Isolated", "split behavior " + behavior);
  step.require(!step.boolean("invert", false), "an inverted split");
  const Section pattern = step.object("pattern");
  step.require(!pattern.has("String"), "split at a plain string");
  return {pattern.string("Regex"), pattern.place()};
}

// `byte_level` comes back true when pieces go to BPE as bytes.
PreTokenizer read_pre_tokenizer(const Section& root, bool& byte_level) {
  PreTokenizer out;
  byte_level = false;
  const std::vector<Section> steps = steps_of(root, "pre_tokenizer", "pretokenizers");
  for (const Section& step : steps) {
    const std::string type = step.string("type");
    step.require(!byte_level, "pre-tokenizer " + type + " behind ByteLevel");
    if (type == "Metaspace") {
      step.require(steps.size() == 1, "Metaspace together with other pre-tokenizers");
      out.metaspace = read_metaspace(step);
    } else if (type == "Split") {
      out.splits.push_back(read_split(step));
    } else if (type == "ByteLevel") {
      step.require(!step.boolean("add_prefix_space", true), "ByteLevel with add_prefix_space");
      step.require(!step.boolean("use_regex", true), "ByteLevel with use_regex");
      byte_level = true;
    } else {
      step.unsupported("pre-tokenizer " + type);
    }
  }
  return out;
}

Vocabulary read_vocabulary(const Section& model) {
  const Section vocab = model.object("vocab");
  Vocabulary vocabulary;
  vocabulary.reserve(vocab.value().size());
  for (const auto& [token, id] : vocab.value().items()) {
    if (!id.is_number_integer() || id < 0 || id > kMaxTokenId) {
      vocab.fields().fail(token.c_str(), "a token id from 0 to " + std::to_string(kMaxTokenId));
    }
    if (!vocabulary.add(token, id.get<int32_t>())) vocab.fail("id " + id.dump() + " is given to two tokens");
  }
  if (vocabulary.size() == 0) model.fields().fail("vocab", "at least one token");
  return vocabulary;
}

// A merge is "left right" or ["left", "right"].
std::pair<std::string, std::string> read_merge(const Section& model, const json& merge, size_t index) {
  if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
    return {merge[0].get<std::string>(), merge[1].get<std::string>()};
  }
  if (merge.is_string()) {
    const auto& text = merge.get_ref<const std::string&>();
    const size_t space = text.find(' ');
    if (space != std::string::npos && text.find(' ', space + 1) == std::string::npos) {
      return {text.substr(0, space), text.substr(space + 1)};
    }
  }
  model.fail("merges[" + std::to_string(index) + "]: expected \"left right\" or [left, right], got " +
             merge.dump(-1, ' ', false, json::error_handler_t::replace));
}

Bpe read_model(const Section& model, bool byte_level) {
  const std::string type = model.string("type", "BPE");  // files of 2021 and before have no type
  model.require(type == "BPE", "model " + type);
  model.require(!model.has("dropout"), "BPE with dropout");
  model.require(!model.boolean("ignore_merges", false), "BPE with ignore_merges");
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    model.require(model.string(key, "").empty(), std::string("BPE with ") + key);
  }
  const bool byte_fallback = model.boolean("byte_fallback", false);
  model.require(!(byte_level && byte_fallback), "byte_fallback together with ByteLevel");
  Vocabulary vocabulary = read_vocabulary(model);
  int32_t unknown_id = -1;
  if (model.has("unk_token")) {
    unknown_id = vocabulary.id_of(model.string("unk_token"));
    if (unknown_id < 0) model.fields().fail("unk_token", "a token of the vocabulary");
  }
  const auto alphabet = byte_level      ? Bpe::Alphabet::kByteLevel
                        : byte_fallback ? Bpe::Alphabet::kByteFallback
                                        : Bpe::Alphabet::kCharacters;
  Bpe bpe(std::move(vocabulary), alphabet, unknown_id, model.boolean("fuse_unk", false));
  model.require(!byte_fallback || bpe.has_all_bytes(),
                "byte_fallback without all of <0x00> to <0xFF> in the vocabulary");
  const json& merges = model.array("merges");
  for (size_t i = 0; i < merges.size(); ++i) {
    const auto [left, right] = read_merge(model, merges[i], i);
    if (!bpe.add_merge(left, right)) {
      model.fail("merges[" + std::to_string(i) + "]: \"" + left + "\", \"" + right +
                 "\" or the two together is no token of the vocabulary");
    }
  }
  return bpe;
}

void read_added_tokens(const Section& root, TokenizerImpl& tokenizer) {
  if (!root.has("added_tokens")) return;
  for (const Section& token : root.objects("added_tokens")) {
    const std::string content = token.string("content");
    const int32_t id = token.token_id("id");
    for (const char* flag : {"single_word", "lstrip", "rstrip"}) {
      token.require(!token.boolean(flag, false), "the added token \"" + content + "\" with " + flag);
    }
    const int32_t model_id = tokenizer.bpe.vocabulary().id_of(content);
    if (model_id >= 0 && model_id != id) {
      token.fields().fail("id", std::to_string(model_id) + ", which \"" + content + "\" has in the vocabulary");
    }
    if (!tokenizer.added.add(content, id))
      token.fail("\"" + content + "\" or its id is there already with another partner");
    if (token.boolean("special", false)) tokenizer.special.insert(id);
    if (token.boolean("normalized", true)) {
      // The library normalizes the token as it does the text, a prepended ▁ included, and so must we to find the same
      // places.
      AlignedText normalized = AlignedText::of(content, 0, content.size());
      tokenizer.normalizer.apply(normalized);
      tokenizer.normalized_added.add(normalized.text, id);
    } else {
      tokenizer.raw_added.add(content, id);
    }
  }
}

// TemplateProcessing for one text: special tokens around sequence A.
void read_template(const Section& processor, TokenizerImpl& tokenizer) {
  bool behind_text = false;
  for (const Section& item : processor.objects("single")) {
    if (item.has("Sequence")) {
      item.require(!behind_text, "a template with the text twice");
      behind_text = true;
      continue;
    }
    const std::string name = item.object("SpecialToken").string("id");
    const Section token = processor.object("special_tokens").object(name.c_str());
    std::vector<int32_t>& target = behind_text ? tokenizer.suffix : tokenizer.prefix;
    for (const json& id : token.array("ids")) {
      if (!id.is_number_integer() || id < 0 || id > kMaxTokenId) token.fields().fail("ids", "token ids");
      target.push_back(id.get<int32_t>());
    }
  }
  if (!behind_text) processor.fields().fail("single", "a template with the text in it");
}

void read_post_processor(const Section& root, TokenizerImpl& tokenizer) {
  if (!root.has("post_processor")) return;
  const Section processor = root.object("post_processor");
  const std::string type = processor.string("type");
  if (type == "TemplateProcessing") {
    read_template(processor, tokenizer);
  } else if (type != "ByteLevel") {  // which only trims offsets
    processor.unsupported("post-processor " + type);
  }
}

// In a Sequence the order must be Replace…, ByteFallback, Fuse, Strip: each of them changes what the next one sees.
TokenDecoder read_decoder_sequence(const Section& decoder) {
  TokenDecoder::Steps steps;
  const std::vector<std::string> order = {"Replace", "ByteFallback", "Fuse", "Strip"};
  size_t reached = 0;
  bool fused = false;
  for (const Section& step : decoder.objects("decoders")) {
    const std::string type = step.string("type");
    const size_t place = static_cast<size_t>(std::find(order.begin(), order.end(), type) - order.begin());
    step.require(place < order.size(), "decoder " + type);
    step.require(place >= reached, "decoder " + type + " behind " + order[reached < order.size() ? reached : 0]);
    reached = place;
    if (type == "Replace") {
      steps.replace.emplace_back(plain_pattern(step), step.string("content"));
    } else if (type == "ByteFallback") {
      steps.byte_fallback = true;
    } else if (type == "Fuse") {
      fused = true;
    } else {
      step.require(fused, "decoder Strip without Fuse");
      step.require(step.integer("stop", 0, 1 << 20) == 0, "decoder Strip at the end");
      steps.strip = step.string("content");
      if (steps.strip.empty()) step.fields().fail("content", "a character");
      steps.strip_count = static_cast<size_t>(step.integer("start", 0, 1 << 20));
    }
  }
  return TokenDecoder::sequence(std::move(steps));
}

TokenDecoder read_decoder(const Section& root) {
  const Section decoder = root.object("decoder");
  const std::string type = decoder.string("type");
  if (type == "Sequence") return read_decoder_sequence(decoder);
  decoder.require(type == "ByteLevel", "decoder " + type);
  return TokenDecoder::byte_level();
}

}  // namespace

std::shared_ptr<const TokenizerImpl> read_tokenizer_json(const std::filesystem::path& file) {
  const std::string name = file.string();
  const json content = read_json_file(file);
  const Section root(content, name, "");
  bool byte_level = false;
  Normalizer normalizer = read_normalizer(root);
  PreTokenizer pre_tokenizer = read_pre_tokenizer(root, byte_level);
  // "truncation" and "padding" of the file are left alone, as Transformers does: they are defaults of its saving
  // program.
  auto tokenizer = std::make_shared<TokenizerImpl>(TokenizerImpl{{},
                                                                 std::move(normalizer),
                                                                 {},
                                                                 std::move(pre_tokenizer),
                                                                 read_model(root.object("model"), byte_level),
                                                                 {},
                                                                 {},
                                                                 read_decoder(root),
                                                                 {},
                                                                 {}});
  read_added_tokens(root, *tokenizer);
  read_post_processor(root, *tokenizer);
  return tokenizer;
}

}  // namespace espalier
