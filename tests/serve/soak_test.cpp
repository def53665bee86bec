// SPDX-License-Identifier: Apache-2.0
// Many mixed requests to servers of all families: all policies, streams, samples, pictures, clients that leave, errors.
// What is asked again is answered the same, and memory stays. By hand, with as many requests as wanted:
//   ESPALIER_REQUESTS=2000 serve_tests --gtest_filter='Soak.*'
#include <cstdlib>
#include <memory>
#include <random>

#include "espalier/policies/table.h"
#include "tests/serve/running_server.h"

namespace espalier::test {
namespace {

constexpr const char* kFamilies[] = {"llava15", "llava_next_mistral", "llava_next_vicuna", "qwen2vl", "qwen25vl"};

// So small that they are full, and give up what they hold, long before memory is looked at.
const Arguments kSmallCaches = {"--threads", "1", "--prefix-cache", "1000000", "--image-cache", "100000"};

// Few enough that each comes up again and again.
std::vector<Json> bodies() {
  std::vector<Json> all;
  std::vector<std::string> specs;
  for (const PolicyEntry& entry : policy_table())
    for (const PolicyExample& example : entry.examples) specs.emplace_back(example.spec);
  unsigned seed = 1;
  for (const std::string& spec : specs) {
    Json turns = Json::array({user(Json::array({image_part(drawn_uri(90, 60, seed)), text_part("What is this?")})),
                              assistant("a picture"),
                              user(Json::array({image_part(drawn_uri(40, 80, seed + 1)), text_part("And this?")}))});
    Json body = ask("", {{"pruning", spec}, {"max_tokens", 4 + seed % 5}});
    body["messages"] = std::move(turns);
    if (seed % 4 == 1) body["stream"] = true;
    if (seed % 7 == 2) body.update({{"n", 2}, {"temperature", 1.5}, {"seed", seed}});
    if (seed % 5 == 3) body.update({{"logprobs", true}, {"top_logprobs", 2}});
    all.push_back(std::move(body));
    seed += 2;
  }
  all.push_back(ask("Hello", {{"no_such_field", 1}}));
  all.push_back(ask("Hello", {{"pruning", "magic"}}));
  all.push_back(ask("Hello", {{"max_tokens", 100'000}}));
  all.push_back(ask(Json::array({image_part("data:image/png;base64,AAAA")})));
  return all;
}

// What must not change from one answer to the next: the text; not the id, the times, the last digits of logprobs.
std::string essence(const Reply& reply, bool streams) {
  if (reply.status != 200) return std::to_string(reply.status) + reply.body;
  std::string text;
  if (!streams) {
    const Json json = reply.json();
    for (const Json& choice : json["choices"]) text += choice["message"].dump() + choice["finish_reason"].dump() + "\n";
    return text + std::to_string(json["usage"].value("completion_tokens", -1));
  }
  std::map<int, std::string> samples;
  for (const Json& event : events_of(reply.body))
    for (const Json& choice : event["choices"])
      samples[choice["index"].get<int>()] += choice["delta"].value("content", "");
  for (const auto& [index, sample] : samples) text += sample + "\n";
  return text;
}

TEST(Soak, MemoryAndAnswersStay) {
  const char* wanted = std::getenv("ESPALIER_REQUESTS");
  const int count = wanted ? std::atoi(wanted) : 150;
  std::vector<std::unique_ptr<RunningServer>> servers;
  for (const char* family : kFamilies) servers.push_back(std::make_unique<RunningServer>(kSmallCaches, family));
  const auto resident = [&] {
    int64_t sum = 0;
    for (const auto& server : servers) sum += server->resident();
    return sum;
  };
  const std::vector<Json> asked = bodies();
  std::vector<std::map<size_t, std::string>> first(servers.size());
  std::mt19937_64 random(11);
  std::map<int, int> statuses;
  int64_t early = 0;
  int repeated = 0;
  for (int i = 0; i < count; ++i) {
    const size_t which = static_cast<size_t>(i) % servers.size(), what = random() % asked.size();
    const RunningServer& server = *servers[which];
    if (random() % 12 == 0) {
      RawSocket client(server.port());
      client.send(raw_post(kChat, ask("Hello", {{"max_tokens", 1000}, {"stream", true}}).dump()));
      RunningServer::wait(static_cast<int>(random() % 30));
      client.close();
      ++statuses[499];
    } else {
      const Reply reply = server.chat(asked[what]);
      ++statuses[reply.status];
      EXPECT_TRUE(reply.status == 200 || reply.status == 400) << reply.body;
      const std::string now = essence(reply, asked[what].contains("stream"));
      const auto [known, is_new] = first[which].emplace(what, now);
      if (!is_new) {
        ++repeated;
        EXPECT_EQ(now, known->second) << kFamilies[which] << " " << asked[what].dump().substr(0, 200);
      }
    }
    if (i == count / 10) early = resident();
  }
  for (const auto& server : servers) EXPECT_TRUE(server->is_idle_within(5));
  const int64_t late = resident();
  for (const auto& [status, times] : statuses) std::printf("%d: %d\n", status, times);
  std::printf(
      "%d asked again and answered the same; resident %.1f MB behind request %d, %.1f MB behind %d (%+.2f %%)\n",
      repeated, double(early) / 1e6, count / 10, double(late) / 1e6, count, 100 * (double(late) / double(early) - 1));
  if (count >= 2000) {
    EXPECT_LT(double(late), 1.01 * double(early));
  }
}

}  // namespace
}  // namespace espalier::test
