// SPDX-License-Identifier: Apache-2.0
#include "synth/crowd.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <utility>

#include "synth/scene_parts.h"

namespace espalier::synth {

namespace {

constexpr int kSlotSide = kExtent / kLattice;
// A mark in the middle leaves enough of the smallest object to tell its shape; the largest stays in its slot.
constexpr int kSmallest = 9 * kUnit / 2, kLargest = 23 * kUnit / 4;

Point middle_of_slot(int slot) {
  return {(2 * (slot % kLattice) + 1) * kSlotSide / 2, (2 * (slot / kLattice) + 1) * kSlotSide / 2};
}

Object draw_object(Draws& draws, const Member& member) {
  Object object;
  object.shape = member.shape;
  object.colour = member.colour;
  object.radius = draws.between(kSmallest, kLargest);
  const int room = kSlotSide / 2 - kUnit / 2 - object.radius;
  const Point middle = middle_of_slot(member.slot);
  object.centre = {middle.x + draws.between(-room, room), middle.y + draws.between(-room, room)};
  object.paint = paint_of(draws, member.colour);
  return object;
}

Mark draw_mark(Draws& draws, const Member& member, const Object& object) {
  Mark mark;
  mark.colour = member.mark;
  mark.width = mark.height = Mark::kSide;
  mark.corner = {object.centre.x - Mark::kSide / 2, object.centre.y - Mark::kSide / 2};
  mark.paint = paint_of(draws, member.mark);
  return mark;
}

Panel draw_bar(Draws& draws, const Background& background, int slot) {
  const int base = (background.base.r + background.base.g + background.base.b) / 3;
  const int grey = base < 125 ? base + draws.between(60, 90) : base - draws.between(60, 75);
  Panel bar;
  bar.width = 9 * kUnit, bar.height = 4 * kUnit;
  if (draws.below(2)) std::swap(bar.width, bar.height);
  const Point middle = middle_of_slot(slot);
  bar.corner = {middle.x - bar.width / 2, middle.y - bar.height / 2};
  bar.paint = jittered(draws, {grey, grey, grey}, 6);
  return bar;
}

int count_of(std::span<const Member> members, auto has) {
  return static_cast<int>(std::ranges::count_if(members, has));
}

bool is_only_of_its_kind(std::span<const Member> members, const Member& m) {
  return count_of(members, [&](const Member& o) { return o.shape == m.shape && o.colour == m.colour; }) == 1;
}

bool is_singled_out(std::span<const Member> members, const Member& m, CrowdAsk ask) {
  switch (ask) {
    case CrowdAsk::kColourOf:
      return count_of(members, [&](const Member& o) { return o.shape == m.shape; }) == 1;
    case CrowdAsk::kShapeOf:
      return count_of(members, [&](const Member& o) { return o.colour == m.colour; }) == 1;
    case CrowdAsk::kWithSpot:
      return count_of(members, [&](const Member& o) { return o.mark == m.mark; }) == 1;
    default:
      return is_only_of_its_kind(members, m);
  }
}

}  // namespace

Place Member::place() const {
  return static_cast<Place>(2 * (row() >= kLattice / 2) + (column() >= kLattice / 2));
}

std::vector<Member> draw_members(Draws& draws, int count) {
  std::vector<int> slots(kMostInCrowd);
  std::iota(slots.begin(), slots.end(), 0);
  draws.shuffle(slots);
  std::vector<Member> members(static_cast<size_t>(count));
  for (size_t i = 0; i < members.size(); ++i) {
    Member& m = members[i];
    m.shape = static_cast<Shape>(draws.index(kNumShapes));
    m.colour = static_cast<Colour>(draws.index(kNumColours));
    m.mark = static_cast<Colour>((static_cast<int>(m.colour) + draws.between(1, kNumColours - 1)) % kNumColours);
    m.slot = slots[i];
  }
  return members;
}

Scene crowded_scene(uint64_t seed, const Difficulty& difficulty, std::span<const Member> members) {
  Draws draws(seed);
  Scene scene{
      .seed = seed, .background = draw_background(draws), .clutter = {}, .distractor = {}, .objects = {}, .spot = {}};
  std::vector<int> free(kMostInCrowd);
  std::iota(free.begin(), free.end(), 0);
  for (const Member& m : members) {
    scene.objects.push_back(draw_object(draws, m));
    scene.marks.push_back(draw_mark(draws, m, scene.objects.back()));
    std::erase(free, m.slot);
  }
  if (difficulty.clutter) scene.clutter = draw_strokes(draws, scene.background, kBusyGround);
  if (difficulty.distractor && !free.empty())
    scene.bars.push_back(draw_bar(draws, scene.background, free[static_cast<size_t>(draws.index(free.size()))]));
  return scene;
}

std::vector<CrowdQuestion> questions_about(std::span<const Member> members, CrowdAsk ask) {
  std::vector<CrowdQuestion> questions;
  for (size_t i = 0; i < members.size(); ++i) {
    if (is_singled_out(members, members[i], ask)) questions.push_back({.ask = ask, .object = static_cast<int>(i)});
  }
  return questions;
}

std::string text_of(std::span<const Member> members, const CrowdQuestion& question) {
  const auto kind_of = [](const Member& m) {
    return std::string(name_of(m.colour)) + " " + std::string(name_of(m.shape));
  };
  const Member& m = members[static_cast<size_t>(question.object)];
  switch (question.ask) {
    case CrowdAsk::kColourOf:
      return ask_colour_of(name_of(m.shape));
    case CrowdAsk::kShapeOf:
      return ask_shape_of(name_of(m.colour));
    case CrowdAsk::kPlaceOf:
      return ask_place_of(kind_of(m));
    case CrowdAsk::kSpotOf:
      return ask_spot_on(kind_of(m));
    case CrowdAsk::kWithSpot:
      return ask_what_has_spot(name_of(m.mark));
  }
  return {};
}

std::string_view answer_to(std::span<const Member> members, const CrowdQuestion& question, Trait trait) {
  const Member& m = members[static_cast<size_t>(question.object)];
  switch (question.ask) {
    case CrowdAsk::kColourOf:
      return name_of(m.colour);
    case CrowdAsk::kShapeOf:
      return name_of(m.shape);
    case CrowdAsk::kPlaceOf:
      return name_of(m.place());
    case CrowdAsk::kSpotOf:
      return name_of(m.mark);
    case CrowdAsk::kWithSpot:
      return trait_of(m, trait);
  }
  return {};
}

Cover asked_by(const CrowdQuestion& question) {
  const bool is_spot = question.ask == CrowdAsk::kSpotOf;
  return {is_spot ? Cover::By::kMark : Cover::By::kObject, static_cast<uint8_t>(question.object)};
}

std::vector<Cover> needed_by(const CrowdQuestion& question) {
  const Cover object{Cover::By::kObject, static_cast<uint8_t>(question.object)};
  if (question.ask == CrowdAsk::kSpotOf) return {asked_by(question), object};
  return {object};
}

}  // namespace espalier::synth
