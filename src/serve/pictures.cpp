// SPDX-License-Identifier: Apache-2.0
#include "serve/pictures.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "espalier/error.h"
#include "espalier/image.h"
#include "serve/api_error.h"
#include "serve/data_uri.h"

namespace espalier::serve {

using Json = nlohmann::json;
namespace fs = std::filesystem;

std::shared_ptr<const Image> NamedPictures::find(const std::string& name) {
  const std::scoped_lock lock(mutex_);
  const auto place = places_.find(name);
  if (place == places_.end()) return nullptr;
  entries_.splice(entries_.begin(), entries_, place->second);
  return place->second->image;
}

void NamedPictures::keep(const std::string& name, const std::shared_ptr<const Image>& image) {
  const auto bytes = static_cast<int64_t>(image->rgb.size());
  const std::scoped_lock lock(mutex_);
  if (const auto place = places_.find(name); place != places_.end()) drop(place->second);
  if (bytes > max_bytes_) return;
  while (bytes_ + bytes > max_bytes_) drop(std::prev(entries_.end()));
  entries_.push_front({name, image});
  places_[name] = entries_.begin();
  bytes_ += bytes;
}

void NamedPictures::drop(std::list<Entry>::iterator entry) {
  bytes_ -= static_cast<int64_t>(entry->image->rgb.size());
  places_.erase(entry->name);
  entries_.erase(entry);
}

namespace {

// %41 is A; what is no such escape stands for itself.
std::string unescaped(std::string_view text) {
  const auto digit = [](char c) {
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
  };
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size() && digit(text[i + 1]) >= 0 && digit(text[i + 2]) >= 0) {
      out += static_cast<char>(digit(text[i + 1]) * 16 + digit(text[i + 2]));
      i += 2;
    } else {
      out += text[i];
    }
  }
  return out;
}

class Descriptor {
 public:
  explicit Descriptor(const fs::path& file) : fd_(::open(file.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC)) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

bool is_below(const fs::path& file, const fs::path& folder) {
  const auto [of_folder, of_file] = std::ranges::mismatch(folder, file);
  return of_folder == folder.end() && of_file != file.end();
}

// [x0, y0, x1, y1], in pixels of the picture as it was sent.
Region region_of(const Json& list, const std::string& param) {
  const auto is_edge = [](const Json& x) {
    return x.is_number_integer() && x.get<int64_t>() >= 0 && x.get<int64_t>() <= kMaxImagePixels;
  };
  if (!list.is_array() || list.size() != 4 || !std::ranges::all_of(list, is_edge) ||
      list[0].get<int>() >= list[2].get<int>() || list[1].get<int>() >= list[3].get<int>())
    throw ApiError(400, "invalid_value", param + ": expected [x0, y0, x1, y1] in pixels, got " + shown(list), param);
  return {list[0].get<int>(), list[1].get<int>(), list[2].get<int>(), list[3].get<int>()};
}

void read_pins(JsonObject& part, ImagePart& image) {
  const Json* pin = part.find("pin");
  if (!pin) return;
  const std::string param = part.path_of("pin");
  if (pin->is_boolean()) {
    image.pin_all = pin->get<bool>();
  } else if (pin->is_array() && !pin->empty() && pin->front().is_array()) {
    for (const Json& region : *pin) image.pins.push_back(region_of(region, param));
  } else {
    image.pins.push_back(region_of(*pin, param));
  }
}

// The same places on the smaller picture, rounded outwards.
void scale_pins(ImagePart& part, const Image& from, const Image& to) {
  const double x = static_cast<double>(to.width) / from.width, y = static_cast<double>(to.height) / from.height;
  for (Region& pin : part.pins)
    pin = {static_cast<int>(std::floor(pin.x0 * x)), static_cast<int>(std::floor(pin.y0 * y)),
           static_cast<int>(std::ceil(pin.x1 * x)), static_cast<int>(std::ceil(pin.y1 * y))};
}

}  // namespace

PictureReader::PictureReader(const ServeOptions& options, Shared& shared, std::string salt)
    : options_(options),
      shared_(shared),
      salt_(std::move(salt)),
      own_pixels_(std::make_shared<std::atomic<int64_t>>(0)),
      counted_(nullptr, [own = own_pixels_, &all = shared.pixels](void*) { all -= *own; }) {}

Picture PictureReader::read(JsonObject& part) {
  constexpr size_t kLongestUuid = 128;
  Picture picture;
  const std::string param = part.path_of("image_url");
  if (++images_ > options_.limits.images)
    throw ApiError(413, "too_many_images",
                   param + ": at most " + std::to_string(options_.limits.images) + " pictures a request", param);
  std::optional<std::string> url, detail;
  if (const Json* object = part.find("image_url")) {
    JsonObject fields(*object, param);
    url = fields.string_at("url");
    detail = fields.string("detail");
    fields.refuse_unknown();
  }
  const std::optional<std::string> uuid = part.string("uuid");
  if (uuid && (uuid->empty() || uuid->size() > kLongestUuid))
    part.refuse("uuid", "1 to " + std::to_string(kLongestUuid) + " bytes");
  const std::string name = salt_ + std::string(1, '\0') + uuid.value_or("");
  std::shared_ptr<const Image> image;
  if (url) {
    image = decode(*url, param + ".url");
    if (uuid) shared_.named.keep(name, image);
  } else if (uuid) {
    image = shared_.named.find(name);
    if (!image)
      throw ApiError(400, "unknown_uuid",
                     part.path_of("uuid") + ": no such picture is kept; send it again with its url",
                     part.path_of("uuid"));
    count(*image, param);
  } else {
    throw ApiError(400, "missing_field", param + ": expected {\"url\": …}, or uuid of a picture sent before", param);
  }
  read_pins(part, picture.part);
  picture.pruning = part.string("pruning").value_or("");
  if (detail && *detail != "auto") {
    if (*detail != "low" && *detail != "high")
      throw ApiError(400, "invalid_value", param + ".detail: expected low, high or auto", param + ".detail");
    if (!picture.pruning.empty())
      throw ApiError(400, "invalid_value", param + ".detail: pruning says it already", param + ".detail");
    if (*detail == "low") picture.pruning = options_.low_detail;
    if (*detail == "high") picture.part.pin_all = true;
  }
  if (const auto most = part.integer("max_pixels", 1, kMaxImagePixels)) {
    auto smaller = std::make_shared<const Image>(shrunk(*image, *most));
    scale_pins(picture.part, *image, *smaller);
    image = std::move(smaller);
  }
  picture.part.image = std::move(image);
  return picture;
}

// What a picture takes is counted before it is decoded as far as a limit of this request goes, and behind it for all.
void PictureReader::count(const Image& image, const std::string& param) {
  const int64_t pixels = int64_t{1} * image.width * image.height;
  pixels_ += pixels;
  if (pixels_ > options_.limits.pixels)
    throw ApiError(413, "image_too_large",
                   param + ": at most " + std::to_string(options_.limits.pixels) + " pixels a request", param);
  *own_pixels_ += pixels;
  if (shared_.pixels.fetch_add(pixels) + pixels > options_.limits.pixels_together)
    throw ApiError(503, "overloaded", "too many pictures are being answered about; try again");
}

std::shared_ptr<const Image> PictureReader::decode(const std::string& url, const std::string& param) {
  std::vector<std::byte> bytes;
  if (url.starts_with("data:")) {
    bytes = read_data_uri(url, param);
  } else if (url.starts_with("file:")) {
    bytes = read_file(url, param);
  } else {
    throw ApiError(400, "invalid_image_url",
                   param +
                       ": pictures come as data:image/…;base64,… or, where the server allows it, as file:; nothing "
                       "is fetched from elsewhere",
                   param);
  }
  try {
    const int64_t left = std::max<int64_t>(options_.limits.pixels - pixels_, 1);
    auto image = std::make_shared<const Image>(decode_image(bytes, param, std::min(left, kMaxImagePixels)));
    count(*image, param);
    return image;
  } catch (const ImageTooLarge& error) {
    throw ApiError(413, "image_too_large", error.what(), param);
  } catch (const Error& error) {
    throw ApiError(400, "invalid_image", error.what(), param);
  }
}

// Links are resolved before anything is opened, and what was opened is asked where it lies, so that no link leads out
// of the folder, whenever it was made. All refusals are alike: they do not tell what else there is.
std::vector<std::byte> PictureReader::read_file(const std::string& url, const std::string& param) const {
  if (options_.allow_images.empty())
    throw ApiError(400, "invalid_image_url", param + ": this server reads no files", param);
  const auto refuse = [&]() -> std::vector<std::byte> {
    throw ApiError(400, "invalid_image_url", param + ": there is no such picture below the allowed folder", param);
  };
  std::string_view path = std::string_view(url).substr(5);
  if (path.starts_with("//")) path.remove_prefix(2);
  const std::string name = unescaped(path);
  if (name.find('\0') != std::string::npos) return refuse();
  std::error_code code;
  const fs::path resolved = fs::canonical(options_.allow_images / name, code);  // an absolute name stands for itself
  if (code || !is_below(resolved, options_.allow_images)) return refuse();
  const Descriptor file(resolved);
  struct stat facts {};
  if (file.get() < 0 || ::fstat(file.get(), &facts) != 0 || !S_ISREG(facts.st_mode)) return refuse();
  const fs::path place = fs::read_symlink("/proc/self/fd/" + std::to_string(file.get()), code);
  if (code || !is_below(place, options_.allow_images)) return refuse();
  if (static_cast<uint64_t>(facts.st_size) > options_.http.body_bytes)
    throw ApiError(413, "image_too_large", param + ": the file is too large", param);
  std::vector<std::byte> bytes(static_cast<size_t>(facts.st_size));
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t got = ::read(file.get(), bytes.data() + done, bytes.size() - done);
    if (got <= 0) return refuse();
    done += static_cast<size_t>(got);
  }
  return bytes;
}

}  // namespace espalier::serve
