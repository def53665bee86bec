// SPDX-License-Identifier: Apache-2.0
// The policy interface: where visual tokens may be removed, which signals a policy may ask for, and what it may answer.
// A policy never runs the model and never touches a cache: the runtime computes what was asked for as a by-product of
// fast attention, applies the verdict and owns its consequences (hidden states, position ids, per-layer KV lengths,
// statistics).
//
// A policy is const and is shared between requests and threads; what one sequence carries from point to point lives in
// its State. include/espalier/policy_needs.md tables what each published method asks of this interface.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "espalier/token_layout.h"

namespace espalier {

// Layers are 0-based everywhere; "before layer L" means that L has not run.
enum class Site : uint8_t {
  kVisionOutput,     // patches as the vision tower leaves them, before the projector
  kProjectorOutput,  // the packed sequence, before the decoder
  kBeforeLayer,      // the state that enters decoder layer L
  kAfterAttention,   // inside layer L, behind its attention: the layer's own cache stays whole, rows leave
  kCache,            // the cache of layer L after prefill: tokens stay in the residual stream
};

struct ActPoint {
  Site site = Site::kProjectorOutput;
  int layer = 0;  // for the last three
  bool operator==(const ActPoint&) const = default;
};

// "before_layer" …, as in files and messages.
std::string_view name_of(Site site);

// What a policy may know of the model.
struct ModelFacts {
  int num_layers = 0;
  int64_t hidden_size = 0;
  int num_heads = 0;
  int num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t intermediate_size = 0;
  int64_t sliding_window = 0;  // 0: none
  bool has_mrope = false;
  int vision_layers = 0;
  int vision_feature_layer = 0;  // 0-based layer whose output the projector reads
  int vision_heads = 0;
  int64_t vision_hidden_size = 0;
  bool has_class_token = false;  // class row in the vision tower
  bool has_text_tower = false;   // a CLIP text tower paired with it
};

// ---- signals ----
// All are tensors on the model's device. Indices are int64, in the current sequence (TokenLayout); m =
// num_image_tokens.

// Softmax probabilities that `rows` give to image tokens. Heads are reduced first, then the mean over rows is taken.
// The score matrix is never stored.
struct AttentionProbe {
  enum class Rows : uint8_t {
    kLastToken,  // the last row of the prompt; columns: all image tokens
    kGiven,      // `groups`
    kClass,      // vision tower: the class row of each crop; columns: the crop's patches. m here counts patches, in
                 // sequence order
  };
  enum class Heads : uint8_t {
    kMean,
    kMax,
    kEach,
    kJoint,  // class row only: heads' vectors as one, scale 1/sqrt(width): one distribution (PruMerge)
  };
  struct Group {
    at::Tensor rows;          // [r]
    at::Tensor columns = {};  // [c]; undefined: all image tokens
  };
  int layer = 0;  // whose queries and keys: decoder layer, for kClass a vision layer. kBeforeLayer L: layer L itself is
                  // a look-ahead, which costs one norm and projection
  Rows rows = Rows::kLastToken;
  Heads heads = Heads::kMean;
  bool reduce_rows = true;  // false: one group, rows apart
  std::vector<Group> groups = {};
};  // -> float32 [m] ([sum of columns] for kGiven); [h, …] for kEach; [r, c] or [h, r, c] when rows are not reduced

// max(0, A_upper - A_lower) of the last prompt row, heads averaged first or clipped each by itself, with an optional
// cosine term computed in the same pass: + weight · cos(state of the token, mean state of the tokens `pool`), on the
// state at the act point.
struct AttentionGrowth {
  int lower = 0;
  int upper = 0;
  bool relu_per_head = false;
  at::Tensor pool = {};  // int64; undefined: no cosine term
  double cosine_weight = 0.0;
};  // -> float32 [m]

// A tensor that the model makes anyway.
struct Tap {
  enum class What : uint8_t {
    kHidden,        // [n, d] residual stream at the act point; at kProjectorOutput: projected image tokens and text
                    // embeddings
    kFinalNorm,     // [n, d] the same after the model's final norm
    kKey,           // [n, g, d_h] keys of decoder `layer` after RoPE; at kBeforeLayer L: layer < L
    kVisionOutput,  // [m, d_v] what the projector reads, patches in sequence order
    kVisionClass,   // [c, d_v] class rows that go with it, crops in order
    kVisionKey,     // [m, d_v] keys of vision `layer`, heads concatenated
    kClipImage,     // [m, d_c] CLIP embeddings of the patches
    kClipText,      // [t, d_c] CLIP embeddings of the question's text segments
  };
  What what = What::kHidden;
  int layer = 0;
};

using Signal = std::variant<AttentionProbe, AttentionGrowth, Tap>;

// ---- verdicts ----

// Vectors that enter the sequence in place of what a policy took out.
struct NewTokens {
  enum class Where : uint8_t {
    kInPlace,      // at the place of the token they stand at
    kFront,        // before the first token of their crop
    kBehind,       // behind the last token of their crop, in the given order
    kBehindImage,  // behind the last token of their image, in the given order
  };
  Where where = Where::kInPlace;
  at::Tensor vectors;  // [r, d]: at kVisionOutput of the tower's width, else of the decoder's
  at::Tensor
      stands_at;  // int64 [r] ordinal into image_tokens of the token each stands at; -1: none. kInPlace needs one
  at::Tensor position_from;  // int64 [r] ordinal of the token whose position id, image, crop and example each takes
};

// Numbers of a decision that are not scores (thresholds, masses), for traces only.
struct Note {
  std::string name;
  at::Tensor values;  // float32 [any]
};

struct Verdict {
  // Ascending ordinals into TokenLayout::image_tokens that stay as they are, int64 [k]; at kCache [g, k] for a choice
  // per KV head, or [k].
  at::Tensor kept;
  std::vector<NewTokens> added = {};  // not at kCache
  // Image tokens leave the point image by image and crop by crop, and row breaks leave altogether: the order in which
  // merged tokens of an any-resolution image enter the decoder. False: what stays keeps the order of the sequence.
  bool crop_by_crop = false;
  // For traces and replay results only; both on ordinals of image_tokens.
  at::Tensor scores = {};  // float32 [m]
  at::Tensor judged = {};  // bool [m]; undefined: all
  std::vector<Note> notes = {};
};

// ---- policies ----

enum class Positions : uint8_t {
  kKeep,     // survivors keep their original position ids; decoding continues from the original length
  kCompact,  // ids are renumbered 0, 1, … at each point; decoding continues from the current length
};

// Rules that hold for every policy; the runtime hands them to decide() as part of the layout (pinned) and here.
struct CommonOptions {
  Positions positions = Positions::kKeep;
  int64_t min_per_image = 0;  // tokens that stay of each image
  int64_t min_tokens = 0;     // below this many image tokens in the request nothing is dropped
};

class PruningPolicy {
 public:
  struct State {
    virtual ~State() = default;
  };
  virtual ~PruningPolicy() = default;

  virtual std::string spec()
      const = 0;  // as it would be written on the command line, all options that differ from defaults
  virtual CommonOptions common() const { return {}; }
  // True: row breaks (newline tokens of any-resolution images) are image tokens like the rest. False: one stays while a
  // patch of its row does.
  virtual bool row_breaks_compete() const { return false; }

  // Asked for each image before its pixels are prepared: `shape` is what the model would make of the picture, the
  // answer what the policy wants (resize): as many rows and columns or fewer, as many tiles or fewer. Only grid and
  // tiling count.
  virtual ImageShape wanted_shape(const ModelFacts& model, const ImageShape& shape) const { return shape; }
  // Where the policy acts for this request, in the order of the data. Throws Error when the model or the request cannot
  // serve it.
  virtual std::vector<ActPoint> points(const ModelFacts& model, const PromptLayout& prompt) const = 0;
  virtual std::unique_ptr<State> begin_sequence(const ModelFacts& model, const PromptLayout& prompt) const {
    return nullptr;
  }
  // Asked right after the previous act point, when the layout that this point will see is final.
  virtual std::vector<Signal> needs(const ActPoint& point, const TokenLayout& layout, const State* state) const = 0;
  // `signals` in the order of needs(). Must not wait for a GPU unless the number kept depends on the data.
  virtual Verdict decide(const ActPoint& point, const TokenLayout& layout, std::span<const at::Tensor> signals,
                         State* state) const = 0;
  // Training: the same decision as a differentiable weight in (0, 1) for each image token, float32 [m]; nothing is
  // removed, decoder layers from here on take it as a weight per key. Policies that cannot be trained throw Error.
  virtual at::Tensor soft_mask(const ActPoint& point, const TokenLayout& layout, std::span<const at::Tensor> signals,
                               State* state) const;
};

using PolicyPtr = std::shared_ptr<const PruningPolicy>;

struct AtpWeights;      // policies/atp.h
struct FitpruneRecipe;  // policies/fitprune.h
struct KeptSets;        // policies/keepmask.h
struct VtwRecipe;       // policies/vtw.h

// Reads the files that a spec names; policies open none themselves. Each throws Error naming the file and what is wrong
// in it: what comes back is whole and of the right types, shapes and ranges.
class PolicyFiles {
 public:
  virtual ~PolicyFiles() = default;
  virtual AtpWeights atp_weights(const std::string& file) const = 0;
  virtual FitpruneRecipe fitprune_recipe(const std::string& file) const = 0;
  virtual KeptSets kept_sets(const std::string& file) const = 0;
  virtual VtwRecipe vtw_recipe(const std::string& file) const = 0;
};

// A policy from its spec string, `name` or `name:option=value,option=value` (policy table: `espalier policies`); files
// that options name are read from disk, or by `files`. Throws Error on an unknown policy or option, a value out of
// range, a missing amount.
PolicyPtr make_policy(std::string_view spec);
PolicyPtr make_policy(std::string_view spec, const PolicyFiles& files);

}  // namespace espalier
