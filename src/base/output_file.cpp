// SPDX-License-Identifier: Apache-2.0
#include "base/output_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <system_error>
#include <utility>

#include "espalier/error.h"

namespace espalier {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail(const fs::path& path, const char* doing, int error) {
  throw Error(path.string() + ": cannot " + doing + ": " + std::generic_category().message(error));
}

// Where a chain of links ends, whether something is there or not.
fs::path end_of_links(fs::path path) {
  constexpr int kMost = 40;  // as Linux counts
  std::error_code failure;
  for (int i = 0; i < kMost && fs::is_symlink(fs::symlink_status(path, failure)); ++i) {
    const fs::path target = fs::read_symlink(path, failure);
    if (failure) break;
    path = target.is_absolute() ? target : path.parent_path() / target;
  }
  return path;
}

// /dev/stdout and the like lead through /proc to what a shell has opened: only the open file itself is it.
bool is_of_the_system(const fs::path& path) {
  const std::string text = path.lexically_normal().string();
  return text.starts_with("/dev/") || text.starts_with("/proc/");
}

int open_special(const fs::path& path) {
  // Without O_NONBLOCK a pipe that nobody reads would be waited for. Behind /dev/stdout may stand a file that has text.
  const int descriptor = ::open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0 && errno == ENXIO) throw Error(path.string() + ": cannot write: nobody reads this pipe");
  if (descriptor < 0) fail(path, "write", errno);
  ::fcntl(descriptor, F_SETFL, ::fcntl(descriptor, F_GETFL) & ~O_NONBLOCK);
  return descriptor;
}

}  // namespace

OutputFile::OutputFile(fs::path path) : path_(std::move(path)) {
  std::error_code code;
  const fs::file_status status = fs::status(path_, code);
  const auto type = status.type();
  if (type == fs::file_type::character || type == fs::file_type::fifo ||
      (fs::exists(status) && is_of_the_system(path_))) {
    descriptor_ = open_special(path_);
    return;
  }
  if (type == fs::file_type::directory) fail(path_, "write", EISDIR);
  if (fs::exists(status) && type != fs::file_type::regular)
    throw Error(path_.string() + ": cannot write: not a regular file");
  target_ = end_of_links(path_);
  // O_EXCL and not mkstemp: the file gets the permissions that the user's umask asks for.
  for (int attempt = 0; descriptor_ < 0; ++attempt) {
    temporary_ = target_;
    temporary_ += ".tmp-" + std::to_string(::getpid()) + "-" + std::to_string(attempt);
    descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (descriptor_ < 0 && (errno != EEXIST || attempt == 100)) {
      const int error = errno;
      temporary_.clear();
      fail(path_, "write", error);
    }
  }
}

OutputFile::~OutputFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void OutputFile::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor_, bytes.data(), bytes.size());
    if (written < 0) {
      if (errno == EINTR) continue;
      fail(path_, "write", errno);
    }
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
}

void OutputFile::write(std::string_view text) {
  write(std::as_bytes(std::span(text.data(), text.size())));
}

void OutputFile::finish() {
  // A full disk over a network may only show when the file is closed.
  if (::close(std::exchange(descriptor_, -1)) != 0) fail(path_, "write", errno);
}

void OutputFile::appear() {
  if (temporary_.empty()) return;
  if (::rename(temporary_.c_str(), target_.c_str()) != 0) fail(path_, "write", errno);
  temporary_.clear();
}

void OutputFile::commit() {
  finish();
  appear();
}

void commit(std::initializer_list<OutputFile*> files) {
  for (OutputFile* file : files) file->finish();
  std::error_code code;
  for (const OutputFile* file : files)  // what may have come to be since the file was opened
    if (fs::is_directory(file->target_, code)) fail(file->path_, "write", EISDIR);
  for (OutputFile* file : files) file->appear();
}

void check_outputs(const std::vector<fs::path>& inputs, const std::vector<fs::path>& outputs) {
  const auto is_same = [](const fs::path& a, const fs::path& b) {
    std::error_code failure;
    if (a.empty() || b.empty()) return false;
    if (fs::equivalent(a, b, failure)) return fs::is_regular_file(a, failure) || fs::is_directory(a, failure);
    const fs::path whole_a = fs::weakly_canonical(end_of_links(a), failure);
    return !failure && whole_a == fs::weakly_canonical(end_of_links(b), failure) && !failure &&
           !fs::exists(whole_a, failure);
  };
  for (size_t i = 0; i < outputs.size(); ++i) {
    for (const fs::path& input : inputs)
      if (is_same(outputs[i], input))
        throw Error(outputs[i].string() + ": would replace " + input.string() + ", which is read");
    for (size_t j = 0; j < i; ++j)
      if (is_same(outputs[i], outputs[j])) throw Error(outputs[i].string() + ": two outputs would be this one file");
  }
}

}  // namespace espalier
