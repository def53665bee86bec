// SPDX-License-Identifier: Apache-2.0
// What `espalier bench` shows of its measurements: a table for the terminal, with what its columns mean, and JSON.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "cli/bench_runs.h"
#include "runtime/machine_rates.h"

namespace espalier::cli {

// The machine while it was measured.
struct BenchMachine {
  MachineRates rates = {};
  double load_average = 0;  // over the minute before the first run: what other programs did
  int processors = 0;
};

// What the columns mean.
std::string bench_legend();
// Machine and threads: above the first table.
std::string bench_heading(const BenchResult& first, const BenchMachine& machine);
std::string bench_table(const BenchSetting& setting, const BenchResult& result, const BenchMachine& machine);

// One line for each policy, with its end; `head`: how JSON outputs begin (result_json.h).
std::string bench_json(const BenchSetting& setting, const BenchResult& result, const BenchMachine& machine,
                       const nlohmann::ordered_json& head);

}  // namespace espalier::cli
