// SPDX-License-Identifier: Apache-2.0
#include "recording/fit.h"

#include <CLI/App.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "base/output_file.h"
#include "cli/commands.h"
#include "cli/interrupt.h"
#include "cli/number_option.h"
#include "cli/prompt_options.h"
#include "cli/terminal_progress.h"
#include "espalier/error.h"
#include "runtime/engine_impl.h"
#include "text/conversations.h"

namespace espalier::cli {

namespace {

struct FitOptions {
  ModelOptions model;
  std::string policy;
  std::filesystem::path data, image_folder, out;
  int64_t samples = 0;  // 0: all
  double reduction = 0.6;
  double eta = 0.003;
  int64_t first_layer = 5;
  std::optional<double> tokens;
};

Calibration calibration_of(const FitOptions& options, const Conversations& data, TerminalProgress& progress) {
  Calibration calibration;
  const auto all = static_cast<int64_t>(data.size());
  calibration.num_prompts = static_cast<size_t>(options.samples > 0 ? std::min(options.samples, all) : all);
  calibration.prompt = [&data](size_t i) { return Prompt(without_last_answer(data.read(i))); };
  calibration.callbacks = watch(progress);
  return calibration;
}

void write_recipe(const std::filesystem::path& file, const std::string& text) {
  OutputFile out(file);
  out.write(text);
  out.commit();
}

void run_fit(const FitOptions& options, const LoadedModel& model, const Calibration& calibration,
             TerminalProgress& progress) {
  if (options.policy == "fitprune") {
    const FitpruneFit fit = fit_fitprune(model, calibration, options.reduction);
    progress.clear();
    write_recipe(options.out, fitprune_recipe_json(model, fit, options.reduction));
    std::printf("saves %.1f %% of the cost of %ld image tokens at alpha %.4f: fitprune:recipe=%s\n",
                100 * fit.fitted.achieved, static_cast<long>(fit.num_visual), fit.fitted.alpha, options.out.c_str());
  } else if (options.policy == "vtw") {
    const VtwFit fit = fit_vtw(model, calibration, options.eta, static_cast<int>(options.first_layer));
    progress.clear();
    write_recipe(options.out, vtw_recipe_json(model, fit, options.eta));
    if (fit.layer == model.facts.num_layers)
      std::fprintf(stderr, "espalier: no layer is within eta %g; the recipe withdraws nothing\n", options.eta);
    std::printf("layer %d of %d: vtw:recipe=%s\n", fit.layer, model.facts.num_layers, options.out.c_str());
  } else {
    const AtpFit fit = fit_atp(model, calibration, options.policy, *options.tokens);
    progress.clear();
    std::printf("%.2f image tokens of a picture on the average over layers: %s\n", fit.mean_tokens, fit.spec.c_str());
  }
}

ExitStatus fit(const FitOptions& options) {
  const bool is_atp = options.policy == "atp" || options.policy.starts_with("atp:");
  if (!is_atp && options.policy != "fitprune" && options.policy != "vtw")
    throw Error("fit: --policy: expected fitprune, vtw or atp with options, got " + options.policy);
  if (is_atp && !options.tokens) throw Error("fit: atp needs --tokens");
  if (is_atp != options.out.empty())
    throw Error(is_atp ? "fit: atp prints a spec; --out is for recipes" : "fit: --out is needed");
  if (!is_atp) {
    check_outputs(options.model, {}, {options.out});
    espalier::check_outputs({options.data}, {options.out});
  }
  const Conversations data(options.data,
                           options.image_folder.empty() ? options.data.parent_path() : options.image_folder);
  catch_interrupts();
  TerminalProgress progress;
  const Engine engine = load_engine(options.model, progress);
  run_fit(options, engine.impl().model, calibration_of(options, data, progress), progress);
  return kDone;
}

}  // namespace

Run add_fit(CLI::App& app) {
  const auto options = std::make_shared<FitOptions>();
  add_model_options(app, options->model);
  app.add_option("--policy", options->policy, "fitprune, vtw, or atp with options but no thresholds")
      ->required()
      ->type_name("NAME");
  app.add_option("--data", options->data,
                 "Prompts: LLaVA's instruction format (.json, .jsonl), or a folder with messages.json files below it")
      ->required()
      ->type_name("FILE");
  app.add_option("--image-folder", options->image_folder, "Where the data's pictures are; by default beside it")
      ->type_name("DIR");
  app.add_option("--out", options->out, "Recipe to write (fitprune, vtw), JSON")->type_name("FILE");
  add_integer(
      app, "--samples", {.low = 1}, [options](int64_t n) { options->samples = n; }, "Only the first N prompts");
  add_real(
      app, "--reduction", {.high = 1}, [options](double r) { options->reduction = r; },
      "fitprune: part of the image tokens' cost to save, 0.6");
  add_real(
      app, "--eta", {}, [options](double eta) { options->eta = eta; },
      "vtw: largest mean divergence of the first answer token, 0.003");
  add_integer(
      app, "--first-layer", {.low = 0, .high = 1 << 20}, [options](int64_t l) { options->first_layer = l; },
      "vtw: first candidate, 5");
  add_real(
      app, "--tokens", {}, [options](double n) { options->tokens = n; },
      "atp: image tokens of a picture wanted on the average over all layers");
  app.footer(
      "The prompts are the conversations without their last answer.\n\n"
      "  espalier fit --policy vtw --data scienceqa.json --samples 20 --out vtw.json\n"
      "  espalier generate --policy vtw:recipe=vtw.json …\n"
      "  espalier fit --policy atp:strategy=redundant --data prompts.jsonl --tokens 144");
  return [options] { return fit(*options); };
}

}  // namespace espalier::cli
