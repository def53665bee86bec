// SPDX-License-Identifier: Apache-2.0
// Bodies of the server's requests, by all three readers.
#include "serve/api_error.h"
#include "serve/asked.h"
#include "serve/policies.h"
#include "tests/fuzz/scratch.h"
#include "tests/fuzz/targets.h"

namespace espalier::fuzz {

void run_http_body(std::string_view input) {
  serve::ServeOptions options;
  options.model_name = "demo";
  options.allow_images = source_folder() / "tests/golden/images";
  serve::PictureReader::Shared pictures{.named = serve::NamedPictures(1 << 20)};
  serve::Policies policies({});
  const serve::AskedOf of{options, pictures, policies};
  const std::string body(input);
  const auto may_refuse_with_status = [](const auto& read) {
    try {
      may_refuse(read);  // which the server answers with 400
    } catch (const serve::ApiError& error) {
      expect(error.status >= 400 && error.status < 500, "a body is refused as the client's mistake");
      static_cast<void>(serve::body_of(error));
    }
  };
  may_refuse_with_status([&] { static_cast<void>(serve::read_chat_request(body, of)); });
  may_refuse_with_status([&] { static_cast<void>(serve::read_completion_request(body, of)); });
  may_refuse_with_status([&] { static_cast<void>(serve::read_tokenize_request(body, of)); });
  expect(pictures.pixels == 0, "what a refused or forgotten request counted is given back");
}

}  // namespace espalier::fuzz
