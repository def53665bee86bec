// SPDX-License-Identifier: Apache-2.0
#include "runtime/image_cache.h"

#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include "espalier/engine.h"
#include "espalier/error.h"
#include "runtime/engine_impl.h"
#include "tests/support/folders.h"

namespace espalier {
namespace {

const std::filesystem::path kModel = test::golden_folder() / "llava15";

std::shared_ptr<const Image> noise(int width, int height, unsigned seed) {
  auto image = std::make_shared<Image>(Image{width, height, std::vector<uint8_t>(size_t{3} * width * height)});
  for (uint8_t& value : image->rgb) value = static_cast<uint8_t>((seed = seed * 1664525U + 1013904223U) >> 24);
  return image;
}

ImagePlan plan_of(std::vector<int64_t> pixel_shape) {
  ImagePlan plan;
  plan.pixel_shape = std::move(pixel_shape);
  return plan;
}

VisionFeatures features_of(int64_t floats) {
  return {at::zeros({floats}), {}};
}

TEST(ImageCache, KnowsPicturesByPixelsAndByWhatIsMadeOfThem) {
  ImageCache cache(1000);
  const auto picture = noise(8, 8, 1);
  cache.keep(ImageCache::key_of(*picture, plan_of({3, 8, 8})), features_of(4));
  EXPECT_TRUE(cache.find(ImageCache::key_of(*noise(8, 8, 1), plan_of({3, 8, 8}))));  // a copy
  EXPECT_FALSE(cache.find(ImageCache::key_of(*picture, plan_of({3, 4, 4}))));
  EXPECT_FALSE(cache.find(ImageCache::key_of(*noise(8, 8, 2), plan_of({3, 8, 8}))));
  EXPECT_FALSE(cache.find(ImageCache::key_of(*noise(4, 16, 1), plan_of({3, 8, 8}))));  // the same bytes, another shape
  EXPECT_EQ(cache.counts().hits, 1);
  EXPECT_EQ(cache.counts().misses, 3);
}

TEST(ImageCache, StaysWithinItsBytesAndDropsWhatWasUsedLongestAgo) {
  ImageCache cache(100);  // 25 floats
  const auto key = [](unsigned seed) { return ImageCache::key_of(*noise(2, 2, seed), plan_of({1})); };
  cache.keep(key(1), features_of(10));
  cache.keep(key(2), features_of(10));
  EXPECT_EQ(cache.bytes(), 80);
  EXPECT_TRUE(cache.find(key(1)));
  cache.keep(key(3), features_of(10));
  EXPECT_EQ(cache.bytes(), 80);
  EXPECT_TRUE(cache.find(key(1)));
  EXPECT_FALSE(cache.find(key(2)));
  cache.keep(key(4), features_of(26));  // larger than all of it
  EXPECT_FALSE(cache.find(key(4)));
  EXPECT_EQ(cache.bytes(), 80);
  cache.clear();
  EXPECT_EQ(cache.bytes(), 0);
  EXPECT_FALSE(cache.find(key(1)));
}

Request ask(std::shared_ptr<const Image> image, std::shared_ptr<const ImageHandle> handle, const std::string& policy) {
  ImagePart part;
  part.image = std::move(image);
  part.handle = std::move(handle);
  Request request;
  request.prompt = in_context_chat({}, part, "What is it?");
  request.policy = policy;
  request.options.max_new_tokens = 6;
  request.options.greedy = request.options.ignore_eos = true;
  return request;
}

// hired reads the tower's attention, fastv what the projector reads.
TEST(ImageHandle, GivesTheSameAnswers) {
  EngineOptions options;
  options.image_cache_bytes = 1 << 20;
  const Engine plain = Engine::load(kModel), caching = Engine::load(kModel, options);
  const auto image = noise(50, 40, 7);
  const auto handle = plain.look_at(image);
  for (const std::string policy : {"none", "fastv:keep_ratio=1/3", "hired:keep_ratio=1/3"}) {
    const Result expected = plain.generate(ask(image, nullptr, policy));
    EXPECT_EQ(plain.generate(ask(nullptr, handle, policy)).token_ids, expected.token_ids) << policy;
    for (int again = 0; again < 2; ++again) {
      const Result cached = caching.generate(ask(image, nullptr, policy));
      EXPECT_EQ(cached.token_ids, expected.token_ids) << policy;
      EXPECT_EQ(cached.kept, expected.kept) << policy;
    }
  }
  EXPECT_GT(caching.impl().images->bytes(), 0);
}

TEST(ImageHandle, OfAnotherEngineOrPictureIsRefused) {
  const Engine one = Engine::load(kModel), other = Engine::load(kModel);
  const auto image = noise(9, 9, 1);
  const auto handle = one.look_at(image);
  EXPECT_THROW(other.generate(ask(nullptr, handle, "none")), Error);
  EXPECT_THROW(one.generate(ask(noise(9, 9, 2), handle, "none")), Error);
  EXPECT_THROW(one.look_at(nullptr), Error);
}

}  // namespace
}  // namespace espalier
