// SPDX-License-Identifier: Apache-2.0
#include "text/tokenizer_pipeline.h"

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>

#include "base/error_text.h"
#include "base/json_fields.h"
#include "base/json_file.h"
#include "base/limits.h"
#include "base/utf8.h"
#include "espalier/error.h"

namespace espalier {
namespace {

using nlohmann::json;

[[noreturn]] void fail(const JsonFields& part, const std::string& what) {
  throw Error(text_of(part.place(), ": ", what));
}
[[noreturn]] void unsupported(const JsonFields& part, const std::string& what) {
  fail(part, shown(what) + " is not supported");
}
void require(const JsonFields& part, bool condition, const std::string& what) {
  if (!condition) unsupported(part, what);
}

std::vector<JsonFields> sequence_at(const JsonFields& part, const char* key) {
  std::vector<JsonFields> steps = part.objects_at(key);
  if (steps.size() > limits::kTokenizerSteps)
    fail(part, text_of(steps.size(), " steps, at most ", limits::kTokenizerSteps, " are taken"));
  return steps;
}

// What a step puts in, wherever it finds the place for it: limited, as each of them may find many.
std::string replacement_at(const JsonFields& step, const char* key) {
  std::string text = step.string_at(key);
  if (text.size() > limits::kReplacementBytes)
    step.fail(key, text_of("text of up to ", limits::kReplacementBytes, " bytes"));
  return text;
}

void add_steps(const JsonFields& part, const char* list_key, std::vector<JsonFields>& steps) {
  if (part.string_at("type") == "Sequence") {
    for (const JsonFields& step : sequence_at(part, list_key)) add_steps(step, list_key, steps);
  } else {
    steps.push_back(part);
  }
  if (steps.size() > limits::kTokenizerSteps)
    fail(part, text_of("more than ", limits::kTokenizerSteps, " steps in all"));
}

// The steps of a part of the pipeline: those of a Sequence in order, or the one that stands there, or none for null.
std::vector<JsonFields> steps_of(const JsonFields& root, const char* key, const char* list_key) {
  std::vector<JsonFields> steps;
  if (root.has(key)) add_steps(root.object_at(key), list_key, steps);
  return steps;
}

// Replace has {"pattern": {"String": …}} or {"Regex": …}.
std::string plain_pattern(const JsonFields& replace) {
  const JsonFields pattern = replace.object_at("pattern");
  require(replace, !pattern.has("Regex"), "Replace of a regular expression");
  std::string text = pattern.string_at("String");
  if (text.empty()) pattern.fail("String", "text that is not empty");
  return text;
}

Normalizer read_normalizer(const JsonFields& root) {
  Normalizer normalizer;
  for (const JsonFields& step : steps_of(root, "normalizer", "normalizers")) {
    const std::string type = step.string_at("type");
    if (type == "Prepend") {
      normalizer.add(Normalizer::Prepend{replacement_at(step, "prepend")});
    } else if (type == "Replace") {
      normalizer.add(Normalizer::Replace{plain_pattern(step), replacement_at(step, "content")});
    } else if (type == "NFC") {
      normalizer.add(Normalizer::Nfc{});
    } else {
      unsupported(step, "normalizer " + type);
    }
  }
  return normalizer;
}

// Files from before 2024 have add_prefix_space in place of prepend_scheme.
Metaspace::Prepend read_scheme(const JsonFields& step) {
  const std::string scheme =
      step.string("prepend_scheme").value_or(step.boolean("add_prefix_space").value_or(true) ? "always" : "never");
  if (scheme == "first") return Metaspace::Prepend::kFirst;
  if (scheme == "never") return Metaspace::Prepend::kNever;
  if (scheme != "always") step.fail("prepend_scheme", "\"first\", \"always\" or \"never\"");
  return Metaspace::Prepend::kAlways;
}

std::string metaspace_replacement(const JsonFields& step) {
  std::string replacement = replacement_at(step, "replacement");
  if (replacement.empty()) step.fail("replacement", "a character");
  return replacement;
}

Metaspace read_metaspace(const JsonFields& step) {
  return {.replacement = metaspace_replacement(step),
          .prepend = read_scheme(step),
          .split = step.boolean("split").value_or(true)};
}

SplitBehavior read_behavior(const JsonFields& step, const std::string& name) {
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  step.fail("behavior", "Isolated, Removed, Contiguous, MergedWithPrevious or MergedWithNext");
}

SplitPattern read_pattern(const JsonFields& step) {
  const JsonFields pattern = step.object_at("pattern");
  if (!pattern.has("String")) return {pattern.string_at("Regex"), pattern.place()};
  const std::string text = pattern.string_at("String");
  if (text.empty()) pattern.fail("String", "text that is not empty");
  return {SplitPattern::quoted(text), pattern.place()};
}

Split read_split(const JsonFields& step) {
  return {.pattern = read_pattern(step),
          .behavior = read_behavior(step, step.string_at("behavior")),
          .invert = step.boolean("invert").value_or(false)};
}

Split read_digits(const JsonFields& step) {
  const bool one_by_one = step.boolean("individual_digits").value_or(false);
  return {.pattern = {R"(\p{N})", step.place()},
          .behavior = one_by_one ? SplitBehavior::kIsolated : SplitBehavior::kContiguous};
}

// The library's table of punctuation is that of an early Unicode: without what has come since, and with two characters
// that are no punctuation any more. Found by asking for every code point.
constexpr std::string_view kPunctuationSince =
    R"(\x{61D}\x{9FD}\x{A76}\x{C77}\x{C84}\x{1B7D}-\x{1B7E}\x{2E43}-\x{2E4F}\x{2E52}-\x{2E5D})"
    R"(\x{10EAD}\x{10F55}-\x{10F59}\x{10F86}-\x{10F89}\x{1144B}-\x{1144F}\x{1145A}-\x{1145B})"
    R"(\x{1145D}\x{11660}-\x{1166C}\x{116B9}\x{1183B}\x{11944}-\x{11946}\x{119E2})"
    R"(\x{11A3F}-\x{11A46}\x{11A9A}-\x{11A9C}\x{11A9E}-\x{11AA2}\x{11B00}-\x{11B09})"
    R"(\x{11C41}-\x{11C45}\x{11C70}-\x{11C71}\x{11EF7}-\x{11EF8}\x{11F43}-\x{11F4F}\x{11FFF})"
    R"(\x{12FF1}-\x{12FF2}\x{16E97}-\x{16E9A}\x{16FE2}\x{1E95E}-\x{1E95F})";

Split read_punctuation(const JsonFields& step) {
  return {.pattern = {R"((?![)" + std::string(kPunctuationSince) + R"(])(?:[!-/:-@\[-`{-~]|\p{P})|[\x{166D}\x{111C9}])",
                      step.place()},
          .behavior = read_behavior(step, step.string("behavior").value_or("Isolated"))};
}

ByteLevel read_byte_level(const JsonFields& step) {
  ByteLevel byte_level{.add_prefix_space = step.boolean("add_prefix_space").value_or(true)};
  if (step.boolean("use_regex").value_or(true))
    byte_level.words.emplace(R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)",
                             step.place());
  return byte_level;
}

PreTokenizer::Step read_step(const JsonFields& step, const std::string& type) {
  if (type == "Metaspace") return read_metaspace(step);
  if (type == "Split") return read_split(step);
  if (type == "Digits") return read_digits(step);
  if (type == "Punctuation") return read_punctuation(step);
  if (type == "ByteLevel") return read_byte_level(step);
  unsupported(step, "pre-tokenizer " + type);
}

PreTokenizer read_pre_tokenizer(const JsonFields& root) {
  PreTokenizer out;
  for (const JsonFields& fields : steps_of(root, "pre_tokenizer", "pretokenizers")) {
    const std::string type = fields.string_at("type");
    PreTokenizer::Step step = read_step(fields, type);
    const auto* split = std::get_if<Split>(&step);
    require(fields, !out.has_byte_level() || (split && split->behavior != SplitBehavior::kRemoved),
            "pre-tokenizer " + type + " after ByteLevel");
    out.add(std::move(step));
  }
  return out;
}

Vocabulary read_vocabulary(const JsonFields& model) {
  const JsonFields vocab = model.object_at("vocab");
  Vocabulary vocabulary;
  vocabulary.reserve(vocab.value().size());
  for (const auto& [token, id] : vocab.value().items()) {
    if (!id.is_number_integer() || id < 0 || id > limits::kTokenId) {
      vocab.fail(token.c_str(), "a token id from 0 to " + std::to_string(limits::kTokenId));
    }
    if (!vocabulary.add(token, id.get<int32_t>())) fail(vocab, "id " + id.dump() + " is given to two tokens");
  }
  if (vocabulary.size() == 0) model.fail("vocab", "at least one token");
  return vocabulary;
}

// A merge is "left right" or ["left", "right"].
std::pair<std::string, std::string> read_merge(const JsonFields& model, const json& merge, size_t index) {
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
  fail(model, text_of("merges[", index, "]: expected \"left right\" or [left, right], got ", shown_json(merge)));
}

Bpe read_model(const JsonFields& model, bool byte_level) {
  const std::string type = model.string("type").value_or("BPE");  // files of 2021 and before have no type
  require(model, type == "BPE", "model " + type);
  require(model, model.number("dropout").value_or(0) == 0, "BPE with dropout");
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    require(model, model.string(key).value_or("").empty(), std::string("BPE with ") + key);
  }
  const bool byte_fallback = model.boolean("byte_fallback").value_or(false);
  require(model, !(byte_level && byte_fallback), "byte_fallback together with ByteLevel");
  Vocabulary vocabulary = read_vocabulary(model);
  Bpe::Rules rules{.alphabet = byte_level      ? Bpe::Alphabet::kByteLevel
                               : byte_fallback ? Bpe::Alphabet::kByteFallback
                                               : Bpe::Alphabet::kCharacters,
                   .fuse_unknown = model.boolean("fuse_unk").value_or(false),
                   .ignore_merges = model.boolean("ignore_merges").value_or(false)};
  if (model.has("unk_token")) {
    rules.unknown_id = vocabulary.id_of(model.string_at("unk_token"));
    if (rules.unknown_id < 0) model.fail("unk_token", "a token of the vocabulary");
  }
  Bpe bpe(std::move(vocabulary), rules);
  require(model, !byte_fallback || bpe.has_all_bytes(),
          "byte_fallback without all of <0x00> to <0xFF> in the vocabulary");
  const json& merges = model.list_at("merges");
  for (size_t i = 0; i < merges.size(); ++i) {
    const auto [left, right] = read_merge(model, merges[i], i);
    if (!bpe.add_merge(left, right)) {
      fail(model, text_of("merges[", i, "]: ", in_quotes(left), ", ", in_quotes(right),
                          " or the two together is no token of the vocabulary"));
    }
  }
  return bpe;
}

void read_added_tokens(const JsonFields& root, TokenizerImpl& tokenizer) {
  if (!root.has("added_tokens")) return;
  for (const JsonFields& token : root.objects_at("added_tokens")) {
    const std::string content = token.string_at("content");
    const int32_t id = static_cast<int32_t>(token.integer_at("id", 0, limits::kTokenId));
    const AddedTokens::Rules rules{.single_word = token.boolean("single_word").value_or(false),
                                   .strip_left = token.boolean("lstrip").value_or(false),
                                   .strip_right = token.boolean("rstrip").value_or(false)};
    const int32_t model_id = tokenizer.bpe.vocabulary().id_of(content);
    if (model_id >= 0 && model_id != id) {
      token.fail("id", std::to_string(model_id) + ", which " + in_quotes(content) + " has in the vocabulary");
    }
    if (content.size() > limits::kAddedTokenBytes)
      token.fail("content", text_of("text of up to ", limits::kAddedTokenBytes, " bytes"));
    if (!tokenizer.added.add(content, id))
      fail(token, in_quotes(content) + " or its id is there already with another partner");
    if (token.boolean("special").value_or(false)) tokenizer.special.insert(id);
    if (token.boolean("normalized").value_or(true)) {
      // The library normalizes the token as it does the text, a prepended ▁ included, and so must we to find the same
      // places.
      AlignedText normalized = AlignedText::of(content, 0, content.size());
      tokenizer.normalizer.apply(normalized, 2 * limits::kAddedTokenBytes);
      tokenizer.normalized_added.add(normalized.text, id, rules);
    } else {
      tokenizer.raw_added.add(content, id, rules);
    }
  }
}

// TemplateProcessing for one text: special tokens around sequence A.
void read_template(const JsonFields& processor, TokenizerImpl& tokenizer) {
  bool behind_text = false;
  for (const JsonFields& item : processor.objects_at("single")) {
    if (item.has("Sequence")) {
      require(item, !behind_text, "a template with the text twice");
      behind_text = true;
      continue;
    }
    const std::string name = item.object_at("SpecialToken").string_at("id");
    const JsonFields token = processor.object_at("special_tokens").object_at(name.c_str());
    std::vector<int32_t>& target = behind_text ? tokenizer.suffix : tokenizer.prefix;
    for (const json& id : token.list_at("ids")) {
      if (!id.is_number_integer() || id < 0 || id > limits::kTokenId) token.fail("ids", "token ids");
      target.push_back(id.get<int32_t>());
    }
  }
  if (!behind_text) processor.fail("single", "a template with the text in it");
}

// "sep" and "cls" of RoBERTa, ["</s>", 2].
int32_t read_named_id(const JsonFields& processor, const char* key) {
  const json& pair = processor.list_at(key);
  if (pair.size() != 2 || !pair[1].is_number_integer() || pair[1] < 0 || pair[1] > limits::kTokenId)
    processor.fail(key, "[token, its id]");
  return pair[1].get<int32_t>();
}

void read_post_processor(const JsonFields& root, TokenizerImpl& tokenizer) {
  bool has_tokens = false;
  for (const JsonFields& processor : steps_of(root, "post_processor", "processors")) {
    const std::string type = processor.string_at("type");
    if (type == "ByteLevel") continue;  // which only trims offsets
    require(processor, !has_tokens, "a second post-processor that adds tokens");
    has_tokens = true;
    if (type == "TemplateProcessing") {
      read_template(processor, tokenizer);
    } else if (type == "RobertaProcessing") {
      tokenizer.prefix.push_back(read_named_id(processor, "cls"));
      tokenizer.suffix.push_back(read_named_id(processor, "sep"));
    } else {
      unsupported(processor, "post-processor " + type);
    }
  }
}

// In a Sequence the order must be Replace…, ByteFallback, Fuse, Strip: each of them changes what the next one sees.
TokenDecoder read_decoder_sequence(const JsonFields& decoder) {
  TokenDecoder::Steps steps;
  const std::vector<std::string> order = {"Replace", "ByteFallback", "Fuse", "Strip"};
  size_t reached = 0;
  bool fused = false;
  for (const JsonFields& step : sequence_at(decoder, "decoders")) {
    const std::string type = step.string_at("type");
    const size_t place = static_cast<size_t>(std::find(order.begin(), order.end(), type) - order.begin());
    require(step, place < order.size(), "decoder " + type);
    require(step, place >= reached, "decoder " + type + " after " + order[reached < order.size() ? reached : 0]);
    reached = place;
    if (type == "Replace") {
      steps.replace.emplace_back(plain_pattern(step), replacement_at(step, "content"));
    } else if (type == "ByteFallback") {
      steps.byte_fallback = true;
    } else if (type == "Fuse") {
      fused = true;
    } else {
      require(step, fused, "decoder Strip without Fuse");
      require(step, step.integer_at("stop", 0, 1 << 20) == 0, "decoder Strip at the end");
      steps.strip = step.string_at("content");
      if (steps.strip.empty()) step.fail("content", "a character");
      steps.strip_count = static_cast<size_t>(step.integer_at("start", 0, 1 << 20));
    }
  }
  return TokenDecoder::sequence(std::move(steps));
}

TokenDecoder read_decoder(const JsonFields& root) {
  const JsonFields decoder = root.object_at("decoder");
  const std::string type = decoder.string_at("type");
  if (type == "Sequence") return read_decoder_sequence(decoder);
  if (type == "Metaspace")
    return TokenDecoder::metaspace(metaspace_replacement(decoder), read_scheme(decoder) != Metaspace::Prepend::kNever);
  require(decoder, type == "ByteLevel", "decoder " + type);
  return TokenDecoder::byte_level();
}

}  // namespace

std::shared_ptr<const TokenizerImpl> read_tokenizer_json(const std::filesystem::path& file) {
  const std::string name = file.string();
  const json content = read_json_file(file);
  const JsonFields root(content, name, "");
  Normalizer normalizer = read_normalizer(root);
  PreTokenizer pre_tokenizer = read_pre_tokenizer(root);
  const bool byte_level = pre_tokenizer.has_byte_level();
  // "truncation" and "padding" of the file are left alone, as Transformers does: they are defaults of its saving
  // program.
  auto tokenizer = std::make_shared<TokenizerImpl>(TokenizerImpl{{},
                                                                 std::move(normalizer),
                                                                 {},
                                                                 std::move(pre_tokenizer),
                                                                 read_model(root.object_at("model"), byte_level),
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
