// SPDX-License-Identifier: Apache-2.0
#include "runtime/costs_file.h"

#include <pwd.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "base/error_text.h"
#include "base/json_fields.h"
#include "base/json_file.h"
#include "base/output_file.h"
#include "base/sha256.h"
#include "espalier/error.h"
#include "runtime/known_costs.h"

namespace espalier {

namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr std::string_view kFormat = "espalier costs";
constexpr int64_t kVersion = 1;
constexpr const char* kName = "espalier-costs.json";

// The value behind the colon of the first line that begins with `key`.
std::string value_in(const fs::path& file, std::string_view key) {
  std::ifstream lines(file);
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with(key)) continue;
    const size_t begin = line.find_first_not_of(" \t", line.find(':') + 1);
    return begin == std::string::npos ? std::string() : line.substr(begin);
  }
  return {};
}

fs::path cache_file(const std::string& model) {
  const passwd* user = getpwuid(getuid());
  if (!user || !user->pw_dir || !*user->pw_dir) return {};
  return fs::path(user->pw_dir) / ".cache" / "espalier" / ("costs-" + model.substr(0, 32) + ".json");
}

template <typename Of>
Json costs_of_terms(const StageCosts& costs, std::span<const CostTerm<Of>> terms) {
  Json json = Json::object();
  for (size_t i = 0; i < terms.size(); ++i) json[terms[i].name] = costs.of_term[i];
  return json;
}

template <typename Of>
StageCosts read_terms(const JsonFields& fields, std::span<const CostTerm<Of>> terms) {
  StageCosts costs;
  for (const CostTerm<Of>& term : terms) {
    costs.of_term.push_back(fields.number_at(term.name));
    if (costs.of_term.back() < 0) fields.fail(term.name, "milliseconds from 0 up");
  }
  return costs;
}

MeasuredCosts read_measured(const JsonFields& fields) {
  MeasuredCosts measured;
  measured.setup.dtype = fields.string_at("dtype");
  measured.setup.device = fields.string_at("device");
  measured.setup.threads = static_cast<int>(fields.integer_at("threads", 1, 1024));
  measured.passes = fields.integer_at("passes", 1);
  measured.median_error = fields.number_at("median_error");
  measured.model.encode = read_terms(fields.object_at("encode"), encode_terms());
  measured.model.prefill = read_terms(fields.object_at("prefill"), prefill_terms());
  const JsonFields select = fields.object_at("select");
  for (const auto& [policy, terms] : select.value().items())
    measured.model.select[policy] = read_terms(select.object_at(policy), select_terms());
  return measured;
}

// Nothing where it is, or what is wrong with it.
std::string mismatch(const CostsFile& costs, const std::string& model) {
  if (costs.model != model) return "was measured with another model";
  if (costs.machine != name_of_machine())
    return "was measured on another machine (" + costs.machine + "; this is " + name_of_machine() + ")";
  return {};
}

void write(const fs::path& file, const CostsFile& costs) {
  OutputFile out(file);
  out.write(costs_json(costs));
  out.commit();
}

bool is_of_another_machine(const fs::path& file, const std::string& model) {
  if (!is_there(file)) return false;
  try {
    const CostsFile there = read_costs(file);
    return there.model == model && there.machine != name_of_machine();
  } catch (const Error&) {
    return false;  // broken: replaced
  }
}

// With what the file has for other setups of the same model and machine.
CostsFile merged_into(const fs::path& file, CostsFile costs) {
  if (!is_there(file)) return costs;
  try {
    CostsFile there = read_costs(file);
    if (!mismatch(there, costs.model).empty()) return costs;
    std::erase_if(there.costs, [&](const MeasuredCosts& m) { return m.setup == costs.costs[0].setup; });
    std::ranges::move(there.costs, std::back_inserter(costs.costs));
  } catch (const Error&) {  // broken: replaced
  }
  return costs;
}

}  // namespace

std::string digest_of_model(const fs::path& folder) {
  Sha256 digest;
  digest.add(read_text_file(folder / "config.json"));
  std::map<std::string, uintmax_t> sizes;
  std::error_code none;  // whoever reads the weights complains about them
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, none))
    if (entry.path().extension() == ".safetensors") sizes[entry.path().filename().string()] = entry.file_size(none);
  for (const auto& [name, size] : sizes) digest.add("\n" + name + " " + std::to_string(size));
  return digest.hex();
}

std::string name_of_machine() {
  std::string name = value_in("/proc/cpuinfo", "model name");
  if (name.empty()) name = "unknown processor";
  name += " x " + std::to_string(sysconf(_SC_NPROCESSORS_ONLN));
  std::error_code none;
  for (const fs::directory_entry& card : fs::directory_iterator("/proc/driver/nvidia/gpus", none))
    name += ", " + value_in(card.path() / "information", "Model");
  return name;
}

CostsFile read_costs(const fs::path& file) {
  const nlohmann::json json = read_json_file(file);
  const std::string name = file.string();
  const JsonFields fields(json, name);
  if (fields.string_at("format") != kFormat) fields.fail("format", "\"" + std::string(kFormat) + "\"");
  fields.integer_at("version", kVersion, kVersion);
  CostsFile costs{.model = fields.string_at("model"), .machine = fields.string_at("machine"), .costs = {}};
  for (const JsonFields& measured : fields.objects_at("costs")) costs.costs.push_back(read_measured(measured));
  return costs;
}

std::string costs_json(const CostsFile& costs) {
  Json list = Json::array();
  for (const MeasuredCosts& m : costs.costs) {
    Json select = Json::object();
    for (const auto& [policy, of_policy] : m.model.select) select[policy] = costs_of_terms(of_policy, select_terms());
    list.push_back({{"dtype", m.setup.dtype},
                    {"device", m.setup.device},
                    {"threads", m.setup.threads},
                    {"passes", m.passes},
                    {"median_error", m.median_error},
                    {"encode", costs_of_terms(m.model.encode, encode_terms())},
                    {"prefill", costs_of_terms(m.model.prefill, prefill_terms())},
                    {"select", select}});
  }
  const Json json = {
      {"format", kFormat}, {"version", kVersion}, {"model", costs.model}, {"machine", costs.machine}, {"costs", list}};
  return json.dump(1) + "\n";
}

fs::path save_costs(const fs::path& folder, const fs::path& file, MeasuredCosts measured) {
  CostsFile costs{.model = digest_of_model(folder), .machine = name_of_machine(), .costs = {}};
  costs.costs.push_back(std::move(measured));
  const auto save = [&](const fs::path& where) {
    write(where, merged_into(where, costs));
    return where;
  };
  if (!file.empty()) return save(file);
  std::string why = "another machine's costs lie there";
  if (!is_of_another_machine(folder / kName, costs.model)) {
    try {
      return save(folder / kName);
    } catch (const Error& error) {
      why = error.what();
    }
  }
  const fs::path cache = cache_file(costs.model);
  if (cache.empty()) throw Error((folder / kName).string() + ": " + why + ", and the user has no home folder");
  fs::create_directories(cache.parent_path());
  return save(cache);
}

const CostModel& KnownCosts::with_threads(int threads) const {
  const std::string how = "; espalier calibrate measures what a pass takes on this machine";
  if (by_threads.empty()) throw Error("ttft: " + missing + how);
  const auto found = by_threads.find(threads);
  if (found == by_threads.end())
    throw Error("ttft: " + std::to_string(threads) + " threads were not measured" + how + " (--threads)");
  return *found->second;
}

KnownCosts find_costs(const fs::path& folder, const fs::path& file, const std::string& dtype,
                      const std::string& device) {
  KnownCosts known{.dtype = dtype, .device = device, .by_threads = {}, .missing = {}};
  const std::string model = digest_of_model(folder);
  std::vector<fs::path> places = {folder / kName, cache_file(model)};
  if (!file.empty()) places = {file};
  for (const fs::path& place : places) {
    if (place.empty() || (file.empty() && !is_there(place))) continue;
    std::string wrong;
    try {
      CostsFile costs = read_costs(place);
      wrong = mismatch(costs, model);
      for (MeasuredCosts& m : costs.costs)
        if (wrong.empty() && m.setup.dtype == dtype && m.setup.device == device)
          known.by_threads[m.setup.threads] = std::make_shared<const CostModel>(std::move(m.model));
      if (!known.by_threads.empty()) return known;
      if (wrong.empty()) wrong = "has no costs of " + dtype + " on " + device;
      wrong = place.string() + " " + wrong;
    } catch (const Error& error) {
      wrong = error.what();
    }
    if (known.missing.empty()) known.missing = wrong;
  }
  if (known.missing.empty()) known.missing = "this model was not measured on this machine";
  return known;
}

}  // namespace espalier
