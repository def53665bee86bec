// SPDX-License-Identifier: Apache-2.0
// Whatever is wrong with what the user gave: exit status 2, one line on stderr that says what, nothing on stdout, no
// file left behind.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <functional>

#include "tests/cli/golden_case.h"
#include "tests/cli/run_espalier.h"

namespace espalier::test {
namespace {

using nlohmann::json;

const std::string kPicture = (kCases / "images/100x76_mix_11.png").string();
const Arguments kAsk = {"--image", kPicture, "--prompt", "What is it?", "--max-new-tokens", "1"};

void expect_refused(const Arguments& arguments, const std::string& part) {
  const Outcome outcome = run_espalier(arguments);
  EXPECT_EQ(outcome.status, 2) << outcome.err;
  EXPECT_EQ(outcome.out, "");
  EXPECT_EQ(std::ranges::count(outcome.err, '\n'), 1) << outcome.err;
  EXPECT_EQ(outcome.err.rfind("espalier: ", 0), 0u) << outcome.err;
  EXPECT_NE(outcome.err.find(part), std::string::npos) << "\"" << part << "\" in " << outcome.err;
}

// Runs generate with all its output files asked for, and none of them may be left.
void expect_generate_refused(const std::filesystem::path& model, const Arguments& arguments, const std::string& part) {
  const TemporaryFolder out;
  expect_refused(Arguments{"generate", "--model", model, "--dump", out / "dump"} + arguments, part);
  EXPECT_TRUE(std::filesystem::is_empty(out.path()));
}

// ---- the checkpoint ----

// The golden checkpoint with links to its files; a test replaces one.
class DamagedModel : public testing::Test {
 protected:
  DamagedModel() {
    for (const auto& entry : std::filesystem::directory_iterator(kModel))
      if (entry.is_regular_file())
        std::filesystem::create_symlink(entry.path(), folder_ / entry.path().filename().string());
  }

  void remove(const std::string& name) { std::filesystem::remove(folder_ / name); }

  void replace(const std::string& name, const std::string& bytes) {
    remove(name);
    folder_.write(name, bytes);
  }

  void change_json(const std::string& name, const std::function<void(json&)>& change) {
    json value = read_json(folder_ / name);
    change(value);
    replace(name, value.dump());
  }

  // Rewrites the header of model.safetensors; the data stays.
  void change_header(const std::function<void(json&)>& change) {
    const std::string whole = read_whole(kModel / "model.safetensors");
    uint64_t length = 0;
    std::memcpy(&length, whole.data(), sizeof length);
    json header = json::parse(whole.substr(8, length));
    change(header);
    const std::string text = header.dump();
    const uint64_t new_length = text.size();
    replace("model.safetensors",
            std::string(reinterpret_cast<const char*>(&new_length), 8) + text + whole.substr(8 + length));
  }

  void expect_refusal(const std::string& part) { expect_generate_refused(folder_.path(), kAsk, part); }

  TemporaryFolder folder_;
};

const std::string kTensor = "language_model.model.layers.3.mlp.up_proj.weight";

TEST_F(DamagedModel, LoadsUndamaged) {
  output_of(Arguments{"generate", "--model", folder_.path()} + kAsk);
}

TEST_F(DamagedModel, MissingWeights) {
  remove("model.safetensors");
  expect_refusal("model.safetensors");
}

TEST_F(DamagedModel, TruncatedWeights) {
  const std::string whole = read_whole(kModel / "model.safetensors");
  replace("model.safetensors", whole.substr(0, whole.size() / 2));
  expect_refusal("model.safetensors");
  replace("model.safetensors", whole.substr(0, 5));
  expect_refusal("model.safetensors");
  replace("model.safetensors", "");
  expect_refusal("model.safetensors");
}

TEST_F(DamagedModel, OverlappingTensors) {
  change_header([](json& header) {
    auto& offsets = header[kTensor]["data_offsets"];
    offsets = {offsets[0].get<int64_t>() - 2, offsets[1].get<int64_t>() - 2};
  });
  expect_refusal("model.safetensors");
}

TEST_F(DamagedModel, OversizedHeader) {
  std::string whole = read_whole(kModel / "model.safetensors");
  const uint64_t huge = uint64_t{1} << 62;
  std::memcpy(whole.data(), &huge, sizeof huge);
  replace("model.safetensors", whole);
  expect_refusal("model.safetensors");
}

TEST_F(DamagedModel, WeightsOfAnotherDtype) {
  change_header([](json& header) { header[kTensor]["dtype"] = "I16"; });
  expect_refusal("I16");
}

TEST_F(DamagedModel, MissingTensor) {
  change_header([](json& header) {
    header["another.name"] = header[kTensor];
    header.erase(kTensor);
  });
  expect_refusal("layers.3.mlp.up_proj.weight");
}

TEST_F(DamagedModel, ConfigContradictsTheWeights) {
  change_json("config.json", [](json& config) { config["text_config"]["intermediate_size"] = 128 + 32; });
  expect_refusal("config.json asks for shape [160, 128]");
}

TEST_F(DamagedModel, ConfigAsksForMoreLayers) {
  change_json("config.json", [](json& config) { config["text_config"]["num_hidden_layers"] = 9; });
  expect_refusal("layers.8");
}

TEST_F(DamagedModel, UnknownArchitecture) {
  change_json("config.json", [](json& config) {
    config["model_type"] = "parrot";
    config["architectures"] = {"ParrotForConditionalGeneration"};
  });
  expect_refusal("arrot");
}

TEST_F(DamagedModel, MalformedFiles) {
  for (const char* name :
       {"config.json", "tokenizer.json", "preprocessor_config.json", "generation_config.json", "chat_template.json"}) {
    SCOPED_TRACE(name);
    const std::string whole = read_whole(kModel / name);
    replace(name, whole.substr(0, whole.size() / 2));
    if (std::string(name) == "preprocessor_config.json") remove("processor_config.json");
    expect_refusal(name);
    replace(name, whole);
  }
}

TEST_F(DamagedModel, MissingFiles) {
  for (const char* name : {"config.json", "tokenizer.json"}) {
    SCOPED_TRACE(name);
    remove(name);
    expect_refusal(name);
    replace(name, read_whole(kModel / name));
  }
}

TEST_F(DamagedModel, TokenizerOfAnotherKind) {
  change_json("tokenizer.json", [](json& tokenizer) { tokenizer["model"]["type"] = "Unigram"; });
  expect_refusal("Unigram");
}

TEST_F(DamagedModel, TemplateThatDoesNotParse) {
  change_json("chat_template.json",
              [](json& file) { file["chat_template"] = "{% for m in messages %}{{ m['role'] }}"; });
  expect_refusal("chat_template.json");
}

TEST_F(DamagedModel, TemplateThatRaises) {
  change_json("chat_template.json",
              [](json& file) { file["chat_template"] = "{{ raise_exception('no pictures today') }}"; });
  expect_refusal("no pictures today");
}

TEST(BadModel, NoSuchFolder) {
  expect_generate_refused("/no/such/folder", kAsk, "/no/such/folder");
}

// ---- pictures ----

uint32_t crc32(const std::string& bytes) {
  uint32_t crc = 0xFFFFFFFF;
  for (const char c : bytes) {
    crc ^= static_cast<uint8_t>(c);
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (0xEDB88320 & -(crc & 1));
  }
  return ~crc;
}

std::string big_endian(uint32_t value) {
  return {static_cast<char>(value >> 24), static_cast<char>(value >> 16), static_cast<char>(value >> 8),
          static_cast<char>(value)};
}

// The picture with another width and height in its header.
std::string png_that_claims(uint32_t width, uint32_t height) {
  std::string png = read_whole(kPicture);
  png.replace(16, 8, big_endian(width) + big_endian(height));
  return png.replace(29, 4, big_endian(crc32(png.substr(12, 17))));
}

TEST(BadPicture, EveryKind) {
  const TemporaryFolder folder;
  const std::string png = read_whole(kPicture);
  const std::pair<std::string, std::string> cases[] = {
      {"empty.png", ""},
      {"truncated.png", png.substr(0, png.size() / 2)},
      {"text.png", "not a picture at all"},
      {"truncated.jpg", read_whole(kGolden / "images/rgb.jpg").substr(0, 100)},
      {"truncated.webp", read_whole(kGolden / "images/lossless.webp").substr(0, 40)},
      {"huge.png", png_that_claims(20'000, 20'000)},
  };
  for (const auto& [name, bytes] : cases) {
    SCOPED_TRACE(name);
    folder.write(name, bytes);
    expect_generate_refused(kModel, {"--image", folder / name, "--prompt", "?"}, name);
  }
  expect_generate_refused(kModel, {"--image", folder / "none.png", "--prompt", "?"}, "none.png");
  expect_generate_refused(kModel, {"--image", folder.path(), "--prompt", "?"}, folder.path());
}

// ---- the prompt ----

TEST(BadPrompt, PlaceholdersAndPicturesDoNotMatch) {
  expect_generate_refused(
      kModel, {"--image", kPicture, "--image", kPicture, "--raw-prompt", "USER: <image> ASSISTANT:"}, "placeholder");
  expect_generate_refused(kModel, {"--image", kPicture, "--raw-prompt", "USER: <image> <image> ASSISTANT:"},
                          "placeholder");
  expect_generate_refused(kModel, {"--raw-prompt", "USER: <image> ASSISTANT:"}, "placeholder");
  expect_generate_refused(kModel, {"--image", kPicture, "--raw-prompt", "USER: ASSISTANT:"}, "placeholder");
}

TEST(BadPrompt, LongerThanTheModelCanPlace) {
  std::string text;
  for (int i = 0; i < 5000; ++i) text += "walls; ";
  expect_generate_refused(kModel, {"--prompt", text}, "4096");
  expect_generate_refused(kModel, {"--prompt", "short", "--max-new-tokens", "5000"}, "4096");
}

TEST(BadPrompt, NotUtf8) {
  expect_generate_refused(kModel, {"--prompt", "caf\xE9"}, "UTF-8");
}

TEST(BadPrompt, NoneOrSeveral) {
  expect_generate_refused(kModel, {}, "--prompt");
  expect_generate_refused(kModel, {"--prompt", "a", "--raw-prompt", "b"}, "exactly one");
  expect_generate_refused(kModel, {"--image", kPicture, "--chat", "messages.json"}, "--image");
}

TEST(BadPrompt, Messages) {
  const TemporaryFolder folder;
  const std::pair<const char*, const char*> cases[] = {
      {R"([{"role": "user", "content")", "messages.json"},
      {R"({"role": "user"})", "messages.json"},
      {R"([])", "messages.json"},
      {R"([{"role": "robot", "content": "hello"}])", "role"},
      {R"([{"role": "user", "content": 7}])", "content"},
      {R"([{"role": "user", "content": [{"type": "sound"}]}])", "type"},
      {R"([{"role": "user", "content": [{"type": "image"}]}])", "path"},
      {R"([{"role": "user", "content": [{"type": "image", "path": "nowhere.png"}]}])", "nowhere.png"},
  };
  for (const auto& [messages, part] : cases) {
    SCOPED_TRACE(messages);
    const std::string file = folder.write("messages.json", messages);
    expect_generate_refused(kModel, {"--chat", file}, part);
  }
  expect_generate_refused(kModel, {"--chat", folder / "other.json"}, "other.json");
}

TEST(BadPrompt, PixelValuesOfAnotherShape) {
  const std::string of_five = kCases / "icl4.safetensors", of_none = kCases / "text_only.safetensors";
  expect_generate_refused(kModel, kAsk + Arguments{"--pixel-values", of_five}, "pixel values");
  expect_generate_refused(kModel, kAsk + Arguments{"--pixel-values", of_none}, "pixel_values");
  expect_generate_refused(kModel, kAsk + Arguments{"--pixel-values", kPicture}, kPicture);
}

// ---- policies and options ----

TEST(BadPolicy, EveryKind) {
  const std::pair<const char*, const char*> cases[] = {
      {"bonsai", "bonsai"},
      {"", "policy"},
      {"fastv", "keep_ratio"},
      {"fastv:keep_ratio=1/2,depth=3", "depth"},
      {"fastv:keep_ratio=3/2", "keep_ratio"},
      {"fastv:keep_ratio=half", "keep_ratio"},
      {"fastv:keep_ratio=1/2,num_kept=4", "num_kept"},
      {"fastv:keep_ratio=1/2,rows=some", "rows"},
      {"fastv:keep_ratio=1/2,layer=40", "layer"},
      {"random:keep_ratio=1/2,seed=x", "seed"},
      {"catp:keep_ratio=2/9,lambda1=much", "lambda1"},
      {"catp:keep_ratio=2/9,k=30", "k"},
  };
  for (const auto& [spec, part] : cases) {
    SCOPED_TRACE(spec);
    expect_generate_refused(kModel, kAsk + Arguments{"--policy", spec}, part);
  }
}

TEST(BadOption, EveryKind) {
  const std::vector<std::pair<Arguments, const char*>> cases = {
      {{"--temperature", "0"}, "--temperature"},
      {{"--temperature", "nan"}, "--temperature"},
      {{"--temperature", ""}, "--temperature"},
      {{"--top-p", "1.5"}, "--top-p"},
      {{"--top-k", "-1"}, "--top-k"},
      {{"--top-k", "1.5"}, "--top-k"},
      {{"--max-new-tokens", "-1"}, "--max-new-tokens"},
      {{"--max-new-tokens", "99999999999999999999"}, "--max-new-tokens"},
      {{"--repetition-penalty", "-1"}, "--repetition-penalty"},
      {{"--threads", "0"}, "--threads"},
      {{"--threads", "4x"}, "--threads"},
      {{"--seed", "-1"}, "--seed"},
      {{"--dtype", "f64"}, "--dtype"},
      {{"--device", "tpu"}, "--device"},
      {{"--greedy", "--temperature", "0.5"}, "--greedy"},
      {{"--model"}, "--model"},
      {{"--colour", "blue"}, "--colour"},
      {{"stray"}, "stray"},
  };
  for (const auto& [arguments, part] : cases) {
    SCOPED_TRACE(testing::PrintToString(arguments));
    expect_refused(Arguments{"generate", "--model", kModel, "--prompt", "?"} + arguments, part);
  }
}

TEST(BadOption, Commands) {
  expect_refused({}, "command");
  expect_refused({"prune"}, "prune");
  expect_refused({"tokenize", "--out", "x.json"}, "--in");
  expect_refused({"replay", "--signals", "a", "--layout", "b", "--out", "c"}, "--policy");
}

TEST(BadOutput, IsRefusedBeforeAnyWork) {
  const TemporaryFolder folder;
  expect_refused(Arguments{"generate", "--model", kModel, "--dump", folder / "none/mine"} + kAsk, "none");
  expect_refused({"tokenize", "--model", kModel, "--in", kPicture, "--out", folder / "none/ids.json"}, "none");
  expect_refused(Arguments{"record", "--model", kModel, "--signals", folder / "none/s", "--layout", folder / "l",
                           "--image", kPicture, "--prompt", "?"},
                 "none");
}

// ---- the other commands ----

TEST(BadCases, Tokenize) {
  const TemporaryFolder in, out;
  const std::pair<const char*, const char*> cases[] = {
      {"[{\"text\": ", "cases.json"},
      {"{\"text\": \"a\"}", "list"},
      {"[{\"text\": \"a\"}, {\"words\": \"b\"}]", "[1]"},
      {"[{\"text\": 5}]", "text"},
      {"[\"a\"]", "[0]"},
  };
  for (const auto& [bytes, part] : cases) {
    SCOPED_TRACE(bytes);
    const std::string file = in.write("cases.json", bytes);
    expect_refused({"tokenize", "--model", kModel, "--in", file, "--out", out / "ids.json"}, part);
    EXPECT_TRUE(std::filesystem::is_empty(out.path()));
  }
}

TEST(BadCases, Record) {
  const TemporaryFolder out;
  const Arguments record = {"record",   "--model",      kModel,    "--signals", out / "s.safetensors",
                            "--layout", out / "l.json", "--image", kPicture,    "--prompt",
                            "?"};
  expect_refused(record + Arguments{"--only", "hidden.9"}, "hidden.9");
  expect_refused(record + Arguments{"--only", "smell"}, "smell");
  expect_refused(record + Arguments{"--policy", "bonsai"}, "bonsai");
  EXPECT_TRUE(std::filesystem::is_empty(out.path()));
}

TEST(BadCases, Replay) {
  const TemporaryFolder in, out;
  const std::string signals = in / "s.safetensors", layout = in / "l.json", result = out / "r.json";
  output_of({"record", "--model", kModel, "--dtype", "f32", "--signals", signals, "--layout", layout, "--image",
             kPicture, "--prompt", "?", "--only", "hidden", "attention.1"});
  const auto refused = [&](const std::string& policy, const std::string& s, const std::string& l,
                           const std::string& part) {
    SCOPED_TRACE(policy + " " + part);
    expect_refused({"replay", "--policy", policy, "--signals", s, "--layout", l, "--out", result}, part);
    EXPECT_TRUE(std::filesystem::is_empty(out.path()));
  };
  output_of({"replay", "--policy", "fastv:keep_ratio=1/2,layer=2", "--signals", signals, "--layout", layout, "--out",
             in / "r.json"});
  refused("fastv:keep_ratio=1/2,layer=4", signals, layout, "attention.3");
  refused("fastv:keep_ratio=1/2,layer=12", signals, layout, "layer");
  refused("bonsai", signals, layout, "bonsai");
  refused("fastv:keep_ratio=1/2", in / "none", layout, "none");
  refused("fastv:keep_ratio=1/2", signals, in / "none", "none");
  refused("fastv:keep_ratio=1/2", layout, layout, "l.json");
  refused("fastv:keep_ratio=1/2", signals, in.write("cut.json", read_whole(layout).substr(0, 40)), "cut.json");
  json gap = read_json(layout);
  gap["segments"][1]["begin"] = gap["segments"][1]["begin"].get<int>() + 1;
  refused("fastv:keep_ratio=1/2", signals, in.write("gap.json", gap.dump()), "gap.json");
  json longer = read_json(layout);
  longer["num_tokens"] = longer["num_tokens"].get<int>() + 1;
  longer["segments"].back()["end"] = longer["num_tokens"];
  refused("fastv:keep_ratio=1/2", signals, in.write("longer.json", longer.dump()), "attention.1");
}

}  // namespace
}  // namespace espalier::test
