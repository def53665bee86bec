// SPDX-License-Identifier: Apache-2.0
// How a server is set up.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "serve/http.h"

namespace espalier::serve {

// What one request may ask for; more is refused with 413, or with 400 where it is a number that was written.
struct RequestLimits {
  int64_t text_bytes = 1 << 20;  // of all texts of a request
  int64_t images = 64;
  int64_t pixels = 64'000'000;            // of all its pictures, decoded
  int64_t pixels_together = 512'000'000;  // of all requests that are being answered
  int64_t samples = 16;                   // n
  int64_t stops = 16;
  int64_t stop_bytes = 256;
};

struct ServeOptions {
  std::string host = "127.0.0.1";
  uint16_t port = 8080;  // 0: a free one
  std::string model_name;
  std::string policy = "none";                 // of requests that name none
  std::vector<std::filesystem::path> plugins;  // shared objects whose policies requests may name too
  // What `detail` of a picture stands for, where it is "low".
  std::string low_detail = "divprune:keep_ratio=1/4";
  int64_t max_queue = 256;
  int64_t kv_bytes = 0;
  int64_t prefix_cache_bytes = 0;
  int64_t uuid_bytes = int64_t{256} << 20;  // of pictures that clients may name by their uuid
  std::filesystem::path api_key_file;       // empty: none
  bool no_auth = false;                     // listens beyond this machine without a key
  std::filesystem::path allow_images;       // empty: no files
  bool isolate_users = false;               // `user` separates beginnings and uuids
  HttpLimits http;
  RequestLimits limits;
  std::function<void(std::string_view)> log;  // a line for each request; none: nothing
};

}  // namespace espalier::serve
