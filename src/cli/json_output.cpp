// SPDX-License-Identifier: Apache-2.0
#include "cli/json_output.h"

#include <CLI/App.hpp>
#include <vector>

#include "base/output_file.h"
#include "cli/standard_output.h"
#include "espalier/error.h"

namespace espalier::cli {

void JsonOutput::add_option(CLI::App& app, const std::string& what) {
  const CLI::callback_t take = [this](const CLI::results_t& given) {
    is_wanted_ = true;
    file_ = given.empty() ? "" : given.front();  // CLI11 hands over "" where no value follows
    return true;
  };
  app.add_option("--json", take,
                 "Print JSON, " + what + ", in place of text; with FILE, write it there beside the text")
      ->expected(0, 1)
      ->type_name("[FILE]");
}

void JsonOutput::write(const std::string& text) const {
  if (!is_wanted_) return;
  if (file_.empty()) return print(text);
  write_text(file_, text);
}

void write_text(const std::filesystem::path& file, const std::string& text) {
  OutputFile out(file);
  out.write(text);
  out.commit();
}

}  // namespace espalier::cli
