// SPDX-License-Identifier: Apache-2.0
// A user's program that knows no tensors: answer MODEL_FOLDER IMAGE prints the answer and its statistics.
#include <espalier/engine.h>
#include <espalier/error.h>
#include <espalier/generation.h>
#include <espalier/prompt.h>

#include <cstdio>
#include <memory>

namespace {

espalier::Request question_about(const char* file) {
  espalier::ImagePart picture;
  picture.image = std::make_shared<const espalier::Image>(espalier::read_image(file));
  espalier::Request request;
  request.prompt = espalier::Chat{{{"user", {picture, espalier::TextPart{"What is in the picture?"}}}}};
  request.options.greedy = true;
  request.options.ignore_eos = true;
  request.options.max_new_tokens = 8;
  return request;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 3) return 2;
  const espalier::Engine engine = espalier::Engine::load(argv[1]);
  espalier::Request request = question_about(argv[2]);
  const espalier::Result unpruned = engine.generate(request);
  request.policy = "fastv:keep_ratio=1/4,layer=2";
  const espalier::Result pruned = engine.generate(request);

  std::printf("answer: %s\n", unpruned.text.c_str());
  std::printf("tokens: %zu, kept %zu, with fastv %zu\n", unpruned.token_ids.size(), unpruned.kept.size(),
              pruned.kept.size());
  const bool as_asked = unpruned.token_ids.size() == 8 && unpruned.stats.image_tokens.size() == 1 &&
                        4 * static_cast<int64_t>(pruned.kept.size()) == unpruned.stats.image_tokens[0];
  return as_asked ? 0 : 1;
} catch (const espalier::Error& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 2;
}
