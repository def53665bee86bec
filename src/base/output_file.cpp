// SPDX-License-Identifier: Apache-2.0
#include "base/output_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>

#include "espalier/error.h"

namespace espalier {
namespace {

namespace fs = std::filesystem;

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
  if (descriptor < 0) fail_to_write(path, errno);
  ::fcntl(descriptor, F_SETFL, ::fcntl(descriptor, F_GETFL) & ~O_NONBLOCK);
  return descriptor;
}

// The file of that name, empty: made, or left behind by a process that was killed. -1 where another has it.
int open_temporary(const fs::path& temporary, const fs::path& path) {
  constexpr int kFlags = O_WRONLY | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
  constexpr mode_t kMode = 0666;  // of which the user's umask takes away
  for (;;) {
    int descriptor = ::open(temporary.c_str(), kFlags | O_EXCL, kMode);
    const bool is_new = descriptor >= 0;
    if (!is_new && errno == EEXIST) descriptor = ::open(temporary.c_str(), kFlags, kMode);
    struct stat named = {}, opened = {};
    if (descriptor < 0) {
      const int error = errno;
      if (::lstat(temporary.c_str(), &named) == 0) return -1;
      fail_to_write(path, error);
    }
    // On a file system without locks nobody knows whose a file is that was there before.
    const bool is_mine = ::flock(descriptor, LOCK_EX | LOCK_NB) == 0 || (is_new && errno != EWOULDBLOCK);
    const bool is_ordinary = ::fstat(descriptor, &opened) == 0 && S_ISREG(opened.st_mode) &&
                             opened.st_uid == ::geteuid() && opened.st_nlink <= 1;
    // Whoever had it may have renamed or removed it before it was locked here.
    const bool is_there =
        ::lstat(temporary.c_str(), &named) == 0 && named.st_ino == opened.st_ino && named.st_dev == opened.st_dev;
    if (is_mine && is_ordinary && is_there && ::ftruncate(descriptor, 0) == 0) return descriptor;
    ::close(descriptor);
    if (is_there || !is_mine) return -1;
  }
}

}  // namespace

void fail_to_write(const fs::path& file, int error) {
  const std::string message = file.string() + ": cannot write: " + std::generic_category().message(error);
  if (error == ENOSPC || error == EDQUOT || error == EFBIG || error == EIO) throw std::runtime_error(message);
  throw Error(message);
}

OutputFile::OutputFile(fs::path path) : path_(std::move(path)) {
  std::error_code code;
  const fs::file_status status = fs::status(path_, code);
  const auto type = status.type();
  if (type == fs::file_type::character || type == fs::file_type::fifo ||
      (fs::exists(status) && is_of_the_system(path_))) {
    descriptor_ = open_special(path_);
    return;
  }
  if (type == fs::file_type::directory) fail_to_write(path_, EISDIR);
  if (fs::exists(status) && type != fs::file_type::regular)
    throw Error(path_.string() + ": cannot write: not a regular file");
  target_ = end_of_links(path_);
  constexpr int kMostWriters = 100;  // of this file, at the same time
  fs::path temporary;
  for (int i = 0; i < kMostWriters && descriptor_ < 0; ++i) {
    temporary = target_.string() + ".espalier-tmp-" + std::to_string(i);
    descriptor_ = open_temporary(temporary, path_);
  }
  if (descriptor_ < 0)
    throw Error(path_.string() + ": cannot write: others write it, or left " + temporary.string() + " and more behind");
  temporary_ = temporary;
}

OutputFile::~OutputFile() {
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
  close();
}

void OutputFile::close() {
  if (descriptor_ >= 0) ::close(std::exchange(descriptor_, -1));
}

void OutputFile::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor_, bytes.data(), bytes.size());
    if (written < 0) {
      if (errno == EINTR) continue;
      fail_to_write(path_, errno);
    }
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
}

void OutputFile::write(std::string_view text) {
  write(std::as_bytes(std::span(text.data(), text.size())));
}

void OutputFile::finish() {
  // A full disk over a network may only show when a file is closed. It stays open, and with that locked, until it has
  // its name.
  const int second = ::dup(descriptor_);
  if (second < 0 || ::close(second) != 0) fail_to_write(path_, errno);
}

void OutputFile::appear() {
  if (!temporary_.empty()) {
    if (::rename(temporary_.c_str(), target_.c_str()) != 0) fail_to_write(path_, errno);
    temporary_.clear();
  }
  close();
}

void OutputFile::commit() {
  finish();
  appear();
}

void commit(std::initializer_list<OutputFile*> files) {
  for (OutputFile* file : files) file->finish();
  std::error_code code;
  for (const OutputFile* file : files)  // what may have come to be since the file was opened
    if (fs::is_directory(file->target_, code)) fail_to_write(file->path_, EISDIR);
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
