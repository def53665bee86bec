// SPDX-License-Identifier: Apache-2.0
// The shortest program that answers a question about a picture, with half of its tokens pruned inside the decoder.
//   generate MODEL_FOLDER PICTURE QUESTION [POLICY]
#include <cstdio>
#include <memory>

#include "espalier/engine.h"
#include "espalier/error.h"

int main(int argc, char** argv) {
  if (argc < 4) return std::fprintf(stderr, "usage: generate MODEL_FOLDER PICTURE QUESTION [POLICY]\n"), 2;
  try {
    const auto engine = espalier::Engine::load(argv[1]);
    const auto picture = std::make_shared<const espalier::Image>(espalier::read_image(argv[2]));
    espalier::Request request;
    request.prompt = espalier::in_context_chat({}, {.image = picture}, argv[3]);
    request.policy = argc > 4 ? argv[4] : "fastv:keep_ratio=1/2";
    request.options.max_new_tokens = 16;
    const espalier::Result result = engine.generate(request);
    std::printf("%s\n%zu of %ld image tokens reached the last layer\n", result.text.c_str(), result.kept.size(),
                static_cast<long>(result.stats.image_tokens[0]));
  } catch (const espalier::Error& error) {
    return std::fprintf(stderr, "generate: %s\n", error.what()), 2;
  }
}
