// SPDX-License-Identifier: Apache-2.0
// The parts of the server that need no server: base64, log text, digests, histograms.
#include <gtest/gtest.h>

#include <random>
#include <span>

#include "base/base64.h"
#include "serve/api_error.h"
#include "serve/api_keys.h"
#include "serve/data_uri.h"
#include "serve/log_text.h"
#include "serve/metrics.h"
#include "serve/policies.h"

namespace espalier::serve {
namespace {

TEST(Base64, ComesBack) {
  std::mt19937 random(3);
  for (size_t size = 0; size < 200; ++size) {
    std::vector<std::byte> bytes(size);
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
    std::string text = base64(bytes);
    EXPECT_EQ(read_base64(text, "x"), bytes);
    while (text.ends_with('=')) text.pop_back();
    EXPECT_EQ(read_base64(text, "x"), bytes) << "without padding";
  }
}

TEST(Base64, RefusesWhatIsNone) {
  for (const char* text : {"A", "AAAAA", "AA=", "A===", "AA==AA", "AA A", "AAA\n", "AA-_", "=", "===="})
    EXPECT_THROW(read_base64(text, "x"), ApiError) << text;
}

TEST(LogText, IsOneLineOfPrintableAscii) {
  EXPECT_EQ(log_text("GET /a"), "\"GET /a\"");
  EXPECT_EQ(log_text("a\r\nb\t\"\\\x1b\xc3\xa9"), R"("a\x0d\x0ab\x09\"\\\x1b\xc3\xa9")");
  EXPECT_LT(log_text(std::string(100'000, '\n')).size(), 1000U);
}

// FIPS 180-2, appendix B.
TEST(Digests, AreSha256) {
  EXPECT_EQ(hexadecimal(sha256("abc")), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(Policies, HaveNamesThatClientsCannotMake) {
  EXPECT_EQ(policy_name("catp:keep_ratio=2/9"), "catp");
  EXPECT_EQ(policy_name("divprune:keep_ratio=1/2 + fastv:keep_ratio=1/4,layer=3"), "pipeline");
}

TEST(Histograms, Cumulate) {
  Histogram histogram;
  histogram.add(0.001);
  histogram.add(0.03);
  histogram.add(100);
  std::string text;
  histogram.write(text, "h", "policy=\"a\"");
  EXPECT_NE(text.find("h_bucket{policy=\"a\",le=\"0.001\"} 1\n"), std::string::npos);
  EXPECT_NE(text.find("h_bucket{policy=\"a\",le=\"0.05\"} 2\n"), std::string::npos);
  EXPECT_NE(text.find("h_bucket{policy=\"a\",le=\"60\"} 2\n"), std::string::npos);
  EXPECT_NE(text.find("h_bucket{policy=\"a\",le=\"+Inf\"} 3\n"), std::string::npos);
  EXPECT_NE(text.find("h_count{policy=\"a\"} 3\n"), std::string::npos);
}

}  // namespace
}  // namespace espalier::serve
