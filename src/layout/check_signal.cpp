// SPDX-License-Identifier: Apache-2.0
#include "layout/check_signal.h"

#include <string>

#include "espalier/error.h"
#include "layout/generated_rows.h"

namespace espalier {

namespace {

struct SignalCheck {
  const Step& step;
  const ActPoint& point;
  const ModelFacts& model;
  int first_readable;
  std::string who;

  [[noreturn]] void fail(const std::string& what) const { throw Error(who + ": at " + to_string(point) + ": " + what); }

  // Layers that have run when the point acts; before layer L, L itself can still be looked at ahead.
  void decoder_layer(int layer, bool may_look_ahead, const std::string& what) const {
    if (layer < 0 || layer >= model.num_layers)
      fail(what + " of layer " + std::to_string(layer) + ", but the model has layers 0 to " +
           std::to_string(model.num_layers - 1));
    int last = -1;
    if (point.site == Site::kBeforeLayer) last = may_look_ahead ? point.layer : point.layer - 1;
    if (point.site == Site::kAfterAttention || point.site == Site::kCache) last = point.layer;
    if (layer > last) fail(what + " of layer " + std::to_string(layer) + ", which has not run by then");
    if (layer < first_readable)
      fail(what + " of layer " + std::to_string(layer) +
           ", which ran before the policy's previous point (first readable: " + std::to_string(first_readable) + ")");
  }

  void vision_layer(int layer, const std::string& what) const {
    if (layer < 0 || layer >= model.vision_layers)
      fail(what + " of vision layer " + std::to_string(layer) + ", but the tower has layers 0 to " +
           std::to_string(model.vision_layers - 1));
    if (point.site > Site::kProjectorOutput) fail(what + " of the vision tower is only there up to projector_output");
    if (first_readable >= 0) fail(what + " of the vision tower can be read at a policy's first point only");
  }

  void operator()(const AttentionProbe& p) const {
    if (p.rows == AttentionProbe::Rows::kClass) {
      if (step.every > 0) fail("class attention, which is gone while decoding");
      if (!model.has_class_token) fail("class attention, but the vision tower has no class token");
      if (p.heads == AttentionProbe::Heads::kMax) fail("class attention with the largest head is not computed");
      vision_layer(p.layer, "class attention");
      return;
    }
    if (p.heads == AttentionProbe::Heads::kJoint) fail("joint heads are for class attention only");
    if (!reads_newest(p) && (step.every > 0 || p.with_others))
      fail(step.every > 0 ? "given rows, which are gone while decoding" : "columns of others beside given rows");
    if (p.rows == AttentionProbe::Rows::kGenerated && !p.reduce_rows) fail("generated rows cannot be kept apart");
    if (!p.reduce_rows && p.groups.size() > 1) fail("rows of several groups cannot be kept apart");
    if ((p.rows == AttentionProbe::Rows::kGiven) == p.groups.empty()) fail("given rows and groups belong together");
    decoder_layer(p.layer, /*may_look_ahead=*/true, "attention");
  }

  void operator()(const AttentionGrowth& g) const {
    if (step.every > 0) fail("attention growth, which is not computed while decoding");
    if (g.lower >= g.upper)
      fail("attention growth from layer " + std::to_string(g.lower) + " to " + std::to_string(g.upper));
    decoder_layer(g.lower, false, "attention growth");
    decoder_layer(g.upper, false, "attention growth");
    if (g.pool.defined() && point.site == Site::kCache) fail("a cosine term needs a state, and the cache has none");
  }

  void operator()(const Tap& t) const {
    if (step.every > 0) fail("a tensor of prefill, which is gone while decoding");
    switch (t.what) {
      case Tap::What::kHidden:
      case Tap::What::kFinalNorm:
        if (point.site == Site::kVisionOutput) fail("hidden states, which do not exist before the projector");
        if (point.site == Site::kCache) fail("hidden states, but a cache has none");
        return;
      case Tap::What::kKey:
        decoder_layer(t.layer, false, "keys");
        return;
      case Tap::What::kVisionKey:
        vision_layer(t.layer, "keys");
        return;
      case Tap::What::kVisionClass:
        if (!model.has_class_token) fail("class rows, but the vision tower has no class token");
        [[fallthrough]];
      case Tap::What::kVisionOutput:
        vision_layer(model.vision_feature_layer, "the output");
        return;
      case Tap::What::kClipImage:
      case Tap::What::kClipText:
        if (!model.has_text_tower) fail("CLIP embeddings, but the checkpoint has no text tower");
        return;
    }
  }
};

}  // namespace

void check_signal(const Signal& signal, const Step& step, const ModelFacts& model, int first_readable_layer) {
  std::visit(SignalCheck{step, step.at, model, first_readable_layer, step.policy}, signal);
}

}  // namespace espalier
