// SPDX-License-Identifier: Apache-2.0
#include "base/json_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>
#include <vector>

#include "base/error_text.h"
#include "espalier/error.h"

namespace espalier {
namespace {

using nlohmann::json;

// nlohmann opens every message with "[json.exception.parse_error.101] ", which says nothing to a user, and quotes as
// much of the text as it has read of a token.
std::string without_tag(std::string_view message) {
  const size_t end = message.starts_with("[json.exception.") ? message.find("] ") : std::string_view::npos;
  if (end != std::string_view::npos) message.remove_prefix(end + 2);
  constexpr size_t kMost = 300;
  return message.size() <= kMost ? std::string(message) : text_of(message.substr(0, kMost), "…");
}

// Builds the value as it is read, so that limits hold before memory is taken.
class Builder final : public json::json_sax_t {
 public:
  Builder(const std::string& name, json& root) : name_(name), root_(root) {}

  bool null() override { return add(nullptr); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(number_integer_t value) override { return add(value); }
  bool number_unsigned(number_unsigned_t value) override { return add(value); }
  bool number_float(number_float_t value, const string_t&) override { return add(value); }
  bool string(string_t& value) override { return add(std::move(value)); }
  bool binary(binary_t& value) override { return add(json::binary(std::move(value))); }  // no JSON text has any
  bool start_object(size_t) override { return open(json::object()); }
  bool start_array(size_t) override { return open(json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(string_t& value) override {
    if (open_.back()->contains(value)) throw Error(text_of(name_, ": key ", in_quotes(value), " appears twice"));
    key_ = std::move(value);
    return true;
  }
  bool parse_error(size_t, const std::string&, const json::exception& error) override {
    throw Error(text_of(name_, ": ", without_tag(error.what())));
  }

 private:
  json* place(json value) {
    if (++values_ > limits::kJsonValues)
      throw Error(text_of(name_, ": more than ", limits::kJsonValues, " values, the most that are read"));
    if (open_.empty()) return &(root_ = std::move(value));
    json& parent = *open_.back();
    if (!parent.is_array()) return &(parent[std::exchange(key_, {})] = std::move(value));
    parent.push_back(std::move(value));
    return &parent.back();
  }
  bool add(json value) { return place(std::move(value)), true; }
  bool open(json value) {
    if (open_.size() == limits::kJsonDepth)
      throw Error(text_of(name_, ": lists and objects in one another more than ", limits::kJsonDepth, " deep"));
    open_.push_back(place(std::move(value)));
    return true;
  }
  bool close() { return open_.pop_back(), true; }

  const std::string& name_;
  json& root_;
  std::vector<json*> open_;  // lists and objects that are being read: the last one grows, so that none moves
  std::string key_;
  size_t values_ = 0;
};

class Descriptor {
 public:
  explicit Descriptor(int descriptor) : descriptor_(descriptor) {}
  ~Descriptor() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return descriptor_; }

 private:
  int descriptor_;
};

[[noreturn]] void fail(const std::filesystem::path& file, const char* doing, int error) {
  throw Error(text_of(file.string(), ": cannot ", doing, ": ", std::generic_category().message(error)));
}

}  // namespace

bool is_there(const std::filesystem::path& file) {
  std::error_code ignored;
  return std::filesystem::symlink_status(file, ignored).type() > std::filesystem::file_type::not_found;
}

bool is_folder(const std::filesystem::path& file) {
  std::error_code ignored;
  return std::filesystem::is_directory(file, ignored);
}

std::string read_text_file(const std::filesystem::path& file, int64_t most) {
  // Not blocking: to open a pipe that nobody writes would wait for ever.
  const Descriptor in(::open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (in.get() < 0 && errno == ENOENT) throw Error(file.string() + ": no such file");
  if (in.get() < 0) fail(file, "open", errno);
  struct stat about {};
  if (::fstat(in.get(), &about) != 0) fail(file, "read", errno);
  if (!S_ISREG(about.st_mode)) throw Error(file.string() + ": not a regular file");
  const auto refuse = [&](int64_t size) {
    throw Error(text_of(file.string(), ": ", size, " bytes, at most ", most, " are read"));
  };
  if (about.st_size > most) refuse(about.st_size);
  // Files of /proc say 0 and have more; a file may grow meanwhile.
  std::string text(static_cast<size_t>(about.st_size) + 1, '\0');
  size_t size = 0;
  for (;;) {
    const ssize_t count = ::read(in.get(), text.data() + size, text.size() - size);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail(file, "read", errno);
    if (count == 0) break;
    size += static_cast<size_t>(count);
    if (static_cast<int64_t>(size) > most) refuse(static_cast<int64_t>(size));
    if (size == text.size()) text.resize(2 * size + 4096);
  }
  text.resize(size);
  return text;
}

json parse_json(std::string_view text, const std::string& name) {
  json root;
  Builder builder(name, root);
  json::sax_parse(text, &builder);
  return root;
}

json read_json_file(const std::filesystem::path& file, int64_t most) {
  return parse_json(read_text_file(file, most), file.string());
}

}  // namespace espalier
