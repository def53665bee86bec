// SPDX-License-Identifier: Apache-2.0
#include "text/chat_template.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "espalier/error.h"
#include "tests/support/folders.h"
#include "tests/support/temporary_folder.h"

namespace espalier {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

const json& golden() {
  static const json content = json::parse(std::ifstream(test::golden_folder() / "chat" / "cases.json"));
  return content;
}

std::vector<Message> messages_of(const json& chat) {
  std::vector<Message> out;
  for (const json& turn : chat) {
    Message message{turn["role"], {}};
    for (const json& part : turn["content"]) {
      if (part["type"] == "text") {
        message.content.push_back(TextPart{part["text"]});
      } else {
        message.content.push_back(ImagePart{});
      }
    }
    out.push_back(std::move(message));
  }
  return out;
}

std::string parse_error(const std::string& source) {
  return error_of([&] { ChatTemplate(source, "t.jinja"); });
}

std::vector<Message> one_turn(const std::string& text) {
  return {{"user", {TextPart{text}}}};
}

TEST(ChatTemplate, RendersWhatJinjaRenders) {
  TemporaryFolder folder;
  folder.write("special_tokens_map.json", golden()["tokens"].dump());
  for (const json& c : golden()["cases"]) {
    SCOPED_TRACE(c["name"].get<std::string>() + " / " + c["chat"].get<std::string>());
    folder.write("chat_template.jinja", golden()["templates"][c["name"].get<std::string>()].get<std::string>());
    const auto messages = messages_of(golden()["chats"][c["chat"].get<std::string>()]);
    const auto render_text = [&] {
      return ChatTemplate::load(folder.path()).render_text(messages, c["add_generation_prompt"]);
    };
    if (c.contains("rejects")) {
      EXPECT_THROW(render_text(), Error);
    } else {
      EXPECT_EQ(render_text(), c["text"].get<std::string>());
    }
  }
}

TEST(ChatTemplate, FindsWhereUserTurnsBegin) {
  TemporaryFolder folder;
  folder.write("special_tokens_map.json", golden()["tokens"].dump());
  size_t checked = 0;
  for (const json& c : golden()["cases"]) {
    if (!c.contains("begins")) continue;
    SCOPED_TRACE(c["name"].get<std::string>() + " / " + c["chat"].get<std::string>());
    folder.write("chat_template.jinja", golden()["templates"][c["name"].get<std::string>()].get<std::string>());
    const auto messages = messages_of(golden()["chats"][c["chat"].get<std::string>()]);
    const RenderedChat rendered = ChatTemplate::load(folder.path()).render(messages, c["add_generation_prompt"]);
    EXPECT_EQ(rendered.example_begins, c["begins"].get<std::vector<size_t>>()) << rendered.text;
    ++checked;
  }
  EXPECT_GT(checked, 100u);
}

TEST(ChatTemplate, FindsTurnsWithoutALoopByThePrefix) {
  const ChatTemplate unrolled(
      "{{ bos_token }}{% if messages | length > 0 %}U:{{ messages[0].content[0].text }}{% endif %}"
      "{% if messages | length > 1 %}A:{{ messages[1].content[0].text }}{% endif %}"
      "{% if messages | length > 2 %}U:{{ messages[2].content[0].text }}{% endif %}",
      "t");
  const std::vector<Message> turns = {
      {"user", {TextPart{"a"}}}, {"assistant", {TextPart{"b"}}}, {"user", {TextPart{"c"}}}};
  EXPECT_EQ(unrolled.render(turns).text, "U:aA:bU:c");
  EXPECT_EQ(unrolled.render(turns).example_begins, (std::vector<size_t>{0, 6}));
  const ChatTemplate backwards("{{ messages | length }}{{ messages[-1].content[0].text }}{{ messages[0].role }}",
                               "b.jinja");
  EXPECT_NE(error_of([&] { backwards.render(turns); }).find("b.jinja: "), std::string::npos);
}

TEST(ChatTemplate, RefusesOtherConstructsByName) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"{% macro f() %}{% endmacro %}", "tag {% macro %}"},
      {"{% raw %}x{% endraw %}", "tag {% raw %}"},
      {"a\n{% include 'x' %}", "line 2: the tag {% include %}"},
      {"a\n\n{% call x() %}", "line 3: the tag {% call %}"},
      {"{% for m in messages %}{% break %}{% endfor %}", "tag {% break %}"},
      {"{% set x %}a{% endset %}", "{% set %} with a body"},
      {"{% for x in y recursive %}{% endfor %}", "recursive"},
      {"{{ x | pprint }}", "filter pprint"},
      {"{{ x is upper }}", "test upper"},
      {"{{ x | selectattr('a', 'sameas', 1) }}", "test sameas"},
      {"{{ strftime_now('%Y') }}", "function strftime_now"},
      {"{{ x.format(1) }}", "method format"},
      {"{{ loop.cycle('a', 'b') }}", "method cycle"},
      {"{{ 1 / 2 }}", "operator /"},
      {"{{ 2 ** 3 }}", "operator **"},
      {"{{ 1.5 }}", "integers"},
      {"{{ x | tojson(indent=2) }}", "tojson with indent="},
      {"{{ x | trim('a') }}", "filter trim with 1 arguments"},
      {"{{ (lambda)() }}", "function lambda"},
      {"{{ 'a'() }}", "calling"},
      {"{{ 'a }}", "not closed"},
      {"{{ a", "not closed"},
      {"{# a", "not closed"},
      {"{{ (1] }}", "unexpected ']'"},
      {"{% if 1 %}", "endif"},
      {"{{ a ! b }}", "unexpected character '!'"}};
  for (const auto& [source, expected] : cases) {
    const std::string error = parse_error(source);
    EXPECT_TRUE(error.starts_with("t.jinja: line ") && error.find(expected) != std::string::npos) << source << "\n"
                                                                                                  << error;
  }
}

TEST(ChatTemplate, SurvivesHostileTemplates) {
  std::string deep, closed, wide = "{{ 1", tags;
  for (int i = 0; i < 100000; ++i) deep += "(", closed += ")", wide += " + 1", tags += "{% if 1 %}";
  EXPECT_NE(parse_error("{{ " + deep + "1" + closed + " }}").find("deep"), std::string::npos);
  EXPECT_NE(parse_error(tags).find("deep"), std::string::npos);
  EXPECT_NE(parse_error(wide + " }}").find("operands"), std::string::npos);
  const ChatTemplate endless(
      "{% for a in range(99999) %}{% for b in range(99999) %}{% set x = 1 %}{% endfor %}{% endfor %}", "t");
  EXPECT_NE(error_of([&] { endless.render_text({}); }).find("without end"), std::string::npos);
  const ChatTemplate doubling(
      "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}", "t");
  EXPECT_NE(error_of([&] { doubling.render_text({}); }).find("too long"), std::string::npos);
}

TEST(ChatTemplate, RaiseExceptionBecomesAnError) {
  const ChatTemplate raising("{{ raise_exception('Roles must ' ~ 'alternate') }}", "dir/chat_template.jinja");
  EXPECT_EQ(error_of([&] { raising.render(one_turn("x")); }), "dir/chat_template.jinja: Roles must alternate");
  const ChatTemplate undefined("a\n{{ nothing.here }}", "t");
  EXPECT_EQ(error_of([&] { undefined.render(one_turn("x")); }), "t: line 2: 'nothing' is undefined");
}

TEST(ChatTemplate, LoadPrefersTheProcessorsFile) {
  TemporaryFolder folder;
  const auto rendered = [&] { return ChatTemplate::load(folder.path()).render_text(one_turn("hi")); };
  EXPECT_NE(error_of(rendered).find("no chat template"), std::string::npos);
  folder.write("tokenizer_config.json", R"({"chat_template": [{"name": "tool_use", "template": "tool"},
      {"name": "default", "template": "list {{ eos_token }}{{ bos_token }}"}],
      "eos_token": {"content": "</s>", "special": true}, "bos_token": null})");
  folder.write("special_tokens_map.json", R"({"bos_token": "<b>", "eos_token": "<other>"})");
  EXPECT_EQ(rendered(), "list </s><b>");
  folder.write("chat_template.jinja", "jinja");
  EXPECT_EQ(rendered(), "jinja");
  folder.write("chat_template.json", R"({"chat_template": "json"})");
  EXPECT_EQ(rendered(), "json");
  folder.write("chat_template.json", R"({"chat_template": 3})");
  EXPECT_NE(error_of(rendered).find("chat_template.json: field \"chat_template\": expected a string"),
            std::string::npos);
  folder.write("chat_template.json", "{");
  EXPECT_NE(error_of(rendered).find("chat_template.json"), std::string::npos);
}

}  // namespace
}  // namespace espalier
