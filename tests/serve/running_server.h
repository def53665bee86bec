// SPDX-License-Identifier: Apache-2.0
// `espalier serve` in a process of its own, on a free port, and what it is asked in tests.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <optional>
#include <string>
#include <thread>

#include "base/base64.h"
#include "espalier/image.h"
#include "pictures/image_encode.h"
#include "tests/cli/run_espalier.h"
#include "tests/serve/http_client.h"
#include "tests/support/sanitized.h"

namespace espalier::test {

using Json = nlohmann::json;

inline const std::string kChat = "/v1/chat/completions";
inline const std::string kCompletions = "/v1/completions";

class RunningServer {
 public:
  explicit RunningServer(const Arguments& more = {}, const std::string& model = "llava15")
      : process_(Arguments{"serve", "--port", "0", "--dtype", "f32", "--model", (kGolden / model).string()} + more) {
    EXPECT_TRUE(process_.wait_for_output()) << process_.errors();
    for (int i = 0; i < 500 && !process_.output().ends_with('\n'); ++i) wait(10);
    const std::string line = process_.output();
    const size_t colon = line.rfind(':');
    EXPECT_NE(colon, std::string::npos) << line << process_.errors();
    if (colon != std::string::npos) port_ = static_cast<uint16_t>(std::stoi(line.substr(colon + 1)));
  }

  uint16_t port() const { return port_; }
  EspalierProcess& process() { return process_; }

  Reply chat(const Json& body) const { return post(port_, kChat, body); }
  // A number of /metrics; nothing when it is not there.
  std::optional<double> metric(const std::string& name) const {
    const std::string text = "\n" + get(port_, "/metrics").body;
    const size_t at = text.find("\n" + name + " ");
    if (at == std::string::npos) return std::nullopt;
    return std::stod(text.substr(at + name.size() + 2));
  }
  // Whether nothing runs any more, at the latest so many seconds from now, or more where a sanitizer is slow.
  bool is_idle_within(double seconds) const {
    const auto until = std::chrono::steady_clock::now() + std::chrono::duration<double>(kPatience * seconds);
    do {
      if (metric("espalier_requests_active") == 0 && metric("espalier_running") == 0 && metric("espalier_queue") == 0)
        return true;
      wait(5);
    } while (std::chrono::steady_clock::now() < until);
    return false;
  }
  // Bytes of memory that the process has.
  int64_t resident() const {
    std::ifstream file("/proc/" + std::to_string(process_.pid()) + "/statm");
    int64_t total = 0, pages = 0;
    file >> total >> pages;
    return pages * ::sysconf(_SC_PAGESIZE);
  }

  static void wait(int milliseconds) { std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds)); }

 private:
  EspalierProcess process_;
  uint16_t port_ = 0;
};

// One server for the tests of a process that only ask.
inline RunningServer& shared_server() {
  static RunningServer server;
  return server;
}

inline std::string image_file(const std::string& name) {
  return (kGolden / "images" / name).string();
}

inline std::string data_uri(const std::string& name) {
  const std::string bytes = read_whole(kGolden / "images" / name);
  return "data:image/png;base64," + base64(std::as_bytes(std::span(bytes)));
}

// A PNG of noise.
inline std::string drawn_uri(int width, int height, unsigned seed = 1) {
  Image image{width, height, std::vector<uint8_t>(size_t{3} * width * height)};
  for (uint8_t& value : image.rgb) value = static_cast<uint8_t>((seed = seed * 1664525U + 1013904223U) >> 24);
  return "data:image/png;base64," + base64(encode_png(image));
}

inline Json text_part(const std::string& text) {
  return {{"type", "text"}, {"text", text}};
}
inline Json image_part(const std::string& url) {
  return {{"type", "image_url"}, {"image_url", {{"url", url}}}};
}
inline Json user(const Json& content) {
  return {{"role", "user"}, {"content", content}};
}
inline Json assistant(const std::string& text) {
  return {{"role", "assistant"}, {"content", text}};
}

// A body for one user turn.
inline Json ask(const Json& content, const Json& more = Json::object()) {
  Json body = {
      {"messages", Json::array({user(content)})}, {"temperature", 0}, {"max_tokens", 12}, {"ignore_eos", true}};
  body.update(more);
  return body;
}

// What `espalier generate --json` answers to a conversation in the Hugging Face form.
inline Json generated(const Json& messages, const Arguments& more, const std::string& model = "llava15") {
  const TemporaryFolder folder;
  const auto file = folder.write("messages.json", messages.dump());
  return json_of(Arguments{"generate", "--json", "--dtype", "f32", "--model", (kGolden / model).string(), "--chat",
                           file.string(), "--ignore-eos", "--max-new-tokens", "12"} +
                 more);
}

// The same conversation, with the pictures by their files.
inline Json with_files(const Json& messages, const std::vector<std::string>& files) {
  Json out = messages;
  size_t next = 0;
  for (Json& message : out) {
    if (!message["content"].is_array()) continue;
    for (Json& part : message["content"])
      if (part["type"] == "image_url") part = {{"type", "image"}, {"path", image_file(files.at(next++))}};
  }
  return out;
}

inline void expect_refused(const Reply& reply, int status, const std::string& code, const std::string& param = {},
                           const std::string& says = {}) {
  EXPECT_EQ(reply.status, status) << reply.body;
  const Json json = reply.json();
  const Json error = json.contains("error") ? json["error"] : Json::object();
  EXPECT_EQ(error.value("code", ""), code) << reply.body;
  EXPECT_FALSE(error.value("message", "").empty());
  EXPECT_TRUE(error.contains("type"));
  EXPECT_TRUE(param.empty() || error["param"] == param) << reply.body;
  EXPECT_NE(error.value("message", "").find(says), std::string::npos) << reply.body;
}

}  // namespace espalier::test
