// SPDX-License-Identifier: Apache-2.0
// The option --json, which means the same for every command: alone, JSON comes on standard output in place of what
// people read; with a file, it goes there and the text stays.
#pragma once

#include <filesystem>
#include <string>

namespace CLI {
class App;
}

namespace espalier::cli {

class JsonOutput {
 public:
  // `what`: of the JSON, for --help: "one line per policy".
  void add_option(CLI::App& app, const std::string& what);

  bool is_wanted() const { return is_wanted_; }
  bool replaces_text() const { return is_wanted_ && file_.empty(); }
  const std::filesystem::path& file() const { return file_; }  // empty: standard output
  // The whole of it. Does nothing unless it is wanted.
  void write(const std::string& text) const;

 private:
  bool is_wanted_ = false;
  std::filesystem::path file_;
};

// `text` whole, or the file stays as it was.
void write_text(const std::filesystem::path& file, const std::string& text);

}  // namespace espalier::cli
