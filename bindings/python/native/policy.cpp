// SPDX-License-Identifier: Apache-2.0
#include "policy.h"

#include <pybind11/stl.h>

#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "espalier/policies/table.h"

namespace espalier::python {

namespace {

using namespace pybind11::literals;

py::object of_policies(const char* name) {
  return py::module_::import("espalier.policies").attr(name);
}

// ---- words ----

constexpr Word<Site> kSites[] = {{"vision_output", Site::kVisionOutput},
                                 {"projector_output", Site::kProjectorOutput},
                                 {"before_layer", Site::kBeforeLayer},
                                 {"after_attention", Site::kAfterAttention},
                                 {"cache", Site::kCache}};
constexpr Word<Scope> kScopes[] = {{"crop", Scope::kCrop},
                                   {"image", Scope::kImage},
                                   {"example", Scope::kExample},
                                   {"prefix", Scope::kPrefix},
                                   {"request", Scope::kRequest}};
constexpr Word<Budget::Pool> kPools[] = {
    {"crop", Budget::Pool::kCrop}, {"image", Budget::Pool::kImage}, {"request", Budget::Pool::kRequest}};
constexpr Word<Rounding> kRoundings[] = {
    {"nearest_even", Rounding::kNearestEven}, {"floor", Rounding::kFloor}, {"ceil", Rounding::kCeil}};
constexpr Word<Positions> kPositions[] = {{"keep", Positions::kKeep}, {"compact", Positions::kCompact}};
constexpr Word<AttentionProbe::Rows> kRows[] = {{"last_token", AttentionProbe::Rows::kLastToken},
                                                {"generated", AttentionProbe::Rows::kGenerated},
                                                {"given", AttentionProbe::Rows::kGiven},
                                                {"class", AttentionProbe::Rows::kClass}};
constexpr Word<AttentionProbe::Heads> kHeads[] = {{"mean", AttentionProbe::Heads::kMean},
                                                  {"max", AttentionProbe::Heads::kMax},
                                                  {"each", AttentionProbe::Heads::kEach},
                                                  {"joint", AttentionProbe::Heads::kJoint}};
constexpr Word<Tap::What> kTaps[] = {{"hidden", Tap::What::kHidden},
                                     {"final_norm", Tap::What::kFinalNorm},
                                     {"key", Tap::What::kKey},
                                     {"vision_output", Tap::What::kVisionOutput},
                                     {"vision_class", Tap::What::kVisionClass},
                                     {"vision_key", Tap::What::kVisionKey},
                                     {"clip_image", Tap::What::kClipImage},
                                     {"clip_text", Tap::What::kClipText}};
constexpr Word<NewTokens::Where> kWheres[] = {{"in_place", NewTokens::Where::kInPlace},
                                              {"front", NewTokens::Where::kFront},
                                              {"behind", NewTokens::Where::kBehind},
                                              {"behind_image", NewTokens::Where::kBehindImage}};
constexpr Word<Segment::Kind> kKinds[] = {
    {"text", Segment::Kind::kText}, {"patches", Segment::Kind::kPatches}, {"row_break", Segment::Kind::kRowBreak}};

// ---- what policies are told ----

py::tuple pair_of(const GridSize& size) {
  return py::make_tuple(size.rows, size.cols);
}

py::object to_python(const ImageShape& shape) {
  return of_policies("ImageShape")("grid"_a = pair_of(shape.grid), "tiling"_a = shape.tiling
                                                                                    ? py::object(pair_of(*shape.tiling))
                                                                                    : py::object(py::none()));
}

py::object to_python(const Segment& s) {
  return of_policies("Segment")("kind"_a = word_of(s.kind, kKinds), "begin"_a = s.begin, "end"_a = s.end,
                                "image"_a = s.image, "crop"_a = s.crop, "example"_a = s.example,
                                "grid"_a = pair_of(s.grid), "origin"_a = pair_of(s.origin));
}

py::object to_python(const PolicyDefault& d) {
  return of_policies("PolicyDefault")("policy"_a = d.policy, "option"_a = d.option, "value"_a = d.value);
}

template <typename T>
py::tuple each_to_python(const std::vector<T>& values) {
  py::tuple all(values.size());
  for (size_t i = 0; i < values.size(); ++i) all[i] = to_python(values[i]);
  return all;
}

// pybind11 holds no const objects; Python is given no way to change one.
std::shared_ptr<PromptLayout> for_python(const std::shared_ptr<const PromptLayout>& prompt) {
  return std::const_pointer_cast<PromptLayout>(prompt);
}

py::list tensors_of(std::span<const at::Tensor> tensors) {
  py::list all;
  for (const at::Tensor& t : tensors) all.append(t);
  return all;
}

// ---- what they answer ----

void expect(const char* whose, const char* type, py::handle got) {
  if (!py::isinstance(got, of_policies(type)))
    throw Error(std::string(whose) + ": expected " + type + ", got " +
                py::type::of(got).attr("__name__").cast<std::string>());
}

GridSize pair_field(py::handle of, const char* name) {
  const auto [rows, cols] = field<std::pair<int64_t, int64_t>>(of, name);
  return {rows, cols};
}

// As a spec string would have it: 0.1 is 1/10.
Fraction fraction_of(py::handle value) {
  const py::object fraction = py::module_::import("fractions").attr("Fraction")(py::str(value));
  return {fraction.attr("numerator").cast<int64_t>(), fraction.attr("denominator").cast<int64_t>()};
}

Budget budget_of(py::handle b) {
  expect("Step.budget", "Budget", b);
  Budget budget;
  budget.pool = word_field(b, "pool", kPools);
  if (const py::object ratio = b.attr("keep_ratio"); !ratio.is_none()) try {
      budget.amount.keep_ratio = fraction_of(ratio);
    } catch (const py::error_already_set&) {
      refuse(b, "keep_ratio", "a fraction (\"2/9\", 0.25, Fraction(1, 4))", ratio);
    }
  budget.amount.num_kept = optional_field<int64_t>(b, "num_kept");
  budget.counts = field<std::vector<int64_t>>(b, "counts");
  budget.is_adaptive = field<bool>(b, "is_adaptive");
  budget.rounding = word_field(b, "rounding", kRoundings);
  budget.at_least_one = field<bool>(b, "at_least_one");
  budget.images = field<std::vector<int64_t>>(b, "images");
  budget.is_interim = field<bool>(b, "is_interim");
  return budget;
}

Signal signal_of(py::handle s) {
  if (py::isinstance(s, of_policies("AttentionProbe"))) {
    AttentionProbe probe{.layer = field<int>(s, "layer"),
                         .rows = word_field(s, "rows", kRows),
                         .heads = word_field(s, "heads", kHeads),
                         .reduce_rows = field<bool>(s, "reduce_rows"),
                         .with_others = field<bool>(s, "with_others")};
    for (const py::handle group : s.attr("groups"))
      probe.groups.push_back({field<at::Tensor>(group, "rows"), tensor_field(group, "columns")});
    return probe;
  }
  if (py::isinstance(s, of_policies("AttentionGrowth")))
    return AttentionGrowth{.lower = field<int>(s, "lower"),
                           .upper = field<int>(s, "upper"),
                           .relu_per_head = field<bool>(s, "relu_per_head"),
                           .pool = tensor_field(s, "pool"),
                           .cosine_weight = field<double>(s, "cosine_weight")};
  if (!py::isinstance(s, of_policies("Tap")))
    throw Error("Step.needs: expected AttentionProbe, AttentionGrowth or Tap, got " +
                py::type::of(s).attr("__name__").cast<std::string>());
  return Tap{.what = word_field(s, "what", kTaps), .layer = field<int>(s, "layer")};
}

std::vector<Signal> signals_of(py::handle all) {
  std::vector<Signal> signals;
  for (const py::handle s : all) signals.push_back(signal_of(s));
  return signals;
}

std::vector<NewTokens> added_of(py::handle of) {
  std::vector<NewTokens> all;
  for (const py::handle a : of.attr("added")) {
    expect("added", "NewTokens", a);
    all.push_back({.where = word_field(a, "where", kWheres),
                   .vectors = field<at::Tensor>(a, "vectors"),
                   .stands_at = field<at::Tensor>(a, "stands_at"),
                   .position_from = field<at::Tensor>(a, "position_from")});
  }
  return all;
}

std::function<Choice(const Pools&)> choose_of(py::object choose) {
  if (choose.is_none()) return {};
  return [choose = hold(std::move(choose))](const Pools& pools) {
    return in_python([&] {
      const py::object c = (*choose)(pools);
      expect("Verdict.choose", "Choice", c);
      return Choice{
          .kept = field<at::Tensor>(c, "kept"), .added = added_of(c), .crop_by_crop = field<bool>(c, "crop_by_crop")};
    });
  };
}

Verdict verdict_of(py::handle v) {
  expect("Step.decide", "Verdict", v);
  Verdict verdict{.kept = tensor_field(v, "kept"),
                  .added = added_of(v),
                  .crop_by_crop = field<bool>(v, "crop_by_crop"),
                  .scores = tensor_field(v, "scores"),
                  .judged = tensor_field(v, "judged"),
                  .choose = choose_of(callable_field(v, "choose")),
                  .always = tensor_field(v, "always"),
                  .num_kept = field<std::vector<int64_t>>(v, "num_kept")};
  for (const auto& [name, values] : field<std::map<std::string, at::Tensor>>(v, "notes"))
    verdict.notes.push_back({name, values});
  return verdict;
}

Step step_of(py::handle s) {
  expect("Policy.steps", "Step", s);
  Step step{.at = {word_field(s, "at", kSites), field<int>(s, "layer")},
            .scope = word_field(s, "scope", kScopes),
            .budget = budget_of(s.attr("budget"))};
  step.is_nested = field<bool>(s, "is_nested");
  step.always_acts = field<bool>(s, "always_acts");
  step.adds_on_top = field<bool>(s, "adds_on_top");
  step.only_reads = field<bool>(s, "only_reads");
  step.every = field<int>(s, "every");
  step.revives = field<bool>(s, "revives");
  step.makes_room = field<bool>(s, "makes_room");
  if (py::object needs = s.attr("needs"); PyCallable_Check(needs.ptr())) {
    step.needs = [needs = hold(std::move(needs))](const TokenLayout& layout) {
      return in_python([&] { return signals_of((*needs)(layout)); });
    };
  } else {
    step.needs = [signals = signals_of(needs)](const TokenLayout&) { return signals; };
  }
  if (py::object decide = callable_field(s, "decide"); !decide.is_none())
    step.decide = [decide = hold(std::move(decide))](const TokenLayout& layout, std::span<const at::Tensor> signals) {
      return in_python([&] { return verdict_of((*decide)(layout, tensors_of(signals))); });
    };
  return step;
}

class PythonPolicy final : public PruningPolicy {
 public:
  explicit PythonPolicy(py::object policy) : policy_(hold(std::move(policy))) {}

  std::string spec() const override {
    return in_python([&] { return policy_->attr("spec")().cast<std::string>(); });
  }
  CommonOptions common() const override {
    return in_python([&] {
      const py::object c = policy_->attr("common")();
      expect("Policy.common", "CommonOptions", c);
      return CommonOptions{.positions = word_field(c, "positions", kPositions),
                           .min_per_image = field<int64_t>(c, "min_per_image"),
                           .min_tokens = field<int64_t>(c, "min_tokens")};
    });
  }
  bool row_breaks_compete() const override {
    return in_python([&] { return policy_->attr("row_breaks_compete")().cast<bool>(); });
  }
  ImageShape wanted_shape(const ModelFacts& model, const ImageShape& shape) const override {
    return in_python([&] {
      const py::object wanted = policy_->attr("wanted_shape")(python::to_python(model), to_python(shape));
      expect("Policy.wanted_shape", "ImageShape", wanted);
      ImageShape answer = shape;
      answer.grid = pair_field(wanted, "grid");
      answer.tiling.reset();
      if (!wanted.attr("tiling").is_none()) answer.tiling = pair_field(wanted, "tiling");
      return answer;
    });
  }
  std::vector<Step> steps(const ModelFacts& model, const PromptLayout& prompt) const override {
    return in_python([&] {
      std::vector<Step> steps;
      const auto copy = std::make_shared<PromptLayout>(prompt);
      for (const py::handle step : policy_->attr("steps")(python::to_python(model), copy))
        steps.push_back(step_of(step));
      return steps;
    });
  }

  bool is_of(py::handle policy) const { return policy_->is(policy); }

 private:
  Held policy_;
};

// What a Python policy is known by: as long as anyone holds its C++ side (a cache of beginnings, a session), it is the
// same one.
struct Identity {
  std::weak_ptr<const PythonPolicy> policy;
};
constexpr const char* kIdentity = "_identity";

PolicyPtr python_policy(py::handle policy) {
  if (py::hasattr(policy, kIdentity))
    if (const auto known = policy.attr(kIdentity).cast<const Identity&>().policy.lock(); known && known->is_of(policy))
      return known;
  const auto made = std::make_shared<const PythonPolicy>(py::reinterpret_borrow<py::object>(policy));
  // Past what a frozen dataclass would refuse.
  py::module_::import("builtins").attr("object").attr("__setattr__")(policy, kIdentity, Identity{made});
  return made;
}

// A policy of the library, or several policies in sequence.
struct NativePolicy {
  PolicyPtr policy;
};

py::object table_of_policies() {
  py::list rows;
  for (const PolicyEntry& entry : policy_table()) {
    py::dict options;
    for (const PolicyOption& option : entry.options)
      options[py::str(std::string(option.name))] = py::make_tuple(option.default_value, std::string(option.meaning));
    std::vector<std::string> sites;
    for (const Site site : entry.sites) sites.emplace_back(word_of(site, kSites));
    rows.append(of_policies("PolicyEntry")("name"_a = std::string(entry.name), "paper"_a = std::string(entry.paper),
                                           "summary"_a = std::string(entry.summary),
                                           "sites"_a = py::tuple(py::cast(sites)), "needs"_a = std::string(entry.needs),
                                           "options"_a = options));
  }
  return py::tuple(rows);
}

}  // namespace

py::object to_python(const ModelFacts& m) {
  return of_policies("ModelFacts")(
      "num_layers"_a = m.num_layers, "hidden_size"_a = m.hidden_size, "num_heads"_a = m.num_heads,
      "num_kv_heads"_a = m.num_kv_heads, "head_dim"_a = m.head_dim, "intermediate_size"_a = m.intermediate_size,
      "sliding_window"_a = m.sliding_window, "has_mrope"_a = m.has_mrope, "vision_layers"_a = m.vision_layers,
      "vision_feature_layer"_a = m.vision_feature_layer, "vision_heads"_a = m.vision_heads,
      "vision_hidden_size"_a = m.vision_hidden_size, "has_class_token"_a = m.has_class_token,
      "has_text_tower"_a = m.has_text_tower, "name"_a = m.name, "family"_a = m.family, "dtype"_a = m.dtype,
      "policy_defaults"_a = each_to_python(m.policy_defaults));
}

PolicyPtr policy_of(py::handle policy) {
  if (py::isinstance<py::str>(policy)) return make_policy(policy.cast<std::string>());
  if (py::isinstance<NativePolicy>(policy)) return policy.cast<const NativePolicy&>().policy;
  if (py::isinstance(policy, of_policies("Policy"))) return python_policy(policy);
  if (!py::isinstance<py::list>(policy) && !py::isinstance<py::tuple>(policy))
    throw Error("policy: expected a spec string, a Policy, or a list of them, got " +
                py::type::of(policy).attr("__name__").cast<std::string>());
  std::vector<PolicyPtr> all;
  for (const py::handle one : policy) all.push_back(policy_of(one));
  return chain(std::move(all));
}

void add_policies(py::module_& module) {
  py::class_<Identity>(module, "Identity");
  py::class_<NativePolicy>(module, "NativePolicy")
      .def(py::init([](py::object policy) { return NativePolicy{policy_of(policy)}; }), "policy"_a)
      .def("spec", [](const NativePolicy& self) { return self.policy->spec(); })
      .def("__repr__", [](const NativePolicy& self) { return "NativePolicy('" + self.policy->spec() + "')"; });

  py::class_<PromptLayout, std::shared_ptr<PromptLayout>>(module, "PromptLayout")
      .def_readonly("num_tokens", &PromptLayout::num_tokens)
      .def_readonly("query_example", &PromptLayout::query_example)
      .def_property_readonly("images", [](const PromptLayout& p) { return each_to_python(p.images); })
      .def_property_readonly("segments", [](const PromptLayout& p) { return each_to_python(p.segments); })
      .def_readonly("position_id", &PromptLayout::position_id)
      .def_readonly("kind", &PromptLayout::kind)
      .def_readonly("image", &PromptLayout::image)
      .def_readonly("crop", &PromptLayout::crop)
      .def_readonly("example", &PromptLayout::example)
      .def_readonly("grid_row", &PromptLayout::grid_row)
      .def_readonly("grid_col", &PromptLayout::grid_col)
      .def_readonly("pinned", &PromptLayout::pinned)
      .def("num_image_tokens", py::overload_cast<int, bool>(&PromptLayout::num_image_tokens, py::const_), "image"_a,
           "with_row_breaks"_a = false)
      .def("example_of_image", &PromptLayout::example_of_image, "image"_a);

  py::class_<TokenLayout>(module, "TokenLayout")
      .def_property_readonly("prompt", [](const TokenLayout& l) { return for_python(l.prompt); })
      .def_readonly("source_index", &TokenLayout::source_index)
      .def_readonly("position_id", &TokenLayout::position_id)
      .def_readonly("kind", &TokenLayout::kind)
      .def_readonly("image", &TokenLayout::image)
      .def_readonly("crop", &TokenLayout::crop)
      .def_readonly("example", &TokenLayout::example)
      .def_readonly("pinned", &TokenLayout::pinned)
      .def_readonly("image_tokens", &TokenLayout::image_tokens)
      .def_readonly("row_breaks_compete", &TokenLayout::row_breaks_compete)
      .def_property_readonly("num_tokens", &TokenLayout::num_tokens)
      .def_property_readonly("num_image_tokens", &TokenLayout::num_image_tokens)
      .def("tokens_per_image", &TokenLayout::tokens_per_image)
      .def(
          "pools",
          [](const TokenLayout& l, const std::string& pool) {
            for (const auto& word : kPools)
              if (pool == word.text) return pools_of(l, word.value);
            throw Error("pool: expected \"crop\", \"image\" or \"request\", got \"" + pool + "\"");
          },
          "pool"_a)
      .def("patch_index", &patch_index);

  py::class_<Pools>(module, "Pools")
      .def_readonly("tokens", &Pools::tokens)
      .def_readonly("begin", &Pools::begin)
      .def_readonly("num_kept", &Pools::num_kept)
      .def_readonly("always", &Pools::always)
      .def("best", &best_of, "scores"_a);

  module.def("policy_table", &table_of_policies);
}

}  // namespace espalier::python
