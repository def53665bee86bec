// SPDX-License-Identifier: Apache-2.0
#include "cli/number_option.h"

#include <CLI/App.hpp>
#include <charconv>
#include <optional>
#include <sstream>
#include <utility>

#include "espalier/error.h"

namespace espalier::cli {

namespace {

// The whole of `text`, in decimal: CLI11's own conversion takes 010 for eight.
template <class T>
std::optional<T> parse(const std::string& text) {
  T value{};
  const char* end = text.data() + text.size();
  const auto [last, code] = std::from_chars(text.data(), end, value);
  if (code != std::errc() || last != end) return std::nullopt;
  return value;
}

template <class T>
void require(bool is_valid, const std::string& name, const char* kind, const char* low_word, T low, T high,
             const std::string& text) {
  if (is_valid) return;
  std::ostringstream message;
  message << name << ": expected " << kind << ' ' << low_word << ' ' << low;
  if (high != std::numeric_limits<T>::max()) message << " up to " << high;
  message << ", got \"" << text << '"';
  throw Error(message.str());
}

}  // namespace

CLI::Option* add_integer(CLI::App& app, const std::string& name, IntegerRange range, std::function<void(int64_t)> set,
                         const std::string& description) {
  const auto take = [=, set = std::move(set)](const std::string& text) {
    const std::optional<int64_t> value = parse<int64_t>(text);
    const bool is_valid = value && *value >= range.low && *value <= range.high;
    require(is_valid, name, "a whole number", "from", range.low, range.high, text);
    set(*value);
  };
  return app.add_option_function<std::string>(name, take, description)->type_name("N");
}

CLI::Option* add_integers(CLI::App& app, const std::string& name, IntegerRange range,
                          std::function<void(std::vector<int64_t>)> set, const std::string& description) {
  const auto take = [=, set = std::move(set)](const std::string& text) {
    std::vector<int64_t> values;
    for (size_t begin = 0, comma = 0; comma != std::string::npos; begin = comma + 1) {
      comma = text.find(',', begin);
      const std::optional<int64_t> value = parse<int64_t>(text.substr(begin, comma - begin));
      if (!value || *value < range.low || *value > range.high)
        throw Error(name + ": expected whole numbers from " + std::to_string(range.low) + " up to " +
                    std::to_string(range.high) + ", separated by commas, got \"" + text + "\"");
      values.push_back(*value);
    }
    set(std::move(values));
  };
  return app.add_option_function<std::string>(name, take, description)->type_name("N,...");
}

CLI::Option* add_real(CLI::App& app, const std::string& name, RealRange range, std::function<void(double)> set,
                      const std::string& description) {
  const auto take = [=, set = std::move(set)](const std::string& text) {
    const std::optional<double> value = parse<double>(text);
    const bool is_valid = value && (*value > range.low || (range.takes_low && *value == range.low)) &&
                          *value <= range.high;  // not a number is none of these
    require(is_valid, name, "a number", range.takes_low ? "from" : "above", range.low, range.high, text);
    set(*value);
  };
  return app.add_option_function<std::string>(name, take, description)->type_name("X");
}

}  // namespace espalier::cli
