// SPDX-License-Identifier: Apache-2.0
#include "base/safetensors.h"

#include <cstring>
#include <fstream>
#include <iterator>
#include <random>

#include "tests/support/temporary_folder.h"

namespace espalier {
namespace {

namespace fs = std::filesystem;

// A file as the format describes it: header length, header, data.
std::string file_bytes(std::string_view header, std::string_view data) {
  const uint64_t size = header.size();
  std::string out(8, '\0');
  std::memcpy(out.data(), &size, 8);
  return out.append(header).append(data);
}

class SafetensorsTest : public ::testing::Test {
 protected:
  std::string error(std::string_view header, std::string_view data) {
    return error_of([&] { SafetensorsFile::open(folder_.write("bad.safetensors", file_bytes(header, data))); });
  }
  TemporaryFolder folder_;
};

template <class T>
std::vector<T> values(const TensorView& view) {
  std::vector<T> out(view.bytes.size() / sizeof(T));
  std::memcpy(out.data(), view.bytes.data(), view.bytes.size());
  return out;
}

int byte_sum(const TensorView& view) {  // touches every byte
  int sum = 0;
  for (const std::byte b : view.bytes) sum += std::to_integer<int>(b);
  return sum;
}

TEST_F(SafetensorsTest, ReadsTensorsInAnyOrderAndUnaligned) {
  const std::string header =
      R"({"b":{"dtype":"I16","shape":[2],"data_offsets":[1,5]},"__metadata__":{"format":"pt"},)"
      R"("a":{"dtype":"U8","shape":[],"data_offsets":[0,1]},"none":{"dtype":"F32","shape":[0,3],"data_offsets":[5,5]}} )";
  const auto file =
      SafetensorsFile::open(folder_.write("x.safetensors", file_bytes(header, std::string("\x07\x01\x00\xff\xff", 5))));
  ASSERT_EQ(file.tensors().size(), 3u);
  EXPECT_EQ(values<uint8_t>(file.tensors().at("a")), std::vector<uint8_t>{7});
  EXPECT_EQ(file.tensors().at("a").shape, std::vector<int64_t>{});
  EXPECT_EQ(values<int16_t>(file.tensors().at("b")), (std::vector<int16_t>{1, -1}));
  EXPECT_EQ(file.tensors().at("none").shape, (std::vector<int64_t>{0, 3}));
  EXPECT_EQ(file.metadata().at("format"), "pt");
}

TEST_F(SafetensorsTest, ViewsOutliveTheFile) {
  TensorView view;
  {
    const uint8_t data[] = {1, 2, 3};
    const std::vector<TensorToWrite> tensors = {{"t", Dtype::kU8, {3}, data}};
    write_safetensors(folder_ / "x.safetensors", tensors);
    view = SafetensorsFile::open(folder_ / "x.safetensors").tensors().at("t");
    fs::remove(folder_ / "x.safetensors");
  }
  EXPECT_EQ(values<uint8_t>(view), (std::vector<uint8_t>{1, 2, 3}));
}

TEST_F(SafetensorsTest, WritesWhatItReads) {
  const uint8_t bytes[] = {1, 2, 3};
  const float floats[] = {1.5f, -2.0f};
  const int64_t integers[] = {-5};
  const std::vector<TensorToWrite> tensors = {{"bytes \"quoted\" é", Dtype::kU8, {3, 1}, bytes},
                                              {"floats", Dtype::kF32, {2}, floats},
                                              {"integers", Dtype::kI64, {1, 1}, integers},
                                              {"empty", Dtype::kBF16, {0}, nullptr}};
  write_safetensors(folder_ / "x.safetensors", tensors, {{"made by", "a test"}});
  const auto file = SafetensorsFile::open(folder_ / "x.safetensors");
  ASSERT_EQ(file.tensors().size(), 4u);
  EXPECT_EQ(values<uint8_t>(file.tensors().at("bytes \"quoted\" é")), (std::vector<uint8_t>{1, 2, 3}));
  EXPECT_EQ(values<float>(file.tensors().at("floats")), (std::vector<float>{1.5f, -2.0f}));
  EXPECT_EQ(values<int64_t>(file.tensors().at("integers")), std::vector<int64_t>{-5});
  EXPECT_EQ(file.metadata(), (std::map<std::string, std::string>{{"made by", "a test"}}));
  for (const auto& [name, view] : file.tensors()) {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(view.bytes.data()) % static_cast<uintptr_t>(size_of(view.dtype)), 0u) << name;
  }
}

TEST_F(SafetensorsTest, WritesEveryDtypeUnderItsName) {
  const uint8_t data[16] = {};
  const std::pair<Dtype, const char*> names[] = {
      {Dtype::kF32, "F32"}, {Dtype::kF16, "F16"}, {Dtype::kBF16, "BF16"}, {Dtype::kF64, "F64"}, {Dtype::kI64, "I64"},
      {Dtype::kI32, "I32"}, {Dtype::kI16, "I16"}, {Dtype::kI8, "I8"},     {Dtype::kU8, "U8"},   {Dtype::kBool, "BOOL"}};
  for (const auto& [dtype, name] : names) {
    EXPECT_EQ(name_of(dtype), name);
    const std::vector<TensorToWrite> tensors = {{"t", dtype, {2}, data}};
    write_safetensors(folder_ / "x.safetensors", tensors);
    EXPECT_EQ(SafetensorsFile::open(folder_ / "x.safetensors").tensors().at("t").dtype, dtype);
  }
}

TEST_F(SafetensorsTest, FailedWriteLeavesTheOldFileAlone) {
  const uint8_t data[] = {1};
  const std::vector<TensorToWrite> good = {{"t", Dtype::kU8, {1}, data}};
  write_safetensors(folder_ / "x.safetensors", good);
  const std::vector<TensorToWrite> twice = {{"t", Dtype::kU8, {1}, data}, {"t", Dtype::kU8, {1}, data}};
  EXPECT_ERROR(write_safetensors(folder_ / "x.safetensors", twice), "written twice");
  const std::vector<TensorToWrite> negative = {{"t", Dtype::kU8, {-1}, data}};
  EXPECT_ERROR(write_safetensors(folder_ / "x.safetensors", negative), "invalid shape");
  const std::vector<TensorToWrite> reserved = {{"__metadata__", Dtype::kU8, {1}, data}};
  EXPECT_ERROR(write_safetensors(folder_ / "x.safetensors", reserved), "reserved");
  const std::vector<TensorToWrite> not_utf8 = {{"\xff", Dtype::kU8, {1}, data}};
  EXPECT_ERROR(write_safetensors(folder_ / "x.safetensors", not_utf8), "UTF-8");
  EXPECT_ERROR(write_safetensors(folder_ / "absent" / "x.safetensors", good), "cannot write");
  fs::create_directory(folder_ / "taken");
  EXPECT_ERROR(write_safetensors(folder_ / "taken", good), "cannot write");
  EXPECT_EQ(SafetensorsFile::open(folder_ / "x.safetensors").tensors().size(), 1u);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_.path()), {}), 2) << "a temporary file was left behind";
}

TEST_F(SafetensorsTest, RefusesWhatIsNotAFile) {
  EXPECT_ERROR(SafetensorsFile::open(folder_ / "absent"), "absent: no such file");
  EXPECT_ERROR(SafetensorsFile::open(folder_.path()), "not a regular file");
  EXPECT_ERROR(SafetensorsFile::open(folder_.write("empty", "")), "0 bytes");
  EXPECT_ERROR(SafetensorsFile::open(folder_.write("short", "1234567")), "7 bytes");
}

TEST_F(SafetensorsTest, RefusesBrokenHeaders) {
  EXPECT_ERROR(SafetensorsFile::open(folder_.write("x", "\xff\xff\xff\xff\xff\xff\xff\xff{}")), "limit 100000000");
  EXPECT_ERROR(SafetensorsFile::open(folder_.write("x", std::string("\x01\xe1\xf5\x05\0\0\0\0{}", 10))), "limit");
  EXPECT_ERROR(SafetensorsFile::open(folder_.write("x", std::string("\x03\0\0\0\0\0\0\0{}", 10))), "truncated");
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "header: parse error at line 1", error("{\"a\":", ""));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "header: parse error", error("", ""));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "not a JSON object", error("[]", ""));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "__metadata__", error(R"({"__metadata__":{"a":1}})", ""));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "__metadata__", error(R"({"__metadata__":[]})", ""));
}

struct BadEntry {
  const char* entry;
  const char* message;
};

class BadEntryTest : public SafetensorsTest, public ::testing::WithParamInterface<BadEntry> {};

TEST_P(BadEntryTest, IsRefusedByName) {
  const std::string message = error(std::string(R"({"my.tensor":)") + GetParam().entry + "}", "12345678");
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "bad.safetensors: tensor \"my.tensor\": ", message);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, GetParam().message, message);
}

INSTANTIATE_TEST_SUITE_P(
    , BadEntryTest,
    ::testing::Values(
        BadEntry{R"(3)", "expected an object"}, BadEntry{R"({"shape":[8],"data_offsets":[0,8]})", "dtype is missing"},
        BadEntry{R"({"dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8]})", "\"F8_E4M3\" is not supported"},
        BadEntry{R"({"dtype":"U8","data_offsets":[0,8]})", "shape is missing"},
        BadEntry{R"({"dtype":"U8","shape":[8]})", "data_offsets is missing"},
        BadEntry{R"({"dtype":"U8","shape":[-8],"data_offsets":[0,8]})", "shape holds something other"},
        BadEntry{R"({"dtype":"U8","shape":[8.0],"data_offsets":[0,8]})", "shape holds something other"},
        BadEntry{R"({"dtype":"U8","shape":[9223372036854775808],"data_offsets":[0,8]})", "shape holds something other"},
        BadEntry{R"({"dtype":"U8","shape":[8],"data_offsets":[0]})", "data_offsets must be"},
        BadEntry{R"({"dtype":"U8","shape":[8],"data_offsets":[8,0]})", "data_offsets must be"},
        BadEntry{R"({"dtype":"U8","shape":[8],"data_offsets":[1,9]})", "past the 8 bytes"},
        BadEntry{R"({"dtype":"U8","shape":[7],"data_offsets":[0,8]})", "need 7 bytes, data_offsets hold 8"},
        BadEntry{R"({"dtype":"F16","shape":[8],"data_offsets":[0,8]})", "need 16 bytes"},
        // 2^32 * 2^32 * 8 wraps around to 0 in 64 bits
        BadEntry{R"({"dtype":"F64","shape":[4294967296,4294967296],"data_offsets":[0,0]})", "shape is too large"}));

TEST_F(SafetensorsTest, RefusesOverlapHolesTrailingBytesAndDuplicates) {
  const auto two = [](const char* first, const char* second) {
    return std::string(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":)") + first +
           R"(},"b":{"dtype":"U8","shape":[4],"data_offsets":)" + second + "}}";
  };
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "tensor \"b\": its data overlaps",
                      error(two("[0,4]", "[2,6]"), "123456"));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "tensor \"b\": 1 bytes before it",
                      error(two("[0,4]", "[5,9]"), "123456789"));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "tensor \"a\": 2 bytes before it",
                      error(two("[2,6]", "[6,10]"), "1234567890"));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "2 bytes after the last tensor",
                      error(two("[0,4]", "[4,8]"), "1234567890"));
  EXPECT_PRED_FORMAT2(
      ::testing::IsSubstring, "key \"a\" appears twice",
      error(
          R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})",
          "1234"));
}

// Whatever is wrong with a header, it is read or refused with an Error, and what is read lies inside the file.
TEST_F(SafetensorsTest, SurvivesRandomDamage) {
  const float values[6] = {};
  const std::vector<TensorToWrite> tensors = {{"a", Dtype::kF32, {2, 3}, values}, {"b", Dtype::kU8, {5}, values}};
  write_safetensors(folder_ / "x.safetensors", tensors, {{"format", "pt"}});
  std::ifstream in(folder_ / "x.safetensors", std::ios::binary);
  const std::string whole((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  std::mt19937 random(7);
  const std::string_view characters = "0123456789[]{}\",:-.eUF\xff";
  for (int round = 0; round < 300; ++round) {
    std::string damaged = whole;
    for (int i = 0; i < 2; ++i) damaged[random() % damaged.size()] = characters[random() % characters.size()];
    try {
      const auto file = SafetensorsFile::open(folder_.write("y.safetensors", damaged));
      for (const auto& [name, view] : file.tensors()) EXPECT_GE(byte_sum(view), 0) << name;
    } catch (const Error&) {
      continue;
    }
  }
}

}  // namespace
}  // namespace espalier
