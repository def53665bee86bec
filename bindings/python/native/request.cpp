// SPDX-License-Identifier: Apache-2.0
#include "request.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <limits>
#include <utility>
#include <vector>

#include "espalier/pruning.h"
#include "policy.h"
#include "result.h"

namespace espalier::python {

namespace {

using namespace pybind11::literals;

// ---- options ----

template <typename T>
T value_of(const std::string& name, py::handle value) {
  try {
    return value.cast<T>();
  } catch (const py::cast_error&) {
    throw Error(name + ": expected " + kKind<T> + ", got " + py::repr(value).cast<std::string>());
  }
}

template <typename T>
void set(std::optional<T>& to, const std::string& name, py::handle value) {
  to.reset();
  if (!value.is_none()) to = value_of<T>(name, value);
}
template <typename T>
void set(T& to, const std::string& name, py::handle value) {
  to = value_of<T>(name, value);
}

// One option, by the member that it sets.
struct Option {
  const char* name;
  void (*set_to)(GenerationOptions& options, const std::string& name, py::handle value);
};
template <auto member>
constexpr Option option(const char* name) {
  return {name,
          [](GenerationOptions& options, const std::string& n, py::handle value) { set(options.*member, n, value); }};
}

using G = GenerationOptions;
constexpr std::array kOptions = {option<&G::max_new_tokens>("max_new_tokens"),
                                 option<&G::greedy>("greedy"),
                                 option<&G::do_sample>("do_sample"),
                                 option<&G::temperature>("temperature"),
                                 option<&G::top_k>("top_k"),
                                 option<&G::top_p>("top_p"),
                                 option<&G::repetition_penalty>("repetition_penalty"),
                                 option<&G::seed>("seed"),
                                 option<&G::stop>("stop"),
                                 option<&G::ignore_eos>("ignore_eos"),
                                 option<&G::top_logprobs>("top_logprobs")};

bool set_option(G& options, const std::string& name, py::handle value) {
  for (const Option& known : kOptions)
    if (name == known.name) return known.set_to(options, name, value), true;
  return false;
}

[[noreturn]] void refuse_option(const std::string& name) {
  std::string known;
  for (const Option& option : kOptions) known += std::string(known.empty() ? "" : ", ") + option.name;
  throw Error("options: there is no '" + name + "'; beside policy, salt and trace there are " + known);
}

// ---- callbacks ----

// What was given under a name, for C++ to hold; nothing for None.
Held function_of(const py::dict& functions, const char* name) {
  if (!functions.contains(name) || functions[name].is_none()) return {};
  py::object function = functions[name];
  if (!PyCallable_Check(function.ptr()))
    throw Error(std::string(name) + ": expected a function, got " + py::repr(function).cast<std::string>());
  return hold(std::move(function));
}

Continue continue_of(py::handle answer) {
  if (answer.is_none()) return Continue::kGo;
  const std::string word = py::isinstance<py::str>(answer) ? answer.cast<std::string>() : "";
  if (word == "stop") return Continue::kStop;
  if (word == "cancel") return Continue::kCancel;
  throw Error("on_text: expected None, \"stop\" or \"cancel\" back, got " + py::repr(answer).cast<std::string>());
}

// ---- prompts ----

ImagePart image_part(std::shared_ptr<Image> image, bool pin_all, const std::vector<std::array<int, 4>>& pins) {
  ImagePart part{.image = std::move(image), .pin_all = pin_all};
  for (const auto& [x0, y0, x1, y1] : pins) part.pins.push_back({x0, y0, x1, y1});
  return part;
}

std::vector<Part> parts_of(py::handle all) {
  std::vector<Part> parts;
  for (const py::handle part : all)
    if (py::isinstance<py::str>(part))
      parts.emplace_back(TextPart{part.cast<std::string>()});
    else if (py::isinstance<ImagePart>(part))
      parts.emplace_back(part.cast<ImagePart>());
    else
      throw Error("message: expected text and pictures, got " + py::repr(part).cast<std::string>());
  return parts;
}

Chat chat_of(const std::vector<std::pair<std::string, py::list>>& messages) {
  Chat chat;
  for (const auto& [role, parts] : messages) chat.messages.push_back({role, parts_of(parts)});
  return chat;
}

py::list messages_of(const Chat& chat) {
  py::list messages;
  for (const Message& message : chat.messages) {
    py::list content;
    for (const Part& part : message.content)
      if (const auto* text = std::get_if<TextPart>(&part))
        content.append(py::dict("type"_a = "text", "text"_a = text_of(text->text)));
      else
        content.append(py::dict("type"_a = "image", "image"_a = std::get<ImagePart>(part)));
    messages.append(py::dict("role"_a = message.role, "content"_a = content));
  }
  return messages;
}

// Rows of bytes, one for each channel of a pixel: grey, RGB or RGBA.
std::shared_ptr<Image> image_from(std::span<const uint8_t> pixels, int64_t width, int64_t height, int64_t channels) {
  const PixelFormat format = channels == 1   ? PixelFormat::kGrey
                             : channels == 3 ? PixelFormat::kRgb
                                             : PixelFormat::kRgba;
  const auto side = [](int64_t n) { return static_cast<int>(std::min<int64_t>(n, std::numeric_limits<int>::max())); };
  return std::make_shared<Image>(Image::from(pixels, side(width), side(height), 0, format));
}

std::shared_ptr<Image> image_from_bytes(const py::bytes& pixels, int width, int height, int channels) {
  const auto bytes = static_cast<std::string_view>(pixels);
  return image_from({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}, width, height, channels);
}

// uint8 [h, w, 1, 3 or 4] on the CPU.
std::shared_ptr<Image> image_from_tensor(const at::Tensor& pixels) {
  const at::Tensor rows = pixels.contiguous();
  return image_from({rows.const_data_ptr<uint8_t>(), static_cast<size_t>(rows.numel())}, rows.size(1), rows.size(0),
                    rows.size(2));
}

}  // namespace

GenerationOptions generation_of(const py::dict& options) {
  GenerationOptions generation;
  for (const auto& [key, value] : options)
    if (const auto name = key.cast<std::string>(); !set_option(generation, name, value)) refuse_option(name);
  return generation;
}

Request request_of(Prompt prompt, const py::dict& options) {
  Request request;
  request.prompt = std::move(prompt);
  for (const auto& [key, value] : options) {
    const auto name = key.cast<std::string>();
    if (name == "salt") {
      set(request.salt, name, value);
    } else if (name == "trace") {
      set(request.trace, name, value);
    } else if (name == "policy" && py::isinstance<py::str>(value)) {
      request.policy = value.cast<std::string>();  // known by its spec, so that requests may share beginnings
    } else if (name == "policy") {
      request.custom = policy_of(value);
      request.policy = request.custom->spec();
    } else if (!set_option(request.options, name, value)) {
      refuse_option(name);
    }
  }
  return request;
}

Callbacks callbacks_of(const py::dict& functions) {
  Callbacks callbacks;
  if (const Held on_text = function_of(functions, "on_text"))
    callbacks.on_text = [on_text](size_t request, std::string_view piece) {
      return in_python([&] { return continue_of((*on_text)(request, text_of(piece))); });
    };
  if (const Held on_token = function_of(functions, "on_token"))
    callbacks.on_token = [on_token](size_t request, int32_t id, const TokenLogprobs* logprobs) {
      in_python([&] { (*on_token)(request, id, logprobs ? to_python(*logprobs) : py::object(py::none())); });
    };
  if (const Held on_prompt = function_of(functions, "on_prompt"))
    callbacks.on_prompt = [on_prompt](size_t request, const PromptTrace& trace) {
      in_python([&] { (*on_prompt)(request, to_python(trace)); });
    };
  if (const Held on_point = function_of(functions, "on_point"))
    callbacks.on_point = [on_point](size_t request, const PointTrace& trace) {
      in_python([&] { (*on_point)(request, to_python(trace)); });
    };
  if (const Held on_progress = function_of(functions, "on_progress"))
    callbacks.on_progress = [on_progress](std::string_view stage, int64_t done, int64_t total) {
      in_python([&] { (*on_progress)(std::string(stage), done, total); });
    };
  if (const Held should_cancel = function_of(functions, "should_cancel"))
    callbacks.should_cancel = [should_cancel] {
      return in_python([&] { return py::bool_((*should_cancel)()).cast<bool>(); });
    };
  return callbacks;
}

void add_prompts(py::module_& module) {
  py::class_<Image, std::shared_ptr<Image>>(module, "Image")
      .def(py::init(&image_from_bytes), "pixels"_a, "width"_a, "height"_a, "channels"_a)
      .def(py::init(&image_from_tensor), "pixels"_a)
      .def_static(
          "read", [](const std::string& file) { return std::make_shared<Image>(read_image(file)); }, "file"_a,
          py::call_guard<Unlocked>())
      .def_static(
          "decode",
          [](const py::bytes& bytes) {
            const auto view = static_cast<std::string_view>(bytes);
            return std::make_shared<Image>(decode_image(std::as_bytes(std::span(view))));
          },
          "bytes"_a)
      .def_readonly("width", &Image::width)
      .def_readonly("height", &Image::height)
      .def("tobytes", [](const Image& image) {
        return py::bytes(reinterpret_cast<const char*>(image.rgb.data()), image.rgb.size());
      });
  py::class_<ImagePart>(module, "ImagePart")
      .def(py::init(&image_part), "image"_a, "pin_all"_a = false, "pins"_a = std::vector<std::array<int, 4>>());
  py::class_<Chat>(module, "Chat").def(py::init(&chat_of), "messages"_a).def("messages", &messages_of);
  py::class_<RawPrompt>(module, "RawPrompt")
      .def(py::init([](std::string text, std::vector<ImagePart> images, std::vector<size_t> example_begins) {
             return RawPrompt{std::move(text), std::move(images), std::move(example_begins)};
           }),
           "text"_a, "images"_a, "example_begins"_a);
  module.def(
      "read_chat", [](const std::string& file) { return read_chat(file); }, "file"_a, py::call_guard<Unlocked>());
}

}  // namespace espalier::python
