// SPDX-License-Identifier: Apache-2.0
#include "base/json_fields.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <nlohmann/json.hpp>

#include "base/json_file.h"
#include "base/limits.h"
#include "tests/support/temporary_folder.h"

namespace espalier {
namespace {

TEST(JsonFile, NamesFileAndPlace) {
  TemporaryFolder folder;
  EXPECT_ERROR(read_text_file(folder / "absent.json"), "absent.json: no such file");
  EXPECT_ERROR(read_text_file(folder.path()), "not a regular file");
  EXPECT_ERROR(read_json_file(folder.write("x.json", "{\n\"a\": }")), "x.json: parse error at line 2, column 6");
  EXPECT_ERROR(read_json_file(folder.write("x.json", "\"\xff\"")), "x.json: parse error at line 1");
  EXPECT_ERROR(read_json_file(folder.write("x.json", "1e999")), "x.json: number overflow");
}

std::string repeated(const std::string& what, size_t times) {
  std::string out;
  for (size_t i = 0; i < times; ++i) out += what;
  return out;
}

TEST(JsonFile, TakesValuesInOneAnotherUpToTheLimit) {
  const size_t most = limits::kJsonDepth;
  EXPECT_NO_THROW(parse_json(repeated("[", most) + repeated("]", most), "x.json"));
  EXPECT_ERROR(parse_json(repeated("[", most + 1) + repeated("]", most + 1), "x.json"),
               "x.json: lists and objects in one another more than 256 deep");
  EXPECT_ERROR(parse_json(repeated("[", 200000), "x.json"), "more than 256 deep");
  EXPECT_ERROR(parse_json(repeated("{\"a\":", 200000) + "1" + repeated("}", 200000), "x.json"), "more than 256 deep");
}

TEST(JsonFile, IsReadAsNlohmannReadsIt) {
  const std::string text =
      R"({"a": [1, -2, 3.5, "x\u00e9", true, false, null, {}, []], "b": {"c": {"d": [[], [{}]]}}})";
  EXPECT_EQ(parse_json(text, "x.json"), nlohmann::json::parse(text));
  EXPECT_EQ(parse_json("\"x\"", "x.json"), "x");
  EXPECT_EQ(parse_json("\xEF\xBB\xBF[18446744073709551615]", "x.json"),
            nlohmann::json::parse("[18446744073709551615]"));
}

TEST(JsonFile, RefusesAKeyThatIsThereTwice) {
  EXPECT_ERROR(parse_json(R"({"a": 1, "b": {"c": 1, "c": 2}})", "x.json"), "x.json: key \"c\" appears twice");
  EXPECT_NO_THROW(parse_json(R"({"a": {"a": 1}, "b": [{"a": 1}, {"a": 2}]})", "x.json"));
}

TEST(JsonFile, SizesAreCheckedBeforeReading) {
  TemporaryFolder folder;
  const std::filesystem::path sparse = folder.write("sparse.json", "{");
  std::filesystem::resize_file(sparse, uintmax_t{40} << 30);
  EXPECT_ERROR(read_text_file(sparse), "sparse.json: 42949672960 bytes, at most 268435456 are read");
  EXPECT_ERROR(read_text_file(folder.write("six", "123456"), 5), "six: 6 bytes, at most 5 are read");
  EXPECT_EQ(read_text_file(folder.write("five", "12345"), 5), "12345");
}

TEST(JsonFile, SpecialFilesAreRefused) {
  TemporaryFolder folder;
  std::filesystem::create_symlink("loop", folder / "loop");
  EXPECT_ERROR(read_text_file(folder / "loop"), "loop: cannot open: Too many levels of symbolic links");
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  EXPECT_ERROR(read_text_file(folder / "pipe"), "pipe: not a regular file");
  EXPECT_ERROR(read_text_file("/proc/self/mem"), "/proc/self/mem: cannot read");
  EXPECT_ERROR(read_text_file(std::string(5000, 'x')), ": cannot open: File name too long");
  EXPECT_TRUE(is_there(folder / "loop"));
  EXPECT_FALSE(is_there(folder / "absent"));
  EXPECT_FALSE(is_folder(std::string(5000, 'x')));
}

TEST(JsonFields, AreReadStrictly) {
  const auto object =
      nlohmann::json::parse(R"({"b":true,"i":3,"d":1.5,"s":"x","n":null,"l":[1,2.5],"u":18446744073709551615})");
  const std::string name = "config.json";
  const JsonFields fields(object, name, "text_config.");
  EXPECT_EQ(fields.boolean("b"), true);
  EXPECT_EQ(fields.integer("i"), 3);
  EXPECT_EQ(fields.number("i"), 3.0);
  EXPECT_EQ(fields.number("d"), 1.5);
  EXPECT_EQ(fields.string("s"), "x");
  EXPECT_EQ(fields.numbers("l"), (std::vector<double>{1, 2.5}));
  EXPECT_EQ(fields.integer("n"), std::nullopt);
  EXPECT_EQ(fields.string("absent"), std::nullopt);
  EXPECT_ERROR(fields.integer("d"), "config.json: field \"text_config.d\": expected an integer, got 1.5");
  EXPECT_ERROR(fields.integer("u"), "expected an integer");
  EXPECT_ERROR(fields.boolean("i"), "expected true or false, got 3");
  EXPECT_ERROR(fields.string("l"), "expected a string, got [1,2.5]");
  EXPECT_ERROR(fields.numbers("s"), "expected a list of numbers, got \"x\"");
  EXPECT_ERROR(JsonFields(object["l"], name, "size."), "config.json: field \"size\": expected an object");
}

TEST(JsonFields, RangesAndWhatMustBeThere) {
  const auto object = nlohmann::json::parse(R"({"i": 3, "l": [1, 2], "o": {"k": [{"x": 7}, {"y": null}]}, "n": null})");
  const std::string name = "config.json";
  const JsonFields fields(object, name);
  EXPECT_EQ(fields.integer("i", 3, 3), 3);
  EXPECT_EQ(fields.integer("absent", 1, 2), std::nullopt);
  EXPECT_EQ(fields.integers_at("l", 1, 2), (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(fields.object_at("o").objects_at("k")[0].integer_at("x"), 7);
  EXPECT_FALSE(fields.has("n"));
  EXPECT_FALSE(fields.object("n").has_value());
  EXPECT_EQ(fields.object_at("o").objects_at("k")[1].place(), "config.json: o.k[1]");
  EXPECT_EQ(fields.place(), "config.json");
  EXPECT_ERROR(fields.integer("i", 4, 9), "config.json: field \"i\": expected an integer from 4 to 9, got 3");
  EXPECT_ERROR(fields.integer_at("i", 4), "expected an integer from 4, got 3");
  EXPECT_ERROR(fields.integer_at("absent"), "field \"absent\": expected an integer, got nothing");
  EXPECT_ERROR(fields.integers_at("l", 2), "expected a list of integers from 2, got [1,2]");
  EXPECT_ERROR(fields.number_at("n"), "expected a number, got null");
  EXPECT_ERROR(fields.string_at("i"), "expected a string, got 3");
  EXPECT_ERROR(fields.list_at("o"), "expected a list, got {");
  EXPECT_ERROR(fields.object_at("l"), "expected an object, got [1,2]");
  EXPECT_ERROR(fields.objects_at("l"), "field \"l[0]\": expected an object, got 1");
  EXPECT_ERROR(fields.object_at("o").objects_at("k")[1].integer_at("y"),
               "field \"o.k[1].y\": expected an integer, got null");
}

}  // namespace
}  // namespace espalier
