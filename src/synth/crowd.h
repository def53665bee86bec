// SPDX-License-Identifier: Apache-2.0
// Crowded pictures: 8 to 16 objects, each with a mark of another colour, in the slots of a 4 x 4 lattice, several of
// the same shape or colour, on a ground as busy as they are. And the questions about such a picture that have exactly
// one answer. Not here: which question an item asks (crowded_items.h), pixels (scene.h).
//
// A picture of kCrowdSide pixels on a grid of kCrowdGrid patches a side is what these scenes are made for.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "synth/draws.h"
#include "synth/scene.h"
#include "synth/wording.h"

namespace espalier::synth {

inline constexpr int kCrowdSide = 84, kCrowdGrid = 12;
inline constexpr int kLattice = 4;  // slots along a side, numbered row by row
inline constexpr int kFewestInCrowd = 8, kMostInCrowd = kLattice * kLattice;

struct Member {
  Shape shape{};
  Colour colour{};
  Colour mark{};  // never `colour`
  int slot = 0;

  int row() const { return slot / kLattice; }
  int column() const { return slot % kLattice; }
  Place place() const;  // the quarter of its slot
};

// `count` of them, 1 to kMostInCrowd, in different slots.
std::vector<Member> draw_members(Draws& draws, int count);

// Scene::objects and Scene::marks are the members in their order. With Difficulty::clutter the ground is strokes all
// over, with Difficulty::distractor a free slot, where there is one, holds a grey bar.
Scene crowded_scene(uint64_t seed, const Difficulty& difficulty, std::span<const Member> members);

// ---- questions ----

enum class CrowdAsk : uint8_t {
  kColourOf,  // what colour is the star?         the only star
  kShapeOf,   // what shape is red?               the only red object
  kPlaceOf,   // where is the red star?           the only object of this shape and colour
  kSpotOf,    // what spot is on the red star?    likewise
  kWithSpot,  // what has the red spot?           the only object with a red mark; its trait is the answer
};
enum class Trait : uint8_t { kColour, kShape, kPlace };
inline constexpr int kNumTraits = 3;
inline constexpr std::array<std::string_view, kNumTraits> kTraitNames = {"colour", "shape", "place"};

struct CrowdQuestion {
  CrowdAsk ask{};
  int object = 0;  // the member that is asked about
};

// Those that have exactly one answer in this picture.
std::vector<CrowdQuestion> questions_about(std::span<const Member> members, CrowdAsk ask);
std::string text_of(std::span<const Member> members, const CrowdQuestion& question);
// `trait`: of kWithSpot.
std::string_view answer_to(std::span<const Member> members, const CrowdQuestion& question, Trait trait = {});
// Of a member or an object.
std::string_view trait_of(const auto& thing, Trait trait) {
  return trait == Trait::kColour  ? name_of(thing.colour)
         : trait == Trait::kShape ? name_of(thing.shape)
                                  : name_of(thing.place());
}

// The thing that a question is about.
Cover asked_by(const CrowdQuestion& question);
// All that the answer is read from: of a mark's the object under it, too.
std::vector<Cover> needed_by(const CrowdQuestion& question);

}  // namespace espalier::synth
