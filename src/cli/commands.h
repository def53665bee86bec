// SPDX-License-Identifier: Apache-2.0
// The commands of the binary `espalier`. Each function adds its options to a subcommand and returns what runs once they
// are parsed. What a command does lives in the library; these files only read options and print.
#pragma once

#include <functional>

namespace CLI {
class App;
}

namespace espalier::cli {

enum ExitStatus : int { kDone = 0, kFailed = 1, kBadInput = 2, kInterrupted = 130 };

using Run = std::function<ExitStatus()>;

Run add_generate(CLI::App& app);
Run add_chat(CLI::App& app);
Run add_serve(CLI::App& app);
Run add_answer(CLI::App& app);
Run add_tokenize(CLI::App& app);
Run add_policies(CLI::App& app);
Run add_record(CLI::App& app);
Run add_replay(CLI::App& app);
Run add_inspect(CLI::App& app);
Run add_bench(CLI::App& app);
Run add_synth(CLI::App& app);
Run add_eval(CLI::App& app);
Run add_calibrate(CLI::App& app);
Run add_fit(CLI::App& app);
Run add_train_demo(CLI::App& app);
Run add_train_atp(CLI::App& app);

}  // namespace espalier::cli
