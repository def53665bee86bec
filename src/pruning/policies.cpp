// SPDX-License-Identifier: Apache-2.0
// The table of built-in policies. A new one is a file, a line in built_in.h and an entry here.
#include <array>
#include <string>

#include "espalier/error.h"
#include "espalier/policies/table.h"
#include "pruning/built_in.h"

namespace espalier {

namespace {

constexpr PolicyOption kKeepRatio{"keep_ratio", "", "part that stays, a/b or a decimal; this or num_kept"};
constexpr PolicyOption kNumKept{"num_kept", "", "number that stays; this or keep_ratio"};
constexpr PolicyOption kRowBreaksPool{"row_breaks", "pool",
                                      "pool: row breaks compete like patches; follow: each stays with its row"};
constexpr PolicyOption kRowBreaksFollow{"row_breaks", "follow", kRowBreaksPool.meaning};

constexpr std::array kCommon = {
    PolicyOption{"positions", "keep", "keep: original position ids; compact: renumbered"},
    PolicyOption{"min_per_image", "0", "tokens that stay of each image"},
    PolicyOption{"min_tokens", "0", "below this many image tokens nothing is dropped"},
};

constexpr std::array kRandomOptions = {
    kKeepRatio,
    kNumKept,
    PolicyOption{"seed", "0", "of the request; each image has a stream of its own"},
    kRowBreaksPool,
};

constexpr std::array kUniformOptions = {kKeepRatio, kNumKept, kRowBreaksPool};

constexpr std::array kVtwOptions = {
    PolicyOption{"layer", "", "the paper's K: all image tokens leave before this layer; half the model's depth"},
    PolicyOption{"recipe", "", "in place of layer: a file that espalier fit wrote"},
};

constexpr std::array kFastvOptions = {
    kKeepRatio,
    kNumKept,
    PolicyOption{"layer", "2", "acts before this layer, ranking by the attention of the one before; the paper's K"},
    PolicyOption{"rows", "last", "whose attention: last prompt row, or all rows averaged"},
    PolicyOption{"pool", "request", "request: all images compete; image: equal ratio each"},
    kRowBreaksPool,
};

constexpr std::array kCatpOptions = {
    kKeepRatio,
    PolicyOption{"num_kept", "", "of all image tokens of the request; this or keep_ratio"},
    PolicyOption{"k", "",
                 "the paper's K: examples are cut before layer k, the query before k + 1; by the depth 10, 6 or about "
                 "3/16 of it"},
    PolicyOption{"lambda1", "0.7", "stage 1: weight of the alignment with the image's text"},
    PolicyOption{"lambda2", "0.6", "stage 2: weight of the cosine with the query sample"},
    PolicyOption{"stage1_share", "1/2",
                 "part of what is removed that stage 1 removes; 1: stage 1 alone, 0: stage 2 alone"},
    PolicyOption{"similarity", "affine", "how stage 1 maps a cosine to 0 … 1: affine, clamp, minmax"},
    PolicyOption{"scale", "none", "div_mean: coverage is divided by the image's number of tokens"},
    PolicyOption{"query_pool", "all", "tokens of the query sample whose mean state counts: all, text, last"},
    PolicyOption{"context_pool", "all", "tokens of the examples whose mean state counts: all, image"},
    PolicyOption{"importance", "growth", "of the examples' tokens: growth, or attention in layer k - 1 as it is"},
    PolicyOption{"relu", "after_mean", "per_head: attention growth is clipped in each head"},
    PolicyOption{"delta_norm", "none", "attention growth over the examples' tokens divided: none, max, sum, minmax"},
    PolicyOption{"similarity2", "cosine", "stage 2: cosine, or affine (1 + c) / 2"},
    PolicyOption{"ranking", "global", "examples compete, or per_image with the same ratio each"},
    PolicyOption{"counts", "per_group", "exact_total: the query gets what the examples leave of the rounded total"},
    PolicyOption{"rounding", "floor", "of counts: floor, round, ceil"},
    kRowBreaksFollow,
};

constexpr std::array kAttentionOptions = {
    kKeepRatio,
    kNumKept,
    PolicyOption{"layer", "", "acts before this layer, ranking by the attention of the one before; needed"},
    PolicyOption{"rows", "last",
                 "whose attention, averaged: all; last; own_text, text of the image; query_text, of the query example"},
    kRowBreaksPool,
};

constexpr PolicyOption kNumKeptList{"num_kept", "", "numbers that stay, one for each layer; these or keep_ratio"};

constexpr std::array kPyramiddropOptions = {
    PolicyOption{"keep_ratio", "1/2", "part that stays of each image, one for each layer; r: r, r/2, r/4, …"},
    kNumKeptList,
    PolicyOption{"layers", "", "acts before these layers; 8:16:24 of 32, in proportion to the depth"},
    PolicyOption{"rank", "next", "whose attention of the last row: next, the layer itself; previous, the one before"},
    kRowBreaksPool,
};

constexpr std::array kDivpruneOptions = {
    kKeepRatio,
    kNumKept,
    PolicyOption{"distance", "cosine", "how far apart two tokens are: cosine, l1, l2"},
    kRowBreaksPool,
};

constexpr std::array kDartOptions = {
    kKeepRatio,
    PolicyOption{"num_kept", "", "number that stays of each image; this or keep_ratio"},
    PolicyOption{"layer", "2", "acts before this layer, on the state that enters it and the keys of the one before"},
    PolicyOption{"image_pivots", "4", "tokens with the largest keys, of each image; they stay"},
    PolicyOption{"text_pivots", "4", "of the text behind the last image, shared by all images; they only vote"},
    kRowBreaksPool,
};

constexpr std::array kPlphpOptions = {
    PolicyOption{"keep_ratio", "2/5", "part of all image tokens that a layer's cache keeps, rounded down"},
    PolicyOption{"delta", "3/10", "more where attention on images is above alpha, less where below beta"},
    PolicyOption{"alpha", "0.25", "attention mass of the last row on images, mean over heads"},
    PolicyOption{"beta", "0.1", "the same"},
    kRowBreaksPool,
};

constexpr std::array kCdprunerOptions = {
    kKeepRatio,
    kNumKept,
    PolicyOption{"relevance", "",
                 "clip; embedding, against the query's text; none; clip where there is a text tower, else embedding"},
    PolicyOption{"sign", "", "of the relevance, 1 or -1; -1 for clip, else 1"},
};

constexpr std::array kM3Options = {
    PolicyOption{"keep_ratio", "", "1 over the square of a cell; this or num_kept"},
    PolicyOption{"num_kept", "", "cells of a whole crop; this or keep_ratio"},
};

constexpr std::array kSparsevlmOptions = {
    PolicyOption{"keep_ratio", "", "part of all image tokens that stays, one for each layer; r: r, r/2, r/4, …"},
    kNumKeptList,
    PolicyOption{"layers", "", "acts before these layers; 3:7:16 of 32, in proportion to the depth"},
    PolicyOption{"rule", "fixed", "rank_lambda, rank_scale: the rank of the raters' attention decides, without amount"},
    PolicyOption{"lambda", "1/2", "rank_lambda: part of the tokens beyond the rank that leaves"},
    PolicyOption{"scale", "13.5", "rank_scale: tokens that stay for each of the rank"},
    PolicyOption{"bias", "0", "rank_scale: and these"},
    PolicyOption{"recycle", "true", "part of what leaves comes back as averages of clusters, beside the amount"},
    PolicyOption{"tau", "3/10", "part of what leaves that is clustered"},
    PolicyOption{"theta", "1/10", "clusters for each of these"},
    kRowBreaksPool,
};

constexpr std::array kFitpruneOptions = {
    PolicyOption{"recipe", "",
                 "how many tokens leave in each layer: llava15-7b-10, -20, -30, -40, -50, -55, -60, -70, -80, -90, "
                 "llavanext-7b-40, -60, or a file that espalier fit wrote; needed"},
    kRowBreaksPool,
};

constexpr std::array kKeepmaskOptions = {
    PolicyOption{"file", "", "kept sets in the form of a replay result; needed"},
    PolicyOption{"row_breaks", "follow", "pool: the sets list row breaks too; follow: each stays with its row"},
};

constexpr std::array kAtpOptions = {
    PolicyOption{"weights", "", "trained modules, safetensors with a .json of the same name beside it"},
    PolicyOption{"theta_r", "", "without weights: threshold of the redundancy score, one value or one for each layer"},
    PolicyOption{"theta_s", "", "without weights: threshold of the spatial score, the same"},
    PolicyOption{"layers", "", "modules act before these layers; 4:14:24 of 32, in proportion to the depth"},
    PolicyOption{"strides", "2:4:8", "of the regular samplings of the grid"},
    PolicyOption{"lambda_sample", "3", "a token that stride s samples scores 1 - lambda_sample / s^2"},
    PolicyOption{"norm", "minmax", "of the redundancy score over a crop: minmax, none, max, sigmoid, rank"},
    PolicyOption{"min_keep", "1", "tokens that stay of each crop"},
    PolicyOption{"strategy", "both", "which score may keep a token: both, redundant, spatial"},
    PolicyOption{"scores", "both", "attention looked at: both, self (from the crop's own tokens), cross (from text)"},
};

constexpr std::array kHiredOptions = {
    kKeepRatio,
    PolicyOption{"num_kept", "", "of each image, all its crops together; this or keep_ratio"},
    PolicyOption{"alpha", "1/2", "part of an image's budget that its full view gets"},
    PolicyOption{"allocation", "mass",
                 "budget of a tile: mass, the attention on its region; count_strips, as the released code does"},
    PolicyOption{"layer_init", "0", "vision layer whose class attention divides the budget"},
    PolicyOption{"layer_final", "", "vision layer whose class attention ranks; the one the projector reads"},
};

constexpr PolicyOption kAttentionLayer{"layer_attention", "",
                                       "vision layer of class attention and keys; the one the projector reads"};

constexpr std::array kPrumergeOptions = {
    PolicyOption{"keep_ratio", "", "part of each crop, extra token counted; without an amount the number adapts"},
    PolicyOption{"num_kept", "", "number of each crop, extra token counted; without an amount the number adapts"},
    PolicyOption{"neighbours", "32", "patches folded into each that stays"},
    PolicyOption{"extra_token", "true", "the weighted rest is the crop's last token"},
    PolicyOption{"layer_attention", "", "vision layer of class attention and keys; the last"},
};

constexpr std::array kVisionzipOptions = {
    PolicyOption{"keep_ratio", "", "part of each crop, class row and contextual tokens counted; this or num_kept"},
    PolicyOption{"num_kept", "", "number of each crop, the same counted; this or keep_ratio"},
    PolicyOption{"contextual", "", "of these, tokens that summarise the rest; 10/64 of them"},
    kAttentionLayer,
};

constexpr std::array kResizeOptions = {
    PolicyOption{"keep_ratio", "", "part of an image's tokens that its smaller picture has, about; this or num_kept"},
    PolicyOption{"num_kept", "", "number of tokens of the smaller picture, about; this or keep_ratio"},
    kRowBreaksPool,
};

constexpr std::array kVisionOutput = {Site::kVisionOutput};
constexpr std::array kProjectorOutput = {Site::kProjectorOutput};
constexpr std::array kBeforeLayer = {Site::kBeforeLayer};
constexpr std::array kCache = {Site::kCache};
constexpr std::array kAfterAttention = {Site::kAfterAttention};
constexpr std::array kProjectorAndLayers = {Site::kProjectorOutput, Site::kBeforeLayer};

std::string any_model(const ModelFacts&) {
  return {};
}

std::string at_least_layers(const ModelFacts& model, int layers) {
  if (model.num_layers >= layers) return {};
  return "needs " + std::to_string(layers) + " decoder layers, the model has " + std::to_string(model.num_layers);
}

std::string needs_class_token(const ModelFacts& model) {
  return model.has_class_token ? std::string() : "needs a vision tower with a class token, this one has none";
}

struct BuiltIn {
  PolicyEntry entry;
  PlannedPolicyPtr (*from)(const OptionReader&);
};

constexpr std::array kBuiltIns = {
    BuiltIn{{"none", "-", "nothing is dropped", {}, {}, "nothing", any_model}, none_from},
    BuiltIn{{"random", "-", "a random subset of each image, the baseline to beat", kRandomOptions, kProjectorOutput,
             "nothing", any_model},
            random_from},
    BuiltIn{
        {"uniform", "-", "evenly spaced tokens of each image", kUniformOptions, kProjectorOutput, "nothing", any_model},
        uniform_from},
    BuiltIn{{"vtw", "arXiv 2405.05803", "all image tokens leave in the middle of the decoder", kVtwOptions,
             kBeforeLayer, "nothing", any_model},
            vtw_from},
    BuiltIn{{"keepmask", "-", "kept sets made elsewhere are applied", kKeepmaskOptions, {}, "nothing", any_model},
            keepmask_from},
    BuiltIn{{"fastv", "arXiv 2403.06764", "tokens that get the least attention in an early layer leave", kFastvOptions,
             kBeforeLayer, "attention of the last row in one layer",
             [](const ModelFacts& model) { return at_least_layers(model, 2); }},
            fastv_from},
    BuiltIn{{"catp", "arXiv 2508.07871",
             "coverage and text alignment of each image, then pruning between examples and query", kCatpOptions,
             kProjectorAndLayers, "embeddings, attention of the last row in two layers, hidden states of two layers",
             [](const ModelFacts& model) { return at_least_layers(model, 4); }},
            catp_from},
    BuiltIn{{"divprune", "arXiv 2503.02175", "each image keeps the tokens that lie farthest apart", kDivpruneOptions,
             kProjectorOutput, "projected tokens", any_model},
            divprune_from},
    BuiltIn{{"cdpruner", "arXiv 2506.10967", "each crop keeps tokens that differ and matter to the question",
             kCdprunerOptions, kProjectorOutput, "projected tokens and embeddings, or CLIP's", any_model},
            cdpruner_from},
    BuiltIn{{"m3", "arXiv 2405.17430", "square cells of the grid become their means; for models trained with it",
             kM3Options, kProjectorOutput, "projected tokens", any_model},
            m3_from},
    BuiltIn{{"hired", "arXiv 2408.10945", "a budget over full view and tiles, spent on what the class token looks at",
             kHiredOptions, kVisionOutput, "class attention of one or two vision layers", needs_class_token},
            hired_from},
    BuiltIn{{"attention", "-", "tokens that get the least attention leave, in each image by itself", kAttentionOptions,
             kBeforeLayer, "attention of chosen rows in one layer",
             [](const ModelFacts& model) { return at_least_layers(model, 2); }},
            attention_from},
    BuiltIn{{"pyramiddrop", "arXiv 2410.17247", "images are cut in stages by the attention of the layer that follows",
             kPyramiddropOptions, kBeforeLayer, "attention of the last row in a few layers",
             [](const ModelFacts& model) { return at_least_layers(model, 4); }},
            pyramiddrop_from},
    BuiltIn{{"dart", "arXiv 2502.11494", "a few pivots stay, and the tokens least like them", kDartOptions,
             kBeforeLayer, "the state before one layer and the keys of the one before",
             [](const ModelFacts& model) { return at_least_layers(model, 2); }},
            dart_from},
    BuiltIn{{"plphp", "arXiv 2502.14504", "each layer's cache keeps image tokens at its own rate, each KV head its own",
             kPlphpOptions, kCache, "attention of the last row in every layer; no sliding window",
             [](const ModelFacts& model) {
               return model.sliding_window > 0 ? std::string("a cache with a sliding window cannot be pruned")
                                               : std::string();
             }},
            plphp_from},
    BuiltIn{
        {"sparsevlm", "arXiv 2410.04417", "tokens that telling words look at least leave in stages, some as averages",
         kSparsevlmOptions, kProjectorAndLayers, "embeddings, attention of chosen text rows and states of a few layers",
         [](const ModelFacts& model) { return at_least_layers(model, 8); }},
        sparsevlm_from},
    BuiltIn{{"fitprune", "arXiv 2409.10197", "a fitted number of tokens leaves inside each layer", kFitpruneOptions,
             kAfterAttention, "attention of all rows behind the first image in most layers; a recipe for the depth",
             [](const ModelFacts& model) {
               return model.num_layers == 32 ? std::string()
                                             : "the published recipes are for 32 layers, the model has " +
                                                   std::to_string(model.num_layers) + "; espalier fit makes others";
             }},
            fitprune_from},
    BuiltIn{{"atp", "arXiv 2412.00447", "modules between layers set thresholds for each crop; the number kept adapts",
             kAtpOptions, kBeforeLayer, "attention of each crop's own rows and of text behind it in a few layers",
             [](const ModelFacts& model) { return at_least_layers(model, 4); }},
            atp_from},
    BuiltIn{{"prumerge", "arXiv 2403.15388", "each crop keeps what stands out, merged with what is like it",
             kPrumergeOptions, kVisionOutput, "class attention and keys of one vision layer", needs_class_token},
            prumerge_from},
    BuiltIn{{"prumerge+", "arXiv 2403.15388", "prumerge with a regular grid of other patches", kPrumergeOptions,
             kVisionOutput, "class attention and keys of one vision layer", needs_class_token},
            prumerge_plus_from},
    BuiltIn{{"visionzip", "arXiv 2412.04467",
             "each crop keeps its class row, what that looks at, and averages of the rest", kVisionzipOptions,
             kVisionOutput, "class attention and keys of one vision layer, class rows", needs_class_token},
            visionzip_from},
    BuiltIn{{"resize",
             "-",
             "pictures are made smaller, so that they have fewer tokens",
             kResizeOptions,
             {},
             "nothing",
             any_model},
            resize_from},
};

constexpr auto kEntries = [] {
  std::array<PolicyEntry, kBuiltIns.size()> entries{};
  for (size_t i = 0; i < entries.size(); ++i) entries[i] = kBuiltIns[i].entry;
  return entries;
}();

PlannedPolicyPtr make_one(const PolicySpec& spec, const PolicyFiles& files) {
  std::string known;
  for (const BuiltIn& policy : kBuiltIns) {
    if (policy.entry.name == spec.name) return policy.from(OptionReader(spec, policy.entry, &files));
    known += (known.empty() ? "" : ", ") + std::string(policy.entry.name);
  }
  throw Error("policy: there is no \"" + spec.name + "\"; there are " + known);
}

}  // namespace

std::span<const PolicyEntry> policy_table() {
  return kEntries;
}

std::span<const PolicyOption> common_policy_options() {
  return kCommon;
}

PolicyPtr make_policy(std::string_view spec, const PolicyFiles& files) {
  std::vector<PlannedPolicyPtr> policies;
  for (const PolicySpec& one : parse_policy_spec(spec)) policies.push_back(make_one(one, files));
  if (policies.size() == 1) return policies.front();
  return make_pipeline(std::move(policies));
}

}  // namespace espalier
