// SPDX-License-Identifier: Apache-2.0
// Runs the real binary in a process of its own, as a user does, and reads what it left.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/folders.h"
#include "tests/support/temporary_folder.h"

namespace espalier::test {

struct Outcome {
  int status = -1;  // exit status, or 128 + the signal that ended it
  std::string out, err;
};

inline std::string read_whole(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

using Arguments = std::vector<std::string>;

class EspalierProcess {
 public:
  // `input`: what it reads from stdin.
  explicit EspalierProcess(Arguments arguments, const std::string& input = {}) {
    std::ofstream(folder_ / "in", std::ios::binary) << input;
    arguments.insert(arguments.begin(), espalier_binary().string());
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    pid_ = ::fork();
    if (pid_ != 0) return;
    ::dup2(::open((folder_ / "in").c_str(), O_RDONLY), STDIN_FILENO);
    redirect(folder_ / "out", STDOUT_FILENO);
    redirect(folder_ / "err", STDERR_FILENO);
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  ~EspalierProcess() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  EspalierProcess(const EspalierProcess&) = delete;
  EspalierProcess& operator=(const EspalierProcess&) = delete;

  void interrupt() const { ::kill(pid_, SIGINT); }
  void terminate() const { ::kill(pid_, SIGTERM); }
  pid_t pid() const { return pid_; }
  std::string output() const { return read_whole(folder_ / "out"); }  // so far
  std::string errors() const { return read_whole(folder_ / "err"); }

  // Returns false when the process ends, or 60 seconds pass, before it has written to stdout.
  bool wait_for_output() {
    for (int i = 0; i < 6000; ++i) {
      std::error_code code;
      const auto size = std::filesystem::file_size(folder_ / "out", code);
      if (!code && size > 0) return !has_ended();
      if (has_ended()) return false;
      ::usleep(10'000);
    }
    return false;
  }

  Outcome wait() {
    if (!ended_) ::waitpid(pid_, &raw_status_, 0);
    pid_ = -1;
    const int status = WIFEXITED(raw_status_) ? WEXITSTATUS(raw_status_) : 128 + WTERMSIG(raw_status_);
    return {status, read_whole(folder_ / "out"), read_whole(folder_ / "err")};
  }

 private:
  static void redirect(const std::filesystem::path& file, int descriptor) {
    const int opened = ::open(file.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    ::dup2(opened, descriptor);
    ::close(opened);
  }

  bool has_ended() {
    if (!ended_) ended_ = ::waitpid(pid_, &raw_status_, WNOHANG) == pid_;
    return ended_;
  }

  TemporaryFolder folder_;
  pid_t pid_ = -1;
  int raw_status_ = 0;
  bool ended_ = false;
};

inline Outcome run_espalier(Arguments arguments, const std::string& input = {}) {
  return EspalierProcess(std::move(arguments), input).wait();
}

// stdout of a run that must succeed.
inline std::string output_of(Arguments arguments) {
  const Outcome outcome = run_espalier(std::move(arguments));
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  return outcome.out;
}

inline nlohmann::json json_of(Arguments arguments) {
  return nlohmann::json::parse(output_of(std::move(arguments)), nullptr, /*allow_exceptions=*/false);
}

inline nlohmann::json read_json(const std::filesystem::path& file) {
  return nlohmann::json::parse(read_whole(file), nullptr, /*allow_exceptions=*/false);
}

inline Arguments operator+(Arguments left, const Arguments& right) {
  left.insert(left.end(), right.begin(), right.end());
  return left;
}

inline const std::filesystem::path kGolden = golden_folder();
inline const std::filesystem::path kModel = kGolden / "llava15";
inline const std::filesystem::path kCases = kModel / "cases";

}  // namespace espalier::test
