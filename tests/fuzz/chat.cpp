// SPDX-License-Identifier: Apache-2.0
#include <string>
#include <vector>

#include "espalier/prompt.h"
#include "tests/fuzz/scratch.h"
#include "tests/fuzz/targets.h"
#include "text/chat_template.h"

namespace espalier::fuzz {

void run_chat_template(std::string_view source) {
  static const Chat shots = in_context_chat(
      std::vector<Example>{{{}, "What is this?", "a cat"}, {{}, "And this?", "a dog"}}, {}, "Which of them?");
  static const Chat words{{{"system", {TextPart{"Be brief."}}}, {"user", {TextPart{"One?"}}}}};
  may_refuse([&] {
    const ChatTemplate chat_template(std::string(source), "template");
    for (const Chat& chat : {shots, words})
      may_refuse([&] {
        const RenderedChat rendered = chat_template.render(chat.messages);
        size_t begin = 0;
        for (const size_t example : rendered.example_begins) {
          expect(example >= begin && example <= rendered.text.size(), "examples begin in order, inside the text");
          begin = example;
        }
        expect(rendered.text == chat_template.render_text(chat.messages), "the text is the same with its examples");
      });
  });
}

void run_messages(std::string_view messages_json) {
  static const bool has_picture = [] {
    std::filesystem::copy_file(source_folder() / "tests/golden/images/gray_1bit.png", scratch_folder() / "0.png");
    return true;
  }();
  static_cast<void>(has_picture);
  const std::filesystem::path file = write_scratch("messages.json", messages_json);
  may_refuse([&] { static_cast<void>(read_chat(file)); });
}

}  // namespace espalier::fuzz
