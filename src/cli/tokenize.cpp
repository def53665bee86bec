// SPDX-License-Identifier: Apache-2.0
#include <CLI/App.hpp>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>

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
  std::optional<std::string> text;
};

void add_ids(const Tokenizer& tokenizer, const std::string& text, nlohmann::ordered_json& one) {
  const std::vector<int32_t> plain = tokenizer.encode(text, /*add_special=*/false);
  one["ids"] = tokenizer.encode(text);
  one["ids_no_special"] = plain;
  one["decoded"] = tokenizer.decode(plain);
  one["decoded_skip_special"] = tokenizer.decode(plain, /*skip_special=*/true);
}

// A token per line: its id, and the text that it stands for, as JSON.
void print_tokens(const Tokenizer& tokenizer, const std::string& text) {
  std::string table;
  size_t begin = 0;
  for (const Tokenizer::Token& token : tokenizer.encode_with_ends(text)) {
    const std::string_view own = std::string_view(text).substr(begin, token.end - begin);
    const std::string shown = token.end > begin ? std::string(own) : tokenizer.decode(std::span(&token.id, 1));
    table += std::to_string(token.id) + "\t" +
             nlohmann::json(shown).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
    begin = token.end;
  }
  std::fputs(table.c_str(), stdout);
}

ExitStatus tokenize(const TokenizeOptions& options) {
  const std::filesystem::path folder = options.model.empty() ? bundled_model() : options.model;
  if (options.text.has_value() == (!options.in.empty() || !options.out.empty()) ||
      options.in.empty() != options.out.empty())
    throw Error("tokenize: either TEXT or both of --in and --out are needed");
  if (options.text) {
    print_tokens(Tokenizer::load(folder), *options.text);
    return kDone;
  }
  check_output_folder(options.out);
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
  app.add_option_function<std::string>(
         "TEXT", [options](const std::string& text) { options->text = text; },
         "What to tokenize; prints a token per line: its id, and the text that it stands for")
      ->type_name("");
  app.add_option("--in", options->in, "In place of TEXT: JSON list of {\"text\": …}")->type_name("FILE");
  app.add_option("--out", options->out,
                 "The same list with ids, ids_no_special, decoded and decoded_skip_special added")
      ->type_name("FILE");
  app.footer(
      "ids begin with what the tokenizer puts in front (<s>), ids_no_special do not; decoded is made from the "
      "latter.\n\n"
      "  espalier tokenize \"What is on the sofa?\"\n"
      "  espalier tokenize --model llava-1.5-7b-hf --in cases.json --out ids.json");
  return [options] { return tokenize(*options); };
}

}  // namespace espalier::cli
