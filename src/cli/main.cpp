// SPDX-License-Identifier: Apache-2.0
#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <cstdio>
#include <exception>
#include <optional>
#include <string>
#include <string_view>

#include "base/error_text.h"
#include "cli/commands.h"
#include "cli/help.h"
#include "cli/interrupt.h"
#include "cli/version.h"
#include "espalier/error.h"
#include "espalier/espalier.h"
#include "espalier/memory.h"
#include "runtime/encode.h"
#include "runtime/out_of_memory.h"

namespace espalier::cli {

namespace {

struct Command {
  const char* name;
  const char* summary;
  Run (*add)(CLI::App& app);
};

constexpr Command kCommands[] = {
    {"generate", "Answer a prompt about pictures, with visual tokens pruned by a policy", add_generate},
    {"chat", "Hold a conversation in the terminal, with pictures in any turn", add_chat},
    {"serve", "Answer requests over HTTP, in the form of OpenAI's chat completions", add_serve},
    {"answer", "Answer a file of benchmark questions about pictures, and go on where a run was cut short", add_answer},
    {"inspect", "Show which visual tokens policies keep, as one HTML page", add_inspect},
    {"tokenize", "Turn texts into token ids and back", add_tokenize},
    {"policies", "List the pruning policies with their options", add_policies},
    {"record", "Run a prompt and write what policies read: attention, hidden states, layout", add_record},
    {"replay", "Run a policy on recorded signals, without a model", add_replay},
    {"bench", "Time encode, select, prefill and decode of an in-context prompt under several policies", add_bench},
    {"synth", "Draw the synthetic in-context benchmark: pictures, chats and what covers which patch", add_synth},
    {"eval", "Measure accuracy on the synthetic benchmark under several policies", add_eval},
    {"calibrate", "Measure what passes take on this machine, for policies with a target of time", add_calibrate},
    {"fit", "Calibrate a policy on a few prompts: recipes of fitprune and vtw, thresholds of atp", add_fit},
    {"train-demo", "Train the bundled model from nothing, stage by stage", add_train_demo},
    {"train-atp", "Train modules of atp, which choose how many visual tokens each picture keeps", add_train_atp},
};

// Messages of other libraries bring stack traces along; the first line says what happened.
void complain(std::string_view message) {
  std::fprintf(stderr, "espalier: %s\n", one_line(message.substr(0, message.find('\n'))).c_str());
}

ExitStatus refuse(const CLI::App& app, const std::string& why) {
  complain(why + "; see " + help_command(app));
  return kBadInput;
}

ExitStatus explain(const CLI::App& app, const std::string& topic) {
  if (topic.empty()) {
    // Not help(), which explains the command that was given: this one.
    std::fputs(app.get_formatter()->make_help(&app, app.get_name(), CLI::AppFormatMode::Normal).c_str(), stdout);
    return kDone;
  }
  const CLI::App* command = find_command(app, topic);
  if (!command) throw Error(no_command(app, topic) + "; see espalier --help");
  std::fputs(command->help("espalier").c_str(), stdout);
  return kDone;
}

ExitStatus run(int argc, char** argv) {
  CLI::App app("Espalier runs LLaVA-style vision-language models with visual-token pruning.", "espalier");
  app.formatter(help_formatter(help_width()));
  app.allow_extras();  // reported here, with what was likely meant
  app.set_version_flag("--version", version_text());
  app.require_subcommand(0, 1);
  app.footer(
      "Each command explains itself, with examples: espalier help COMMAND, or espalier COMMAND --help.\n\n"
      "  espalier generate --image cat.jpg --prompt \"What is on the sofa?\"\n"
      "  espalier policies");
  Run chosen;
  for (const Command& command : kCommands) {
    CLI::App* subcommand = app.add_subcommand(command.name, command.summary);
    const Run run_command = command.add(*subcommand);
    subcommand->parse_complete_callback([&chosen, run_command] { chosen = run_command; });
  }
  std::string topic;
  CLI::App* help = app.add_subcommand("help", "Explain a command");
  help->add_option("COMMAND", topic, "Name of the command; without it all of them are listed");
  help->footer("  espalier help generate");
  help->parse_complete_callback([&] { chosen = [&] { return explain(app, topic); }; });
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& asked) {  // --help, --version
    app.exit(asked);
    return kDone;
  } catch (const CLI::ParseError& error) {
    return refuse(app, unknown_word(app).value_or(Error(error.what()).what()));
  }
  if (const std::optional<std::string> unknown = unknown_word(app)) return refuse(app, *unknown);
  if (!chosen) return refuse(app, "a command is needed");
  return chosen();
}

ExitStatus run_and_report(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const Error& error) {
    complain(error.what());
    return kBadInput;
  } catch (const Interrupted&) {
    return kInterrupted;
  } catch (const Cancelled&) {
    return kInterrupted;
  } catch (const std::exception& error) {
    complain(is_out_of_memory(error) ? OutOfMemory().what() : error.what());
  } catch (...) {
    complain("an unknown failure");
  }
  return kFailed;
}

}  // namespace

}  // namespace espalier::cli

int espalier_command_line(int argc, char** argv) {
  espalier::keep_freed_memory();
  return espalier::cli::run_and_report(argc, argv);
}
