// SPDX-License-Identifier: Apache-2.0
// How the command line explains itself: help as wide as the terminal, and words that are not known.
#pragma once

#include <memory>
#include <optional>
#include <string>

namespace CLI {
class App;
class FormatterBase;
}  // namespace CLI

namespace espalier::cli {

// Columns of the terminal that stdout is, from 40 to 100; 80 where it is none.
int help_width();

// Wraps descriptions and options. In footers, lines that begin with a space are examples and stay as they are; the
// others are paragraphs, which an empty line ends.
std::shared_ptr<CLI::FormatterBase> help_formatter(int width);

// What is wrong with the first word that neither `app` nor the command that it was given knows, with the word that was
// likely meant. For an app that lets extras pass, after it has parsed.
std::optional<std::string> unknown_word(const CLI::App& app);

// Of all commands; null for another name.
const CLI::App* find_command(const CLI::App& app, const std::string& name);

// "there is no command "genrate" (did you mean generate?)"
std::string no_command(const CLI::App& app, const std::string& word);

// "espalier generate --help", of the command that was given.
std::string help_command(const CLI::App& app);

}  // namespace espalier::cli
