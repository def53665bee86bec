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
  EXPECT_NE(error_of([&] { endless.render_text({}); }).find("more than 2097152 steps"), std::string::npos);
  const ChatTemplate doubling(
      "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}", "t");
  EXPECT_NE(error_of([&] { doubling.render_text({}); }).find("a text of more than 16777216 bytes"), std::string::npos);
}

// Each of these crashed, ran for minutes or took gigabytes: the limits are those of limits.h.
TEST(ChatTemplate, NoConstructEscapesTheLimits) {
  const auto repeat = [](int times, const std::string& step, const std::string& begin, const std::string& end) {
    return "{% set n = namespace(x=" + begin + ", y=" + begin + ") %}{% for i in range(" + std::to_string(times) +
           ") %}" + step + "{% endfor %}" + end;
  };
  const std::string nest = "{% set n.x = [n.x] %}", share = "{% set n.x = [n.x, n.x] %}{% set n.y = [n.y, n.y] %}";
  const std::string text = repeat(20, "{% set n.x = n.x + n.x %}", "'aaaaaaaa'", "");  // 8 MB
  const std::string steps = "more than 2097152 steps", deep = "in one another more than 100 deep";
  const std::vector<std::pair<std::string, std::string>> cases = {
      {repeat(100000, nest, "[]", "{{ n.x | tojson }}"), deep},
      {repeat(100000, nest, "[]", "ok"), deep},
      {repeat(100000, "{% set n.x = {'a': n.x} %}", "[]", "ok"), deep},
      {repeat(60, share, "[1]", "{{ n.x | tojson }}"), "more than"},
      {repeat(60, share, "[1]", "{{ n.x == n.y }}"), steps},
      {repeat(60, share, "[1]", "{{ n.x in [n.y] }}"), steps},
      {text + "{{ n.x.replace('a', n.x) }}", "a text of more than 16777216 bytes"},
      {text + "{{ range(100000) | join(n.x) }}", "a text of more than 16777216 bytes"},
      {text + "{{ n.x | list }}", "a list of more than 262144 items"},
      {text + "{{ n.x.split('a') }}", "a list of more than 262144 items"},
      {text + "{% for i in range(100000) %}{% if n.x[0] %}{% endif %}{% endfor %}", steps},
      {text + "{% for i in range(100000) %}{% if n.x | length %}{% endif %}{% endfor %}", steps},
      {text + "{% for i in range(100000) %}{% if n.x in n.x %}{% endif %}{% endfor %}", steps},
      {"{% for i in range(100000) if range(100000) | list | length > i %}{% endfor %}", steps},
      {"{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}", steps},
      {repeat(100000, "{% set n.x = n.x + [i] %}", "[]", "ok"), steps},
      {"{% for i in range(100000) %}" + std::string(1000, 'x') + "{% endfor %}", "an output of more than"},
      {std::string((1 << 20) + 1, 'x'), "1048577 bytes, a template has at most 1048576"}};
  for (const auto& [source, expected] : cases) {
    const std::string error = error_of([&, s = source] { ChatTemplate(s, "t").render_text({}); });
    EXPECT_NE(error.find(expected), std::string::npos) << source.substr(0, 120) << "\n" << error;
    EXPECT_LT(error.size(), 200u);
  }
}

// Memory that templates make is freed again, also what holds itself: the sanitizers see to it.
TEST(ChatTemplate, NamespacesMayHoldOneAnother) {
  EXPECT_EQ(ChatTemplate("{% set n = namespace() %}{% set n.a = [n] %}{{ n.a | length }}", "t").render_text({}), "1");
  const ChatTemplate chain(
      "{% set n = namespace(x=none) %}{% for i in range(50000) %}{% set n.x = namespace(y=n.x) %}{% endfor %}ok", "t");
  EXPECT_EQ(chain.render_text({}), "ok");
}

TEST(ChatTemplate, StridesMayBeAsLargeAsNumbersAre) {
  const std::string most = "(900000000000000000*10+223372036854775807)";
  const auto rendered = [](const std::string& source) { return ChatTemplate(source, "t").render_text({}); };
  EXPECT_EQ(rendered("{{ 'abc'[1::" + most + "] }}"), "b");
  EXPECT_EQ(rendered("{{ 'abc'[::-" + most + "-1] }}"), "c");
  EXPECT_EQ(rendered("{% for m in [1,2,3][1::" + most + "] %}{{ m }}{% endfor %}"), "2");
  EXPECT_EQ(rendered("{{ 'aéb日c'[3::-2] }}|{{ 'aéb日c'[-2] }}|{{ ''[::2] }}"), "日é|日|");
  EXPECT_EQ(rendered("{% for i in range(" + most + "-1, " + most + ", 9) %}x{% endfor %}"), "x");
}

// ---- templates for text alone ----

std::vector<Message> about_a_picture() {
  return {{"user", {ImagePart{}, TextPart{"What?"}}}, {"assistant", {TextPart{"This."}}}, {"user", {TextPart{"And?"}}}};
}

TEST(ChatTemplate, TemplatesForTextGetOneStringPerTurn) {
  const std::string loop = "{% for m in messages %}<|{{ m.role }}|>\n";
  const std::vector<std::string> sources = {loop + "{{ m.content }}\n{% endfor %}",
                                            loop + "{{ m['content'] | trim }}\n{% endfor %}",
                                            loop + "{{ '' + m['content'] + '' }}\n{% endfor %}"};
  for (const std::string& source : sources) {
    ChatTemplate made(source, "t");
    EXPECT_TRUE(made.takes_text_only()) << source;
    made.set_placeholder("<img>");
    const RenderedChat rendered = made.render(about_a_picture());
    EXPECT_EQ(rendered.text, "<|user|>\n<img>\nWhat?\n<|assistant|>\nThis.\n<|user|>\nAnd?\n") << source;
    EXPECT_EQ(rendered.example_begins, (std::vector<size_t>{0, rendered.text.rfind("<|user|>")}));
  }
}

TEST(ChatTemplate, TemplatesForListsKeepThem) {
  for (const char* source :
       {"{% for m in messages %}{% for c in m.content %}{{ c.text if c.type == 'text' else '<image>' }}{% endfor %}"
        "{% endfor %}",
        "{% for m in messages %}{% if m.content is string %}S{{ m.content }}{% else %}{% for c in m.content %}"
        "{{ c.text if c.type == 'text' else '<image>' }}{% endfor %}{% endif %}{% endfor %}"}) {
    EXPECT_FALSE(ChatTemplate(source, "t").takes_text_only()) << source;
    EXPECT_EQ(ChatTemplate(source, "t").render_text(about_a_picture()), "<image>What?This.And?");
  }
}

TEST(ChatTemplate, IsReadFromAFileOfItsOwn) {
  const TemporaryFolder folder;
  folder.write("model/tokenizer_config.json", R"({"bos_token": "<s>", "chat_template": "{{ 'own' }}"})");
  const auto jinja = folder.write("t.jinja", "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}");
  const std::vector<Message> messages = {{"user", {TextPart{"Hi"}}}};
  EXPECT_EQ(ChatTemplate::read(jinja, folder / "model").render_text(messages), "<s>Hi");
  const auto json = folder.write("t.json", R"({"chat_template": "{{ bos_token }}json"})");
  EXPECT_EQ(ChatTemplate::read(json, folder / "model").render_text(messages), "<s>json");
  EXPECT_NE(error_of([&] { ChatTemplate::read(folder / "absent.jinja", folder / "model"); }).find("no such file"),
            std::string::npos);
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
