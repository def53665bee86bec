// SPDX-License-Identifier: Apache-2.0
#include <CLI/App.hpp>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/interrupt.h"
#include "cli/number_option.h"
#include "cli/terminal_progress.h"
#include "espalier/error.h"
#include "synth/export.h"

namespace espalier::cli {

namespace {

struct SynthOptions {
  synth::ExportOptions files;
  std::vector<std::string> suites;
  std::string split = "test", difficulty = "hard";
};

ExitStatus synth_items(SynthOptions options) {
  options.files.cells = synth::select_cells(options.suites);
  options.files.difficulty = synth::difficulty_named(options.difficulty);
  if (options.split != "train" && options.split != "test")
    throw Error("--split " + options.split + ": expected train or test");
  options.files.split = options.split == "test" ? synth::Split::kTest : synth::Split::kTrain;
  for (const synth::Cell& cell : options.files.cells) {
    const int side = options.files.side.value_or(cell.side), grid = options.files.grid.value_or(cell.grid);
    if (side % grid != 0)
      throw Error("--side " + std::to_string(side) + ": expected a multiple of --grid, for " + cell.full_name() + " " +
                  std::to_string(grid));
  }
  catch_interrupts();
  TerminalProgress progress;
  const std::vector<synth::ExportedCell> cells = synth::export_items(
      options.files, {.show = [&](int64_t done, int64_t total) { progress.show("synth", done, total); },
                      .should_cancel = [] { return interrupted(); }});
  progress.clear();
  if (cells.empty()) return kInterrupted;
  for (const synth::ExportedCell& cell : cells)
    std::printf("%-24s %6lld items  sha256 %s\n", cell.cell.c_str(), static_cast<long long>(cell.items),
                cell.sha256.c_str());
  return kDone;
}

}  // namespace

Run add_synth(CLI::App& app) {
  const auto options = std::make_shared<SynthOptions>();
  app.add_option("--out", options->files.folder, "Folder to make")->required()->type_name("DIR");
  app.add_option("--suite", options->suites,
                 "single, detail, bind, define, crowded, in-context, screens, or a cell such as bind/shape-2x1; may be "
                 "given several times (the first four, which the bundled model is trained for)")
      ->type_name("NAME");
  app.add_option("--split", options->split, "train or test; they share no scene (test)")->type_name("NAME");
  add_integer(
      app, "--seed", {}, [=](int64_t n) { options->files.seed = static_cast<uint64_t>(n); },
      "Which list of items; published numbers use 0 (0)");
  add_integer(
      app, "--items", {1, 1'000'000}, [=](int64_t n) { options->files.items = n; }, "Items per cell (10)");
  app.add_option("--difficulty", options->difficulty,
                 "plain, clutter (dull strokes), distractor (a grey object), hard (both) (hard)")
      ->type_name("NAME");
  add_integer(
      app, "--side", {28, 1344}, [=](int64_t n) { options->files.side = static_cast<int>(n); },
      "Pixels along a side (56; of crowded, in-context and screens 84)");
  add_integer(
      app, "--grid", {1, 96}, [=](int64_t n) { options->files.grid = static_cast<int>(n); },
      "Patches along a side, for the patch owners in index.jsonl (8; likewise 12)");
  app.footer(
      "Writes pictures as PNG, each item's conversation as messages.json for `espalier generate --chat`, and "
      "index.jsonl "
      "with answers, choices and what covers which patch. Prints the SHA-256 of each cell's texts and pixels.\n\n"
      "  espalier synth --out items --suite bind --items 100\n"
      "  espalier generate --chat items/bind/shape-2x1/000000/messages.json --greedy");
  return [options] { return synth_items(*options); };
}

}  // namespace espalier::cli
