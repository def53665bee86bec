// SPDX-License-Identifier: Apache-2.0
// Options that take one number, checked against a range with a message that says what was expected.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace espalier::cli {

struct IntegerRange {
  int64_t low = 0;
  int64_t high = std::numeric_limits<int64_t>::max();
};
CLI::Option* add_integer(CLI::App& app, const std::string& name, IntegerRange range, std::function<void(int64_t)> set,
                         const std::string& description);

// Several of them, separated by commas.
CLI::Option* add_integers(CLI::App& app, const std::string& name, IntegerRange range,
                          std::function<void(std::vector<int64_t>)> set, const std::string& description);

// Above `low` (or from it on) and up to `high`.
struct RealRange {
  double low = 0.0;
  double high = std::numeric_limits<double>::max();
  bool takes_low = false;
};
CLI::Option* add_real(CLI::App& app, const std::string& name, RealRange range, std::function<void(double)> set,
                      const std::string& description);

}  // namespace espalier::cli
