// SPDX-License-Identifier: Apache-2.0
// A pretrained decoder, its own tokenizer with Digits and ByteLevel's use_regex, against Transformers. The folder is
// not in the repository: tests/golden/smollm/make_smollm.sh makes it.
#include <gtest/gtest.h>

#include "tests/cli/run_espalier.h"

namespace espalier::test {
namespace {

using nlohmann::json;

TEST(SmolLm2, AnswersAsTransformersDoes) {
  const std::filesystem::path model = kGolden / "../../.deps/smollm2";
  if (!std::filesystem::exists(model / "model.safetensors"))
    GTEST_SKIP() << "no " << model.lexically_normal() << " (tests/golden/smollm/make_smollm.sh)";
  const json golden = read_json(kGolden / "smollm" / "greedy.json");
  ASSERT_EQ(golden.size(), 10u);
  for (const json& c : golden) {
    SCOPED_TRACE(c["text"].dump());
    const json made = json_of({"generate", "--model", model.string(), "--raw-prompt", c["text"].get<std::string>(),
                               "--greedy", "--ignore-eos", "--max-new-tokens", "48", "--json"});
    EXPECT_EQ(made["prompt_token_ids"], c["ids"]);
    EXPECT_EQ(made["token_ids"], c["tokens"]);
  }
}

}  // namespace
}  // namespace espalier::test
