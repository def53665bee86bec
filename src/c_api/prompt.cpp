// SPDX-License-Identifier: Apache-2.0
// Pictures and prompts of espalier.h.
#include <cstddef>
#include <span>
#include <variant>

#include "c_api/call.h"
#include "c_api/handles.h"
#include "espalier/json.h"

using namespace espalier;
using namespace espalier::c_api;

namespace {

espalier_image image_of(Image image) {
  return {std::make_shared<const Image>(std::move(image))};
}

// The turn that text and pictures go to.
Message& current_turn(Chat& chat) {
  if (chat.messages.empty()) chat.messages.push_back({"user"});
  return chat.messages.back();
}

ImagePart* last_image(Prompt& prompt) {
  if (RawPrompt* raw = std::get_if<RawPrompt>(&prompt)) return raw->images.empty() ? nullptr : &raw->images.back();
  Chat& chat = std::get<Chat>(prompt);
  if (chat.messages.empty() || chat.messages.back().content.empty()) return nullptr;
  return std::get_if<ImagePart>(&chat.messages.back().content.back());
}

Region checked(const Region& region, const Image& image) {
  if (region.x0 < 0 || region.y0 < 0 || region.x0 >= region.x1 || region.y0 >= region.y1 || region.x1 > image.width ||
      region.y1 > image.height)
    throw Error("pin: expected 0 <= x0 < x1 <= " + std::to_string(image.width) +
                " and 0 <= y0 < y1 <= " + std::to_string(image.height) + ", got " + std::to_string(region.x0) + ", " +
                std::to_string(region.y0) + ", " + std::to_string(region.x1) + ", " + std::to_string(region.y1));
  return region;
}

}  // namespace

extern "C" {

espalier_code espalier_image_read(const char* file, espalier_image** image, espalier_error** error) {
  return make_handle(image, "image", error, [&] { return image_of(read_image(needed_text(file, "file"))); });
}

espalier_code espalier_image_decode(const void* bytes, size_t length, espalier_image** image, espalier_error** error) {
  return make_handle(image, "image", error, [&] {
    if (!bytes) throw Error("bytes: expected a picture, got NULL");
    return image_of(decode_image(std::span(static_cast<const std::byte*>(bytes), length)));
  });
}

espalier_code espalier_image_from_pixels(const void* pixels, size_t length, int32_t width, int32_t height,
                                         int64_t stride, int32_t format, espalier_image** image,
                                         espalier_error** error) {
  return make_handle(image, "image", error, [&] {
    if (!pixels) throw Error("pixels: expected a picture, got NULL");
    static_assert(static_cast<int>(PixelFormat::kRgb) == ESPALIER_PIXELS_RGB &&
                  static_cast<int>(PixelFormat::kBgr) == ESPALIER_PIXELS_BGR &&
                  static_cast<int>(PixelFormat::kRgba) == ESPALIER_PIXELS_RGBA &&
                  static_cast<int>(PixelFormat::kBgra) == ESPALIER_PIXELS_BGRA &&
                  static_cast<int>(PixelFormat::kGrey) == ESPALIER_PIXELS_GREY);
    return image_of(Image::from(std::span(static_cast<const uint8_t*>(pixels), length), width, height, stride,
                                static_cast<PixelFormat>(constant(format, ESPALIER_PIXELS_GREY, "format"))));
  });
}

int32_t espalier_image_width(const espalier_image* image) {
  return image ? image->image->width : 0;
}

int32_t espalier_image_height(const espalier_image* image) {
  return image ? image->image->height : 0;
}

void espalier_image_free(espalier_image* image) {
  delete image;
}

espalier_code espalier_prompt_new(espalier_prompt** prompt, espalier_error** error) {
  return make_handle(prompt, "prompt", error, [] { return espalier_prompt{Chat{}}; });
}

espalier_code espalier_prompt_new_raw(const char* text, espalier_prompt** prompt, espalier_error** error) {
  return make_handle(prompt, "prompt", error, [&] { return espalier_prompt{RawPrompt{needed_text(text, "text")}}; });
}

espalier_code espalier_prompt_read(const char* messages_json, espalier_prompt** prompt, espalier_error** error) {
  return make_handle(prompt, "prompt", error,
                     [&] { return espalier_prompt{read_chat(needed_text(messages_json, "messages_json"))}; });
}

espalier_code espalier_prompt_parse(const char* messages_json, const char* folder, espalier_prompt** prompt,
                                    espalier_error** error) {
  return make_handle(prompt, "prompt", error, [&] {
    return espalier_prompt{
        parse_chat(needed_text(messages_json, "messages_json"), text_or(folder, ""), "messages_json")};
  });
}

espalier_code espalier_prompt_begin_turn(espalier_prompt* prompt, const char* role, espalier_error** error) {
  return call(error, [&] {
    Chat* chat = std::get_if<Chat>(&needed(prompt, "prompt").prompt);
    if (!chat) throw Error("prompt: a raw prompt has no turns");
    const std::string name = needed_text(role, "role");
    if (name != "system" && name != "user" && name != "assistant")
      throw Error("role: expected \"system\", \"user\" or \"assistant\", got \"" + name + "\"");
    chat->messages.push_back({name});
  });
}

espalier_code espalier_prompt_add_text(espalier_prompt* prompt, const char* text, espalier_error** error) {
  return call(error, [&] {
    Chat* chat = std::get_if<Chat>(&needed(prompt, "prompt").prompt);
    if (!chat) throw Error("prompt: the text of a raw prompt is whole already");
    current_turn(*chat).content.emplace_back(TextPart{needed_text(text, "text")});
  });
}

espalier_code espalier_prompt_add_image(espalier_prompt* prompt, const espalier_image* image, espalier_error** error) {
  return call(error, [&] {
    Prompt& into = needed(prompt, "prompt").prompt;
    ImagePart part;
    part.image = needed(image, "image").image;
    if (RawPrompt* raw = std::get_if<RawPrompt>(&into)) return raw->images.push_back(std::move(part));
    current_turn(std::get<Chat>(into)).content.emplace_back(std::move(part));
  });
}

espalier_code espalier_prompt_pin(espalier_prompt* prompt, int32_t x0, int32_t y0, int32_t x1, int32_t y1,
                                  espalier_error** error) {
  return call(error, [&] {
    ImagePart* part = last_image(needed(prompt, "prompt").prompt);
    if (!part) throw Error("pin: expected a picture to be the last thing added");
    part->pins.push_back(checked({x0, y0, x1, y1}, *part->image));
  });
}

void espalier_prompt_free(espalier_prompt* prompt) {
  delete prompt;
}

}  // extern "C"
