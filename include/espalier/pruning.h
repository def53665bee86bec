// SPDX-License-Identifier: Apache-2.0
// The policy interface: where visual tokens may be removed, which signals a policy may ask for, and what it may answer.
// A policy says in steps where it acts, what it reads and how much stays; it ranks tokens, and the engine makes the
// cut: amounts, pools, pins, floors, rounding, ties and row breaks are its own. A policy never runs the model and never
// touches a cache.
//
// A policy is const and is shared between requests and threads. What the steps of one request share is what their
// closures hold: steps() makes it anew for each request. include/espalier/policy_needs.md tables what each published
// method asks of this interface.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "espalier/act_point.h"
#include "espalier/model_facts.h"
#include "espalier/policies/amount.h"
#include "espalier/token_layout.h"

namespace espalier {

// ---- signals ----
// All are tensors on the model's device. Indices are int64, in the current sequence (TokenLayout); m =
// num_image_tokens.

// Softmax probabilities that `rows` give to image tokens. Heads are reduced first, then the mean over rows is taken.
// The score matrix is never stored.
struct AttentionProbe {
  enum class Rows : uint8_t {
    kLastToken,  // the last row of the prompt, while decoding the newest token's; columns: all image tokens
    kGenerated,  // the same after prefill; while decoding the rows of all tokens that were generated since the step
                 // was asked before (Step::every)
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
  bool reduce_rows = true;  // false: one group, rows apart; not of kGenerated
  // Of kLastToken and kGenerated: columns of all other tokens that a row sees (text, what was generated) stand after
  // those of image tokens, in the order of the sequence.
  bool with_others = false;
  std::vector<Group> groups = {};
};  // -> float32 [m] ([sum of columns] for kGiven; [m + others] with others); [h, …] for kEach; [r, c] or [h, r, c]
    // when rows are not reduced

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
    kVisionClass,   // [c, d_v] class rows that go with it, crops in order; of the pictures that are there
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
    kBehind,       // after the last token of their crop, in the given order
    kBehindImage,  // after the last token of their image, in the given order
  };
  Where where = Where::kInPlace;
  at::Tensor vectors;  // [r, d]: at kVisionOutput of the tower's width, else of the decoder's
  // int64 [r]: the token each stands at, an ordinal of image_tokens; -1 for one without a place (a class row, a rest).
  at::Tensor stands_at;
  // int64 [r]: the token whose position id, image and crop it takes, an ordinal of image_tokens.
  at::Tensor position_from;
};

// Numbers of a decision beside scores (thresholds, masses), for `espalier inspect`.
struct Note {
  std::string name;
  at::Tensor values;
};

// Tokens that compete with each other. The engine makes pools from a step's budget.
struct Pools {
  at::Tensor tokens;              // int64 [c] ordinals of image_tokens, pool by pool, ascending in each
  std::vector<int64_t> begin;     // [pools + 1] into `tokens`
  std::vector<int64_t> num_kept;  // [pools] what stays of each; never more than there is
  at::Tensor always;              // bool [c]: these stay (pins, floors, Verdict::always) and count
  int64_t size(size_t pool) const { return begin[pool + 1] - begin[pool]; }
};

// What is made of pools.
struct Choice {
  at::Tensor kept;  // int64 [k] ordinals of image_tokens that stay as they are, in any order
  std::vector<NewTokens> added = {};
  bool crop_by_crop = false;  // as in Verdict
};

// A ranking (`scores`, or `choose`), which the engine cuts; or a kept set, which it takes as it is.
struct Verdict {
  at::Tensor kept = {};               // int64 [k] ordinals of image_tokens, ascending; at kCache [k] or [KV heads, k]
  std::vector<NewTokens> added = {};  // with `kept`; not at kCache
  // Image tokens leave the point image by image and crop by crop, and row breaks leave altogether: the order in which
  // merged tokens of an any-resolution image enter the decoder. False: what stays keeps the order of the sequence.
  bool crop_by_crop = false;

  // float32 [m]: the larger, the longer it stays, ties to the lower ordinal; at kCache also [KV heads, m]. Beside
  // `kept` or `choose`: for traces and replay results only.
  at::Tensor scores = {};
  at::Tensor judged = {};  // bool [m], beside `kept`: the tokens that `scores` are about; undefined: all
  std::vector<Note> notes = {};

  // A choice that needs to know how many stay: a greedy order, which ends there; or one that merges what leaves.
  std::function<Choice(const Pools&)> choose = {};
  at::Tensor always = {};              // bool [m]: these stay and count, whatever their rank
  std::vector<int64_t> num_kept = {};  // with an adaptive budget, one for each pool; none: as many as `always` has
};

// ---- steps ----

// What a verdict about a token may depend on, beside the token itself. A prefix cache trusts it, so the conformance kit
// proves it: change all that lies outside, the verdict stays.
enum class Scope : uint8_t {
  kCrop,     // its crop (and, where min_per_image divides a floor, the image's other crops)
  kImage,    // its image
  kExample,  // its image and the text of its example
  kPrefix,   // everything up to the end of its example
  kRequest,  // all of the request: a question after it
};

// How much stays of each pool.
struct Budget {
  enum class Pool : uint8_t { kCrop, kImage, kRequest };
  Pool pool = Pool::kRequest;        // no wider than the step's scope
  Amount amount = {};                // of the unpruned pool; or
  std::vector<int64_t> counts = {};  // of each pool of the unpruned request, where a method counts in its own way; or
  bool is_adaptive = false;          // the data decide: Verdict::num_kept, always or kept
  Rounding rounding = Rounding::kNearestEven;
  bool at_least_one = false;  // a ratio leaves one token of a pool that has any
  // Only tokens of these images are judged, all others stay; none: of all. `counts` then has one number for the pool of
  // kRequest, and one for each image of the request for kImage.
  std::vector<int64_t> images = {};
  bool is_interim = false;  // a later step of the policy comes to its amount: pipelines do not compare this one
};

// One point where a policy acts: where, how much stays, what is read, and the decision.
struct Step {
  ActPoint at = {};
  Scope scope = Scope::kRequest;
  Budget budget = {};
  // Asked right after the previous step, when the layout that this one will see is final. None: it reads nothing.
  std::function<std::vector<Signal>(const TokenLayout&)> needs = {};
  // `signals` in the order of needs(). Must not wait for a GPU unless the number kept depends on the data.
  std::function<Verdict(const TokenLayout&, std::span<const at::Tensor> signals)> decide = {};
  // Training: the same decision as a differentiable weight in (0, 1) for each image token, float32 [m]; nothing is
  // removed, decoder layers from here on take it as a weight per key. None: the policy cannot be trained.
  std::function<at::Tensor(const TokenLayout&, std::span<const at::Tensor> signals)> soft_mask = {};

  bool is_nested = true;     // what a smaller budget keeps is part of what a larger one keeps
  bool always_acts = false;  // it changes tokens even where its budget lets all of them stay
  bool adds_on_top = false;  // new tokens come beside the budget
  bool only_reads = false;   // for a later step of the policy, and not visited unless that one is; drops nothing

  // At kCache: asked again with each `every`-th generated token, before that token attends in the layer, which then
  // sees what was kept; 0: once, after prefill. The step gets the layout and asks for the signals that it had after
  // prefill, which are attention probes of kLastToken or kGenerated alone: probabilities over all rows that the layer
  // has in memory, whether anything attends to them or not; 0 for what is freed.
  int every = 0;
  // With `every`: rows that leave are held in memory, where nothing attends to them, and come back when they are kept
  // again. False: they are freed and never come back; of a ranking the best of those that are left stay.
  bool revives = false;
  // With `every`, freed rows and a number for the pool of kRequest: the tokens of the answer count too. So many image
  // tokens fewer stay that both together are never more than the number, until no image token is left that may leave.
  bool makes_room = false;
  std::string policy = {};  // spec of the policy whose step it is; the engine fills it in
};

// ---- policies ----

enum class Positions : uint8_t {
  kKeep,     // survivors keep their original position ids; decoding continues from the original length
  kCompact,  // ids are renumbered 0, 1, … at each point; decoding continues from the current length
};

// Rules that hold for every policy.
struct CommonOptions {
  Positions positions = Positions::kKeep;
  int64_t min_per_image = 0;  // tokens that stay of each image
  int64_t min_tokens = 0;     // below this many image tokens in the request nothing is dropped
  bool operator==(const CommonOptions&) const = default;
};

// What a method derives from. spec() and steps() are all that it has to answer.
struct OpenAmount;  // target.h

class PruningPolicy {
 public:
  virtual ~PruningPolicy() = default;

  // As it would be written on the command line: all options that differ from their defaults.
  virtual std::string spec() const = 0;
  virtual CommonOptions common() const { return {}; }
  // True: row breaks (newline tokens of any-resolution images) are image tokens like the rest. False: one stays while a
  // patch of its row does.
  virtual bool row_breaks_compete() const { return false; }

  // Asked for each image before its pixels are prepared: `shape` is what the model would make of the picture, the
  // answer what the policy wants (resize): as many rows and columns or fewer, as many tiles or fewer. Only grid and
  // tiling count.
  virtual ImageShape wanted_shape(const ModelFacts&, const ImageShape& shape) const { return shape; }
  // What the policy does for this request, in the order of the data. The engine leaves out steps whose budget lets all
  // tokens stay, and all of them where the request has no image tokens, or fewer than min_tokens. Throws Error when the
  // model or the request cannot serve the policy.
  virtual std::vector<Step> steps(const ModelFacts& model, const PromptLayout& prompt) const = 0;
  // Of a policy that leaves its amount to the engine (with_target): what a request may cost. Null of any other; owned
  // by the policy.
  virtual const OpenAmount* open_amount() const { return nullptr; }
  // The same policy with what it leaves open set to what the model's folder says (ModelFacts::policy_defaults); null
  // where there is nothing to set. The engine asks before it asks anything else.
  virtual std::shared_ptr<const PruningPolicy> for_model(const ModelFacts&) const { return nullptr; }
};

using PolicyPtr = std::shared_ptr<const PruningPolicy>;

// `policy` as a model runs it: its for_model(), or itself.
PolicyPtr for_model(PolicyPtr policy, const ModelFacts& model);

// Policies in sequence, each seeing what the one before left: their steps one after another. Every amount refers to the
// unpruned pool; one above what an earlier policy leaves, or steps out of the data's order, are refused when a request
// comes. Throws Error when there is none or when their common options differ.
PolicyPtr chain(std::vector<PolicyPtr> policies);

// ---- for deciding ----

// The pools of a layout, without num_kept and always (which are empty and undefined).
Pools pools_of(const TokenLayout& layout, Budget::Pool pool);
// Index of each image token among the patches alone, as the vision tower's signals count; int64 [m]. What a row break
// gets means nothing.
at::Tensor patch_index(const TokenLayout& layout);
// The best of each pool, int64 ordinals of image_tokens, ascending in each pool. scores float32 [m].
at::Tensor best_of(const Pools& pools, const at::Tensor& scores);
// int64 [values] on the CPU.
at::Tensor int64_tensor(std::span<const int64_t> values);
// Ascending indices of the true entries. With their number given, a device is not waited for.
at::Tensor indices_of(const at::Tensor& mask, std::optional<int64_t> count = std::nullopt);

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
