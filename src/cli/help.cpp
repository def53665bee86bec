// SPDX-License-Identifier: Apache-2.0
#include "cli/help.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <CLI/App.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <sstream>
#include <string_view>
#include <utility>
#include <vector>

#include "base/closest.h"
#include "base/error_text.h"

namespace espalier::cli {

namespace {

constexpr size_t kIndent = 26;  // where descriptions of options begin

size_t columns(std::string_view text) {  // of UTF-8
  return static_cast<size_t>(std::ranges::count_if(text, [](char c) { return (c & 0xC0) != 0x80; }));
}

// The words of `text` in lines of `width` columns, the first of which has `used` columns already; the others begin
// with `indent` spaces. A word that is longer than a line stands alone on one.
std::string wrapped(std::string_view text, size_t width, size_t used, size_t indent) {
  std::string out;
  bool is_first = true;
  std::istringstream words{std::string(text)};
  for (std::string word; words >> word;) {
    const size_t length = columns(word);
    if (!is_first && used + 1 + length > width) {
      out += "\n" + std::string(indent, ' ');
      used = indent;
    } else if (!is_first) {
      out += " ";
      ++used;
    }
    out += word;
    used += length;
    is_first = false;
  }
  return out;
}

std::string paragraphs(const std::string& text, size_t width) {
  std::string out, paragraph;
  const auto end_paragraph = [&] {
    if (!paragraph.empty()) out += wrapped(paragraph, width, 0, 0) + "\n";
    paragraph.clear();
  };
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (!line.empty() && line.front() != ' ') {
      paragraph += line + " ";
      continue;
    }
    end_paragraph();
    out += line + "\n";
  }
  end_paragraph();
  return out;
}

class HelpFormatter final : public CLI::Formatter {
 public:
  explicit HelpFormatter(int width) : width_(static_cast<size_t>(width)) {}

  std::string make_option(const CLI::Option* option, bool is_positional) const override {
    return entry(make_option_name(option, is_positional) + make_option_opts(option), make_option_desc(option));
  }
  std::string make_subcommand(const CLI::App* command) const override {
    return entry(command->get_name(), command->get_description());
  }
  std::string make_description(const CLI::App* app) const override {
    return paragraphs(app->get_description(), width_);
  }
  std::string make_footer(const CLI::App* app) const override { return paragraphs(app->get_footer(), width_); }

 private:
  std::string entry(const std::string& name, const std::string& description) const {
    std::string text = "  " + wrapped(name, width_, 2, 6);
    const size_t indent = std::min(kIndent, width_ / 3);
    size_t used = columns(text);
    if (used + 2 > indent) {
      text += "\n";
      used = 0;
    }
    if (used < indent) text += std::string(indent - used, ' ');
    return text + wrapped(description, width_, indent, indent) + "\n";
  }

  size_t width_;
};

std::vector<std::string> options_of(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options())
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  return names;
}

std::vector<const CLI::App*> commands_of(const CLI::App& app) {
  return app.get_subcommands([](const CLI::App*) { return true; });
}

std::vector<std::string> names_of(const std::vector<const CLI::App*>& commands) {
  std::vector<std::string> names;
  for (const CLI::App* command : commands) names.push_back(command->get_name());
  return names;
}

std::string suggestion(const std::string& word, const std::vector<std::string>& known) {
  return did_you_mean(word, std::vector<std::string_view>(known.begin(), known.end()));
}

const CLI::App* given_command(const CLI::App& app) {
  const std::vector<CLI::App*> given = app.get_subcommands();
  return given.empty() ? nullptr : given.front();
}

}  // namespace

int help_width() {
  winsize size{};
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
  return std::clamp<int>(size.ws_col, 40, 100);
}

std::shared_ptr<CLI::FormatterBase> help_formatter(int width) {
  return std::make_shared<HelpFormatter>(width);
}

const CLI::App* find_command(const CLI::App& app, const std::string& name) {
  for (const CLI::App* command : commands_of(app))
    if (command->get_name() == name) return command;
  return nullptr;
}

std::string no_command(const CLI::App& app, const std::string& word) {
  return "there is no command " + in_quotes(word) + suggestion(word, names_of(commands_of(app)));
}

std::optional<std::string> unknown_word(const CLI::App& app) {
  if (const std::vector<std::string> words = app.remaining(); !words.empty()) {
    if (words.front().starts_with("-"))
      return "there is no option " + shown(words.front()) + " before the command" +
             suggestion(words.front(), options_of(app));
    return no_command(app, words.front());
  }
  const CLI::App* command = given_command(app);
  const std::vector<std::string> words = command ? command->remaining() : std::vector<std::string>();
  if (words.empty()) return std::nullopt;
  const std::string& first = words.front();
  if (!first.starts_with("-")) return command->get_name() + ": " + in_quotes(first) + " was not expected";
  const std::string option = first.substr(0, first.find('='));
  return command->get_name() + ": there is no option " + shown(option) + suggestion(option, options_of(*command));
}

std::string help_command(const CLI::App& app) {
  const CLI::App* command = given_command(app);
  return "espalier " + (command ? command->get_name() + " " : std::string()) + "--help";
}

}  // namespace espalier::cli
