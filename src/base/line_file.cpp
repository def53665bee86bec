// SPDX-License-Identifier: Apache-2.0
#include "base/line_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "base/json_file.h"
#include "base/output_file.h"
#include "espalier/error.h"

namespace espalier {

LineFile::LineFile(std::filesystem::path file) : file_(std::move(file)) {
  descriptor_ = ::open(file_.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (descriptor_ < 0) fail_to_write(file_, errno);
  try {
    // File systems without locks are written to all the same.
    if (::flock(descriptor_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
      throw Error(file_.string() + ": another process writes it");
    const std::string text = read();
    const size_t whole = text.find_last_of('\n') + 1;  // 0 where there is none
    if (whole < text.size() && ::ftruncate(descriptor_, static_cast<off_t>(whole)) != 0) fail_to_write(file_, errno);
  } catch (...) {
    ::close(descriptor_);
    throw;
  }
}

LineFile::~LineFile() {
  ::close(descriptor_);
}

std::string LineFile::read() const {
  return read_text_file(file_, limits::kDataFileBytes);
}

void LineFile::add(std::string_view line) {
  const off_t before = ::lseek(descriptor_, 0, SEEK_END);
  // One write where the disk has room, so that a kill cannot come between two.
  for (std::string_view left = line; !left.empty();) {
    const ssize_t written = ::write(descriptor_, left.data(), left.size());
    if (written >= 0) {
      left.remove_prefix(static_cast<size_t>(written));
    } else if (const int error = errno; error != EINTR) {
      // Where even that fails, the next run drops the piece of a line.
      static_cast<void>(::ftruncate(descriptor_, before) == 0);
      fail_to_write(file_, error);
    }
  }
}

void LineFile::finish() {
  if (::fsync(descriptor_) != 0 && errno != EINVAL)  // EINVAL: a pipe or the like has no disk
    fail_to_write(file_, errno);
}

}  // namespace espalier
