// SPDX-License-Identifier: Apache-2.0
// Where pictures may come from, and what a request says about each of them.
#include <filesystem>

#include "tests/serve/running_server.h"

namespace espalier::test {
namespace {

namespace fs = std::filesystem;

Json picture(const std::string& url, const Json& more) {
  Json part = image_part(url);
  part.update(more);
  return part;
}

std::string text_of(const Reply& reply) {
  return reply.json()["choices"][0]["message"].value("content", reply.body);
}

TEST(Pictures, AreKnownByTheirUuid) {
  const RunningServer& server = shared_server();
  const Json named = {{"type", "image_url"}, {"uuid", "cat-1"}};
  expect_refused(server.chat(ask(Json::array({named}))), 400, "unknown_uuid", "messages[0].content[0].uuid");
  const Json part = picture(data_uri("rgb.png"), {{"uuid", "cat-1"}});
  const std::string first = text_of(server.chat(ask(Json::array({part, text_part("What?")}))));
  EXPECT_EQ(text_of(server.chat(ask(Json::array({named, text_part("What?")})))), first);
  Json null_url = named;  // as vLLM's clients write it
  null_url["image_url"] = nullptr;
  EXPECT_EQ(text_of(server.chat(ask(Json::array({null_url, text_part("What?")})))), first);
}

TEST(Pictures, OfFilesOnlyBelowTheAllowedFolder) {
  const TemporaryFolder folder;
  fs::create_directories(folder / "in/deep");
  fs::copy_file(image_file("rgb.png"), folder / "in/a b.png");
  fs::copy_file(image_file("rgb.png"), folder / "in/deep/b.png");
  fs::copy_file(image_file("rgb.png"), folder / "secret.png");
  fs::copy_file(image_file("rgb.png"), folder / "innocent.png");  // beside the folder, whose name it begins with
  fs::create_symlink(folder / "secret.png", folder / "in/link.png");
  fs::create_symlink(folder / "in/deep/b.png", folder / "in/inside.png");
  fs::create_directory_symlink(folder.path(), folder / "in/up");
  ASSERT_EQ(::mkfifo((folder / "in/pipe.png").c_str(), 0600), 0);
  const RunningServer server({"--allow-images", (folder / "in").string()});
  const auto ask_for = [&](const std::string& url) {
    return server.chat(ask(Json::array({image_part(url), text_part("What?")})));
  };
  const std::string expected = text_of(ask_for(data_uri("rgb.png")));
  for (const std::string& url :
       {"file://" + (folder / "in/a%20b.png").string(), std::string("file:a%20b.png"), std::string("file:deep/b.png"),
        std::string("file:inside.png"), std::string("file:deep/../deep/b.png")})
    EXPECT_EQ(text_of(ask_for(url)), expected) << url;
  for (const std::string& url :
       {"file://" + (folder / "secret.png").string(), std::string("file:link.png"), std::string("file:up/secret.png"),
        std::string("file:../secret.png"), std::string("file:%2e%2e/secret.png"), std::string("file:../innocent.png"),
        std::string("file:///etc/passwd"), std::string("file:nothing.png"), std::string("file:deep"),
        std::string("file:"), std::string("file:pipe.png"), std::string("file:a%20b.png%00.png")})
    expect_refused(ask_for(url), 400, "invalid_image_url", "messages[0].content[0].image_url.url",
                   "there is no such picture");
  expect_refused(shared_server().chat(ask(Json::array({image_part("file:///etc/passwd")}))), 400, "invalid_image_url",
                 "", "reads no files");
}

TEST(Pictures, AreNotFetched) {
  for (const char* url : {"http://127.0.0.1/a.png", "https://example.org/a.png", "ftp://x/y", "a.png", ""})
    expect_refused(shared_server().chat(ask(Json::array({image_part(url)}))), 400, "invalid_image_url",
                   "messages[0].content[0].image_url.url", "nothing is fetched");
}

TEST(Pictures, ThatAreNone) {
  const auto refused = [](const std::string& url, const std::string& code) {
    expect_refused(shared_server().chat(ask(Json::array({image_part(url)}))), 400, code,
                   "messages[0].content[0].image_url.url");
  };
  const std::string good = data_uri("rgb.png");
  refused("data:image/png;base64,", "invalid_image");
  refused("data:image/png;base64,!!!!", "invalid_base64");
  refused("data:image/png;base64,AAAAA", "invalid_base64");
  refused(good.substr(0, good.size() / 2 / 4 * 4 + 22), "invalid_image");
  refused("data:text/plain;base64,aGVsbG8=", "invalid_image_url");
  refused("data:image/png,aGVsbG8=", "invalid_image_url");
  refused("data:image/png;base64,aGVsbG8=", "invalid_image");
}

// Tokens of two pictures, 16 each, that reach the last layer.
Json left(const Json& first, const Json& of_request) {
  Json more = {{"stats", true}};
  more.update(of_request);
  const Reply reply = shared_server().chat(ask(
      Json::array({picture(data_uri("rgb.png"), first), image_part(data_uri("420.jpg")), text_part("What?")}), more));
  EXPECT_EQ(reply.status, 200) << reply.body;
  return reply.status == 200 ? reply.json()["choices"][0]["espalier"]["image_tokens_per_layer"].back() : Json();
}

TEST(Pictures, HavePoliciesOfTheirOwn) {
  EXPECT_EQ(left(Json::object(), {{"pruning", "none"}}), (Json{16, 16}));
  EXPECT_EQ(left({{"pruning", "divprune:keep_ratio=1/4"}}, {{"pruning", "none"}}), (Json{4, 16}));
  EXPECT_EQ(left({{"pruning", "divprune:keep_ratio=1/4"}}, {{"pruning", "fastv:keep_ratio=1/2,layer=2"}}),
            (Json{4, 8}));
  EXPECT_EQ(left({{"pruning", "none"}}, {{"pruning", "fastv:keep_ratio=1/2,layer=2"}}), (Json{16, 8}));
  EXPECT_EQ(left({{"image_url", {{"url", data_uri("rgb.png")}, {"detail", "low"}}}}, Json::object()), (Json{4, 16}));
  EXPECT_EQ(left({{"image_url", {{"url", data_uri("rgb.png")}, {"detail", "auto"}}}}, Json::object()), (Json{16, 16}));
  const Json high = left({{"image_url", {{"url", data_uri("rgb.png")}, {"detail", "high"}}}},
                         {{"pruning", "fastv:num_kept=20,layer=2"}});
  EXPECT_EQ(high, (Json{16, 4}));  // it is pinned
}

TEST(Pictures, HavePins) {
  const Json half = left({{"pin", {0, 0, 1000000, 1000000}}}, {{"pruning", "fastv:num_kept=18,layer=2"}});
  EXPECT_EQ(half[0], 16);
  EXPECT_EQ(left({{"pin", true}}, {{"pruning", "fastv:num_kept=18,layer=2"}}), (Json{16, 2}));
  for (const Json& pin : {Json(1), Json{1, 2, 3}, Json{4, 4, 4, 8}, Json{-1, 0, 4, 4}, Json("all"), Json::array()})
    expect_refused(shared_server().chat(ask(Json::array({picture(data_uri("rgb.png"), {{"pin", pin}})}))), 400,
                   "invalid_value", "messages[0].content[0].pin");
}

TEST(Pictures, RefuseWhatCannotBeDecidedPictureByPicture) {
  for (const char* spec : {"catp:keep_ratio=1/3", "resize:keep_ratio=1/2", "magic", "keepmask:file=/etc/passwd"}) {
    const Reply reply =
        shared_server().chat(ask(Json::array({picture(data_uri("rgb.png"), {{"pruning", spec}}), text_part("What?")})));
    EXPECT_EQ(reply.status, 400) << spec << reply.body;
  }
}

// A picture of fewer pixels is the picture made smaller.
TEST(Pictures, AreMadeSmaller) {
  const auto tokens = [](const Json& more) {
    static const RunningServer server({}, "qwen2vl");
    return server.chat(ask(Json::array({picture(drawn_uri(180, 140), more), text_part("?")})))
        .json()["usage"]["prompt_tokens_details"]["image_tokens"];
  };
  EXPECT_LT(tokens({{"max_pixels", 56 * 56}}), tokens(Json::object()));
  expect_refused(shared_server().chat(ask(Json::array({picture(data_uri("rgb.png"), {{"max_pixels", 0}})}))), 400,
                 "invalid_value", "messages[0].content[0].max_pixels");
}

}  // namespace
}  // namespace espalier::test
