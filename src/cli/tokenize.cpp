// SPDX-License-Identifier: Apache-2.0
#include <CLI/App.hpp>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "base/json_fields.h"
#include "base/json_file.h"
#include "base/output_file.h"
#include "cli/bundled_model.h"
#include "cli/commands.h"
#include "cli/output_folder.h"
#include "espalier/error.h"
#include "espalier/tokenizer.h"

namespace espalier::cli {

namespace {

struct TokenizeOptions {
  std::filesystem::path model, in, out;
};

void add_ids(const Tokenizer& tokenizer, const std::string& text, nlohmann::ordered_json& one) {
  const std::vector<int32_t> plain = tokenizer.encode(text, /*add_special=*/false);
  one["ids"] = tokenizer.encode(text);
  one["ids_no_special"] = plain;
  one["decoded"] = tokenizer.decode(plain);
  one["decoded_skip_special"] = tokenizer.decode(plain, /*skip_special=*/true);
}

ExitStatus tokenize(const TokenizeOptions& options) {
  check_output_folder(options.out);
  const std::filesystem::path folder = options.model.empty() ? bundled_model() : options.model;
  const std::vector<std::filesystem::path> inputs = {options.in, folder / "tokenizer.json"};
  espalier::check_outputs(inputs, {options.out});
  const nlohmann::json cases = read_json_file(options.in);
  if (!cases.is_array()) throw Error(options.in.string() + ": expected a list of {\"text\"}");
  const Tokenizer tokenizer = Tokenizer::load(folder);
  nlohmann::ordered_json out = nlohmann::ordered_json::array();
  for (size_t i = 0; i < cases.size(); ++i) {
    const std::string place = options.in.string() + ": [" + std::to_string(i) + "]";
    const JsonFields fields(cases[i], place);
    const std::optional<std::string> text = fields.string("text");
    if (!text) fields.fail("text", "a string");
    nlohmann::ordered_json one = cases[i];
    add_ids(tokenizer, *text, one);
    out.push_back(std::move(one));
  }
  OutputFile file(options.out);
  file.write(out.dump(1) + "\n");
  file.commit();
  return kDone;
}

}  // namespace

Run add_tokenize(CLI::App& app) {
  const auto options = std::make_shared<TokenizeOptions>();
  app.add_option("--model", options->model, "Folder with tokenizer.json; without it the bundled model")
      ->type_name("DIR");
  app.add_option("--in", options->in, "JSON list of {\"text\": …}")->required()->type_name("FILE");
  app.add_option("--out", options->out,
                 "The same list with ids, ids_no_special, decoded and decoded_skip_special added")
      ->required()
      ->type_name("FILE");
  app.footer(
      "ids begin with what the tokenizer puts in front (<s>), ids_no_special do not; decoded is made from the "
      "latter.\n\n"
      "  espalier tokenize --model llava-1.5-7b-hf --in cases.json --out ids.json");
  return [options] { return tokenize(*options); };
}

}  // namespace espalier::cli
