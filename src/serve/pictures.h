// SPDX-License-Identifier: Apache-2.0
// Where the pictures of a request come from: data URIs, files below one folder, and pictures that were sent before and
// are named by their uuid. Nothing is fetched from elsewhere.
#pragma once

#include <atomic>
#include <filesystem>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "espalier/prompt.h"
#include "serve/json_object.h"
#include "serve/options.h"

namespace espalier::serve {

// Pictures by uuid, least recently used first to go. Thread-safe.
class NamedPictures {
 public:
  explicit NamedPictures(int64_t max_bytes) : max_bytes_(max_bytes) {}
  std::shared_ptr<const Image> find(const std::string& name);
  void keep(const std::string& name, const std::shared_ptr<const Image>& image);  // in place of one of this name

 private:
  struct Entry {
    std::string name;
    std::shared_ptr<const Image> image;
  };
  void drop(std::list<Entry>::iterator entry);

  std::mutex mutex_;
  int64_t max_bytes_, bytes_ = 0;
  std::list<Entry> entries_;  // last used first
  std::map<std::string, std::list<Entry>::iterator> places_;
};

// One `image_url` part, and what it says about its tokens.
struct Picture {
  ImagePart part;
  std::string pruning;  // spec of its own policy; empty: the request's
};

// The pictures of one request, counted.
class PictureReader {
 public:
  struct Shared {
    NamedPictures named;
    std::atomic<int64_t> pixels = 0;  // of all requests
  };
  // `salt` separates uuids of users.
  PictureReader(const ServeOptions& options, Shared& shared, std::string salt);

  // `part`: {"type": "image_url", …}, whose other fields are left to refuse_unknown. Throws ApiError.
  Picture read(JsonObject& part);
  // To be held as long as the request lives.
  std::shared_ptr<void> counted() const { return counted_; }

 private:
  std::shared_ptr<const Image> decode(const std::string& url, const std::string& param);
  std::vector<std::byte> read_file(const std::string& url, const std::string& param) const;
  void count(const Image& image, const std::string& param);

  const ServeOptions& options_;
  Shared& shared_;
  const std::string salt_;
  int64_t images_ = 0, pixels_ = 0;
  std::shared_ptr<std::atomic<int64_t>> own_pixels_;
  std::shared_ptr<void> counted_;
};

}  // namespace espalier::serve
