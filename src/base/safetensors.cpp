// SPDX-License-Identifier: Apache-2.0
#include "base/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <system_error>
#include <utility>

#include "base/error_text.h"
#include "base/json_file.h"
#include "base/limits.h"
#include "base/output_file.h"
#include "espalier/error.h"

namespace espalier {
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little, "safetensors data is used in place, as little-endian");

constexpr const char* kMetadataKey = "__metadata__";

struct DtypeEntry {
  Dtype dtype;
  std::string_view name;
  int64_t size;
};

constexpr std::array<DtypeEntry, 10> kDtypes = {{{Dtype::kF32, "F32", 4},
                                                 {Dtype::kF16, "F16", 2},
                                                 {Dtype::kBF16, "BF16", 2},
                                                 {Dtype::kF64, "F64", 8},
                                                 {Dtype::kI64, "I64", 8},
                                                 {Dtype::kI32, "I32", 4},
                                                 {Dtype::kI16, "I16", 2},
                                                 {Dtype::kI8, "I8", 1},
                                                 {Dtype::kU8, "U8", 1},
                                                 {Dtype::kBool, "BOOL", 1}}};

const DtypeEntry& entry_of(Dtype dtype) {
  return kDtypes.at(static_cast<size_t>(dtype));
}

// A whole file, read-only and private. Unmapped with the last view.
struct Map {
  const std::byte* data = nullptr;
  size_t size = 0;

  explicit Map(const std::filesystem::path& file) {
    const auto fail = [&](const std::string& why) { throw Error(file.string() + ": " + why); };
    // O_NONBLOCK: opening a named pipe must not wait for a writer.
    const int descriptor = ::open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor < 0) fail(errno == ENOENT ? "no such file" : std::generic_category().message(errno));
    struct stat status {};
    const bool known = ::fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode);
    void* mapped = MAP_FAILED;
    if (known && status.st_size >= 8) {
      size = static_cast<size_t>(status.st_size);
      mapped = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0);
    }
    const int error = errno;
    ::close(descriptor);
    if (!known) fail("not a regular file");
    if (status.st_size < 8)
      fail("not a safetensors file: " + std::to_string(status.st_size) + " bytes, at least 8 needed");
    if (mapped == MAP_FAILED) fail("cannot map: " + std::generic_category().message(error));
    data = static_cast<const std::byte*>(mapped);
  }
  ~Map() {
    if (data) ::munmap(const_cast<std::byte*>(data), size);
  }
  Map(const Map&) = delete;
  Map& operator=(const Map&) = delete;
};

// Elements of `shape` times the size of one, or nothing when that does not fit in int64.
std::optional<int64_t> byte_count(Dtype dtype, const std::vector<int64_t>& shape) {
  int64_t bytes = size_of(dtype);
  for (const int64_t extent : shape) {
    if (__builtin_mul_overflow(bytes, extent, &bytes)) return std::nullopt;
  }
  return bytes;
}

// Turns one header entry into a view, with every number checked against the data part of the file.
class EntryReader {
 public:
  EntryReader(const std::string& where, std::span<const std::byte> data, std::shared_ptr<const void> owner)
      : where_(where), data_(data), owner_(std::move(owner)) {}

  TensorView read(const json& entry) const {
    if (!entry.is_object()) fail("expected an object with dtype, shape and data_offsets");
    TensorView view{read_dtype(entry), read_sizes(entry, "shape"), {}, owner_};
    const std::vector<int64_t> offsets = read_sizes(entry, "data_offsets");
    if (offsets.size() != 2 || offsets[0] > offsets[1]) fail("data_offsets must be [begin, end] with begin <= end");
    if (static_cast<uint64_t>(offsets[1]) > data_.size()) {
      fail("data_offsets end at " + std::to_string(offsets[1]) + ", past the " + std::to_string(data_.size()) +
           " bytes of data in the file");
    }
    const int64_t bytes = offsets[1] - offsets[0];
    const std::optional<int64_t> expected = byte_count(view.dtype, view.shape);
    if (!expected) fail("shape is too large");
    if (*expected != bytes) {
      fail("dtype and shape need " + std::to_string(*expected) + " bytes, data_offsets hold " + std::to_string(bytes));
    }
    view.bytes = data_.subspan(static_cast<size_t>(offsets[0]), static_cast<size_t>(bytes));
    return view;
  }

 private:
  [[noreturn]] void fail(const std::string& why) const { throw Error(where_ + ": " + why); }

  Dtype read_dtype(const json& entry) const {
    const auto it = entry.find("dtype");
    if (it == entry.end() || !it->is_string()) fail("dtype is missing or not a string");
    const std::string& name = it->get_ref<const std::string&>();
    for (const DtypeEntry& known : kDtypes) {
      if (known.name == name) return known.dtype;
    }
    fail("dtype " + in_quotes(name) + " is not supported (F32, F16, BF16, F64, I64, I32, I16, I8, U8, BOOL are)");
  }

  std::vector<int64_t> read_sizes(const json& entry, const char* key) const {
    const auto it = entry.find(key);
    if (it == entry.end() || !it->is_array()) fail(std::string(key) + " is missing or not a list");
    std::vector<int64_t> sizes;
    for (const json& item : *it) {
      if (!item.is_number_unsigned() || item.get<uint64_t>() > uint64_t{std::numeric_limits<int64_t>::max()}) {
        fail(std::string(key) + " holds something other than integers from 0 to 2^63-1");
      }
      sizes.push_back(item.get<int64_t>());
    }
    return sizes;
  }

  const std::string& where_;
  std::span<const std::byte> data_;
  std::shared_ptr<const void> owner_;
};

std::map<std::string, std::string> read_metadata(const json& entry, const std::string& file) {
  if (!entry.is_object()) throw Error(file + ": __metadata__ must be an object");
  std::map<std::string, std::string> metadata;
  for (const auto& [key, value] : entry.items()) {
    if (!value.is_string()) throw Error(file + ": __metadata__ " + in_quotes(key) + " must be a string");
    metadata.emplace(key, value.get<std::string>());
  }
  return metadata;
}

// The format wants the tensors to tile the data part: no overlap, no hole, nothing behind the last one.
void check_tiling(const std::map<std::string, TensorView>& tensors, std::span<const std::byte> data,
                  const std::string& file) {
  std::vector<std::pair<std::span<const std::byte>, const std::string*>> order;
  for (const auto& [name, view] : tensors) order.emplace_back(view.bytes, &name);
  std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return std::pair(a.first.data(), a.first.size()) < std::pair(b.first.data(), b.first.size());
  });
  const std::byte* reached = data.data();
  for (const auto& [bytes, name] : order) {
    const std::string where = file + ": tensor " + in_quotes(*name) + ": ";
    if (bytes.data() < reached) throw Error(where + "its data overlaps that of another tensor");
    if (bytes.data() > reached) {
      throw Error(where + std::to_string(bytes.data() - reached) + " bytes before it belong to no tensor");
    }
    reached = bytes.data() + bytes.size();
  }
  const ptrdiff_t rest = data.data() + data.size() - reached;
  if (rest > 0) throw Error(file + ": " + std::to_string(rest) + " bytes after the last tensor belong to no tensor");
}

// Header text and the order in which the data follows it.
std::pair<std::string, std::vector<const TensorToWrite*>> lay_out(const std::string& file,
                                                                  std::span<const TensorToWrite> tensors,
                                                                  const std::map<std::string, std::string>& metadata) {
  std::vector<const TensorToWrite*> order;
  for (const TensorToWrite& tensor : tensors) order.push_back(&tensor);
  std::stable_sort(order.begin(), order.end(), [](const TensorToWrite* a, const TensorToWrite* b) {
    return size_of(a->dtype) > size_of(b->dtype);
  });
  json header = json::object();
  if (!metadata.empty()) header[kMetadataKey] = metadata;
  int64_t offset = 0;
  for (const TensorToWrite* tensor : order) {
    const std::string where = file + ": tensor " + in_quotes(tensor->name) + ": ";
    const bool negative = std::any_of(tensor->shape.begin(), tensor->shape.end(), [](int64_t n) { return n < 0; });
    const std::optional<int64_t> bytes = byte_count(tensor->dtype, tensor->shape);
    int64_t end = 0;
    if (negative || !bytes || __builtin_add_overflow(offset, *bytes, &end)) throw Error(where + "invalid shape");
    if (tensor->name == kMetadataKey) throw Error(where + "this name is reserved");
    if (header.contains(tensor->name)) throw Error(where + "written twice");
    header[tensor->name] = {
        {"dtype", name_of(tensor->dtype)}, {"shape", tensor->shape}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  try {
    return {header.dump(), std::move(order)};
  } catch (const json::exception&) {
    throw Error(file + ": a tensor name or metadata is not UTF-8");
  }
}

}  // namespace

int64_t size_of(Dtype dtype) {
  return entry_of(dtype).size;
}
std::string_view name_of(Dtype dtype) {
  return entry_of(dtype).name;
}

SafetensorsFile SafetensorsFile::open(const std::filesystem::path& file) {
  const std::string name = file.string();
  const auto map = std::make_shared<const Map>(file);
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, map->data, sizeof header_bytes);
  if (header_bytes > limits::kHeaderBytes) {
    throw Error(name + ": not a safetensors file: header of " + std::to_string(header_bytes) + " bytes, limit " +
                std::to_string(limits::kHeaderBytes));
  }
  if (header_bytes > map->size - 8) {
    throw Error(name + ": truncated: header of " + std::to_string(header_bytes) + " bytes, file of " +
                std::to_string(map->size));
  }
  const std::string_view text(reinterpret_cast<const char*>(map->data) + 8, header_bytes);
  const json header = parse_json(text, name + ": header");
  if (!header.is_object()) throw Error(name + ": header is not a JSON object");

  SafetensorsFile out;
  const std::span<const std::byte> data(map->data + 8 + header_bytes, map->size - 8 - header_bytes);
  for (const auto& [key, entry] : header.items()) {
    if (key == kMetadataKey) {
      out.metadata_ = read_metadata(entry, name);
    } else {
      const std::string where = name + ": tensor " + in_quotes(key);
      out.tensors_.emplace(key, EntryReader(where, data, map).read(entry));
    }
  }
  check_tiling(out.tensors_, data, name);
  return out;
}

void write_safetensors(const std::filesystem::path& file, std::span<const TensorToWrite> tensors,
                       const std::map<std::string, std::string>& metadata) {
  OutputFile out(file);
  write_safetensors(out, tensors, metadata);
  out.commit();
}

void write_safetensors(OutputFile& out, std::span<const TensorToWrite> tensors,
                       const std::map<std::string, std::string>& metadata) {
  const std::string file = out.path().string();
  auto [header, order] = lay_out(file, tensors, metadata);
  header.resize((header.size() + 7) / 8 * 8, ' ');  // data begins at a multiple of 8
  const uint64_t header_bytes = header.size();
  if (header_bytes > limits::kHeaderBytes) throw Error(file + ": header is too large");
  out.write(std::as_bytes(std::span(&header_bytes, 1)));
  out.write(header);
  for (const TensorToWrite* tensor : order) {
    const int64_t bytes = *byte_count(tensor->dtype, tensor->shape);
    out.write(std::span(static_cast<const std::byte*>(tensor->data), static_cast<size_t>(bytes)));
  }
}

}  // namespace espalier
