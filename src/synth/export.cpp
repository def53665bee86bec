// SPDX-License-Identifier: Apache-2.0
#include "synth/export.h"

#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>
#include <vector>

#include "base/output_file.h"
#include "espalier/error.h"
#include "pictures/image_encode.h"

namespace espalier::synth {

namespace {

using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

// A folder under another name beside its place, moved there by commit(), else removed with all that is in it.
class OutputFolder {
 public:
  explicit OutputFolder(const fs::path& path) : path_(fs::absolute(path).lexically_normal()) {
    if (!path_.has_filename()) path_ = path_.parent_path();
    std::error_code code;
    if (fs::exists(path_, code) && !(fs::is_directory(path_, code) && fs::is_empty(path_, code)))
      throw Error(path.string() + ": is there already; name a new folder");
    const std::string name = "." + path_.filename().string() + ".partial-";
    remove_left_over(name);
    temporary_ = path_.parent_path() / (name + std::to_string(::getpid()));
    fs::remove_all(temporary_, code);
    fs::create_directories(temporary_, code);
    if (code) fail_to_write(path, code.value());
  }
  ~OutputFolder() {
    std::error_code code;
    if (!temporary_.empty()) fs::remove_all(temporary_, code);
  }
  OutputFolder(const OutputFolder&) = delete;
  OutputFolder& operator=(const OutputFolder&) = delete;

  const fs::path& path() const { return temporary_; }

  void commit() {
    std::error_code code;
    fs::rename(temporary_, path_, code);  // replaces an empty folder
    if (code) fail_to_write(path_, code.value());
    temporary_.clear();
  }

 private:
  // Of runs that were killed: nobody has their numbers any more.
  void remove_left_over(const std::string& name) const {
    std::error_code code;
    std::vector<fs::path> left;
    for (fs::directory_iterator entry(path_.parent_path(), code), end; !code && entry != end; entry.increment(code)) {
      const std::string other = entry->path().filename().string();
      if (!other.starts_with(name)) continue;
      const int process = std::atoi(other.c_str() + name.size());
      if (process > 0 && ::kill(process, 0) != 0 && errno == ESRCH) left.push_back(entry->path());
    }
    for (const fs::path& folder : left) fs::remove_all(folder, code);
  }

  fs::path path_, temporary_;
};

void write(const fs::path& file, std::span<const std::byte> bytes) {
  OutputFile out(file);
  out.write(bytes);
  out.commit();
}
void write(const fs::path& file, const std::string& text) {
  write(file, std::as_bytes(std::span(text)));
}

std::string picture_name(size_t turn) {
  return std::to_string(turn) + ".png";
}

Json messages_json(const Item& item) {
  Json messages = Json::array();
  const auto text = [](const std::string& words) { return Json{{"type", "text"}, {"text", words}}; };
  for (size_t i = 0; i < item.turns.size(); ++i) {
    const Json image = {{"type", "image"}, {"path", picture_name(i)}};
    messages.push_back({{"role", "user"}, {"content", Json::array({image, text(item.turns[i].question)})}});
    if (i + 1 < item.turns.size())
      messages.push_back({{"role", "assistant"}, {"content", Json::array({text(item.turns[i].answer)})}});
  }
  return messages;
}

Json turn_json(const Turn& turn, const std::vector<Cover>& covers) {
  const Scene& scene = turn.scene;
  Json objects = Json::array();
  for (size_t i = 0; i < scene.objects.size(); ++i) {
    const Object& o = scene.objects[i];
    const auto number = static_cast<uint8_t>(i);
    Json& object = objects.emplace_back(Json{{"shape", name_of(o.shape)},
                                             {"colour", name_of(o.colour)},
                                             {"place", name_of(o.place())},
                                             {"patches", patches_showing(covers, {Cover::By::kObject, number})}});
    if (!scene.marks.empty())
      object["mark"] = {{"colour", name_of(scene.marks[i].colour)},
                        {"patches", patches_showing(covers, {Cover::By::kMark, number})}};
  }
  Json json = {{"question", turn.question}, {"answer", turn.answer}, {"scene_seed", scene.seed}};
  if (turn.asked) json["asked_patches"] = patches_showing(covers, *turn.asked);
  for (const Cover thing : turn.needed) json["needed_patches"].push_back(patches_showing(covers, thing));
  json["objects"] = objects;
  if (scene.spot)
    json["spot"] = {{"colour", name_of(scene.spot->colour)}, {"patches", patches_showing(covers, {Cover::By::kSpot})}};
  if (scene.distractor)
    json["distractor"] = {{"shape", name_of(scene.distractor->shape)},
                          {"patches", patches_showing(covers, {Cover::By::kDistractor})}};
  const auto put = [&](const char* name, bool is_there, Cover::By by) {
    if (is_there) json[name] = {{"patches", patches_showing(covers, {by})}};
  };
  put("bars", !scene.bars.empty(), Cover::By::kDistractor);
  put("clutter", !scene.clutter.empty(), Cover::By::kClutter);
  put("windows", scene.screen.has_value(), Cover::By::kWindow);
  put("pointer", scene.screen.has_value(), Cover::By::kPointer);
  return json;
}

// Writes the item's folder; returns its line of the index.
std::string export_item(const Item& item, const Cell& cell, int64_t index, const ExportOptions& options,
                        const fs::path& folder) {
  char number[24];
  std::snprintf(number, sizeof number, "%06lld", static_cast<long long>(index));
  const std::string name = cell.full_name() + "/" + number;
  fs::create_directories(folder / name);
  const int side = options.side.value_or(cell.side), grid = options.grid.value_or(cell.grid);
  Json turns = Json::array();
  for (size_t i = 0; i < item.turns.size(); ++i) {
    const Drawing drawing = draw(item.turns[i].scene, side);
    write(folder / name / picture_name(i), encode_png(drawing.image));
    turns.push_back(turn_json(item.turns[i], patch_covers(drawing, grid, grid)));
  }
  write(folder / name / "messages.json", messages_json(item).dump(1) + "\n");
  return Json{{"item", name},
              {"suite", cell.suite},
              {"cell", cell.name},
              {"split", options.split == Split::kTest ? "test" : "train"},
              {"seed", options.seed},
              {"index", index},
              {"messages", name + "/messages.json"},
              {"answer", item.query().answer},
              {"choices", item.choices},
              {"grid", {grid, grid}},
              {"turns", turns}}
             .dump() +
         "\n";
}

}  // namespace

std::vector<ExportedCell> export_items(const ExportOptions& options, const ExportProgress& progress) {
  OutputFolder folder(options.folder);
  OutputFile index(folder.path() / "index.jsonl");
  std::vector<ExportedCell> exported;
  const int64_t total = options.items * std::ssize(options.cells);
  for (const Cell& cell : options.cells) {
    ItemDigest digest;
    for (int64_t i = 0; i < options.items; ++i) {
      if (progress.should_cancel && progress.should_cancel()) return {};
      const Item item = make_item(cell, options.split, options.seed, static_cast<uint64_t>(i), options.difficulty);
      index.write(export_item(item, cell, i, options, folder.path()));
      digest.add(item, cell.side);
      if (progress.show) progress.show(std::ssize(exported) * options.items + i + 1, total);
    }
    exported.push_back({cell.full_name(), options.items, digest.finish()});
  }
  index.commit();
  folder.commit();
  return exported;
}

}  // namespace espalier::synth
