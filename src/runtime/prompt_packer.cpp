// SPDX-License-Identifier: Apache-2.0
#include "runtime/prompt_packer.h"

#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>

#include "base/error_text.h"
#include "espalier/error.h"
#include "layout/cut.h"
#include "runtime/image_cache.h"

namespace espalier {

namespace {

struct Rendered {
  std::string text;
  std::vector<size_t> example_begins;
  std::vector<ImagePart> images;
};

void check_messages(const Chat& chat) {
  if (chat.messages.empty()) throw Error("prompt: there are no messages");
  for (size_t i = 0; i < chat.messages.size(); ++i) {
    const std::string& role = chat.messages[i].role;
    if (role != "system" && role != "user" && role != "assistant")
      throw Error(text_of("prompt: message ", i, ": role: expected system, user or assistant, got ", in_quotes(role)));
  }
  if (chat.messages.back().role != "user")
    throw Error("prompt: the last message must be the user's, whom the model answers; it is the " +
                chat.messages.back().role + "'s");
}

Rendered render(const LoadedModel& model, const Chat& chat) {
  if (!model.chat_template)
    throw Error(model.folder.string() + ": the checkpoint has no chat template; give the exact text as a raw prompt");
  check_messages(chat);
  Rendered rendered;
  for (const Message& message : chat.messages)
    for (const Part& part : message.content)
      if (const auto* image = std::get_if<ImagePart>(&part)) rendered.images.push_back(*image);
  RenderedChat text = model.chat_template->render(chat.messages);
  rendered.text = std::move(text.text);
  rendered.example_begins = std::move(text.example_begins);
  return rendered;
}

Rendered render(const LoadedModel&, const RawPrompt& raw) {
  Rendered rendered{raw.text, raw.example_begins, raw.images};
  if (rendered.example_begins.empty()) rendered.example_begins = {0};
  if (!std::is_sorted(rendered.example_begins.begin(), rendered.example_begins.end()) ||
      rendered.example_begins.back() > raw.text.size())
    throw Error("prompt: example_begins must ascend and lie within the text");
  return rendered;
}

// The example that holds the byte before `end`: a token that reaches over a boundary belongs to the example of its last
// byte.
int example_at(const std::vector<size_t>& begins, size_t end) {
  return static_cast<int>(std::lower_bound(begins.begin(), begins.end(), end) - begins.begin()) - 1;
}

class LayoutBuilder {
 public:
  void add_text(int example) {
    if (!layout.segments.empty()) {
      Segment& last = layout.segments.back();
      if (last.kind == Segment::Kind::kText && last.example == example) {
        ++last.end;
        return;
      }
    }
    const int64_t n = length();
    Segment text;
    text.begin = n;
    text.end = n + 1;
    text.example = example;
    layout.segments.push_back(text);
  }

  // Returns how many tokens that is.
  int64_t add_image(const ImagePlan& plan, int example) {
    const int64_t n = length();
    for (Segment s : plan.segments) {
      s.begin += n;
      s.end += n;
      s.image = static_cast<int>(layout.images.size());
      s.example = example;
      layout.segments.push_back(s);
    }
    layout.images.push_back(plan.shape);
    return plan.num_tokens();
  }

  int64_t length() const { return layout.segments.empty() ? 0 : layout.segments.back().end; }

  PromptLayout layout;
};

bool touches(const Region& r, const PixelBox& box) {
  return r.x0 < box.x1 && r.x1 > box.x0 && r.y0 < box.y1 && r.y1 > box.y0;
}

// Marks the patches whose box on the picture touches a pinned region.
void mark_pins(const std::vector<ImagePart>& images, PromptLayout& layout) {
  layout.pinned = at::zeros({layout.num_tokens}, at::kBool);
  bool* pinned = layout.pinned.data_ptr<bool>();
  layout.pinned_per_image.assign(images.size(), 0);
  for (const Segment& s : layout.segments) {
    if (s.kind != Segment::Kind::kPatches) continue;
    const ImagePart& part = images[s.image];
    if (!part.pin_all && part.pins.empty()) continue;
    for (int64_t t = s.begin; t < s.end; ++t) {
      const PixelBox box = *layout.pixel_box(t);
      pinned[t] = part.pin_all || std::ranges::any_of(part.pins, [&](const Region& r) { return touches(r, box); });
      layout.pinned_per_image[s.image] += pinned[t];
    }
  }
}

// A handle brings its picture along.
void check_images(const LoadedModel& model, std::vector<ImagePart>& images) {
  for (size_t i = 0; i < images.size(); ++i) {
    ImagePart& part = images[i];
    const std::string name = "prompt: image " + std::to_string(i);
    if (part.handle) {
      if (!part.handle->is_of(model)) throw Error(name + ": its handle is of another engine");
      if (part.image && part.image != part.handle->image()) throw Error(name + ": its handle is of another picture");
      part.image = part.handle->image();
    }
    if (!part.image) throw Error(name + " has no pixels");
    check(*part.image, name);
  }
}

// With M-RoPE a prompt takes fewer positions than it has tokens.
void check_length(const LoadedModel& model, int64_t tokens, int64_t positions, int64_t new_tokens) {
  const int64_t limit = model.config.decoder.max_positions;
  if (new_tokens <= limit - positions) return;
  const std::string taken = positions == tokens ? "" : " (" + std::to_string(positions) + " positions)";
  throw Error("prompt: " + std::to_string(tokens) + " tokens" + taken + " and up to " + std::to_string(new_tokens) +
              " new ones pass the model's limit of " + std::to_string(limit) + " positions");
}

// A policy may only make a picture smaller.
void check_wanted(const PruningPolicy& policy, const ImageShape& own, const ImageShape& wanted) {
  const auto fits = [](GridSize size, GridSize most) {
    return size.rows >= 1 && size.cols >= 1 && size.rows <= most.rows && size.cols <= most.cols;
  };
  if (!fits(wanted.grid, own.grid))
    throw Error(text_of(in_quotes(policy.spec()), ": wanted_shape: a grid of 1x1 to ", own.grid.rows, "x",
                        own.grid.cols, " was expected, got ", wanted.grid.rows, "x", wanted.grid.cols));
  if (!wanted.tiling || (own.tiling && fits(*wanted.tiling, *own.tiling))) return;
  throw Error(text_of(
      in_quotes(policy.spec()), ": wanted_shape: ",
      own.tiling ? text_of("at most ", own.tiling->rows, "x", own.tiling->cols, " tiles") : std::string("no tiles"),
      " were expected, got ", wanted.tiling->rows, "x", wanted.tiling->cols));
}

// Each picture is planned once, as the checkpoint shows it; where that is not the shape that the policy wants, in that
// shape instead.
std::vector<ImagePlan> plan_images(const LoadedModel& model, const std::vector<ImagePart>& images,
                                   const PruningPolicy* policy) {
  const auto plan_of = [&](size_t i, const auto& plan) {
    try {
      return plan(images[i].image->width, images[i].image->height);
    } catch (const Error& e) {
      throw Error("prompt: image " + std::to_string(i) + ": " + e.what());
    }
  };
  std::vector<ImagePlan> plans;
  int64_t tokens = 0;
  for (size_t i = 0; i < images.size(); ++i) {
    plans.push_back(plan_of(i, model.front_end.plan));
    tokens += plans.back().num_tokens();
  }
  if (!policy || tokens < policy->common().min_tokens) return plans;
  for (size_t i = 0; i < plans.size(); ++i)
    plans[i] = plan_of(i, [&](int width, int height) {
      const ImageShape& own = plans[i].shape;
      const ImageShape wanted = policy->wanted_shape(model.facts, own);
      check_wanted(*policy, own, wanted);
      const bool is_own = wanted.grid == own.grid && wanted.tiling == own.tiling;
      return is_own ? plans[i] : model.front_end.plan_as(width, height, wanted);
    });
  return plans;
}

}  // namespace

PackedPrompt pack_prompt(const LoadedModel& model, const Prompt& prompt, std::optional<int64_t> new_tokens,
                         const PruningPolicy* policy) {
  Rendered rendered = std::visit([&](const auto& p) { return render(model, p); }, prompt);
  check_images(model, rendered.images);
  const std::vector<Tokenizer::Token> tokens = model.tokenizer.encode_with_ends(rendered.text);
  const auto placeholders =
      std::ranges::count_if(tokens, [&](const auto& t) { return t.id == model.config.image_token_id; });
  if (placeholders != std::ssize(rendered.images))
    throw Error("prompt: " + std::to_string(placeholders) + " image placeholders in the text, but " +
                std::to_string(rendered.images.size()) + " images were given");
  PackedPrompt packed;
  packed.plans = plan_images(model, rendered.images, policy);
  LayoutBuilder builder;
  for (const Tokenizer::Token& token : tokens) {
    const int example = example_at(rendered.example_begins, token.end);
    int64_t count = 1;
    if (token.id == model.config.image_token_id) {
      count = builder.add_image(packed.plans[builder.layout.images.size()], example);
    } else {
      builder.add_text(example);
    }
    packed.ids.insert(packed.ids.end(), static_cast<size_t>(count), token.id);
  }
  PromptLayout& layout = builder.layout;
  layout.query_example = static_cast<int>(rendered.example_begins.size()) - 1;
  const int64_t n = builder.length();
  if (n == 0) throw Error("prompt: it has no tokens");
  PromptPositions positions = model.front_end.positions(layout);
  if (new_tokens) check_length(model, n, positions.next, *new_tokens);
  layout.num_tokens = n;
  layout.position_id = std::move(positions.ids);
  packed.next_position = positions.next;
  mark_pins(rendered.images, layout);
  finish_prompt_layout(layout, model.device);
  packed.layout = std::make_shared<const PromptLayout>(std::move(layout));
  packed.text = std::move(rendered.text);
  packed.images = std::move(rendered.images);
  return packed;
}

}  // namespace espalier
