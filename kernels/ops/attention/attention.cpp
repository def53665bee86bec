// SPDX-License-Identifier: Apache-2.0
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/amax.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/full.h>
#include <ATen/ops/log.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "espalier/ops.h"
#include "kernels/ops/attention/attention_arguments.h"
#include "kernels/support/autograd_fallback.h"
#include "kernels/support/dispatch.h"
#include "kernels/support/meta_shapes.h"
#include "kernels/support/tensor_checks.h"

namespace espalier::ops {

std::tuple<Tensor, Tensor> attention(const AttentionCall& c) {
  static const auto op = find_op<AttentionSignature>("attention");
  return op.call(c.query, c.key, c.value, c.query_begin, c.key_begin, c.key_length, c.scale, c.is_causal, c.window,
                 c.query_position, c.key_position, c.key_weight);
}

namespace {

bool given(const OptionalTensor& t) {
  return t.has_value() && t->defined();
}

void check_per_token(const OptionalTensor& t, const char* name, int64_t size, at::ScalarType dtype, at::Device device) {
  TORCH_CHECK(t->dim() == 1 && t->size(0) == size && t->scalar_type() == dtype && t->device() == device,
              "attention: ", name, " must be ", dtype, " [", size, "] on ", device, ", got ", t->scalar_type(), " ",
              t->sizes(), " on ", t->device());
}

}  // namespace

void check_attention_shapes(const AttentionCall& in) {
  const Tensor& q = in.query;
  TORCH_CHECK(q.dim() == 3 && in.key.dim() == 3 && in.value.dim() == 3,
              "attention: query [nq, h, d], key and value [nk, g, d] expected, got ", q.sizes(), ", ", in.key.sizes(),
              ", ", in.value.sizes());
  TORCH_CHECK(in.key.sizes() == in.value.sizes() && in.key.size(2) == q.size(2),
              "attention: key and value must have one shape, and query's width; got query ", q.sizes(), ", key ",
              in.key.sizes(), ", value ", in.value.sizes());
  const int64_t h = q.size(1), g = in.key.size(1);
  TORCH_CHECK(g > 0 && h > 0 && h % g == 0 && q.size(2) > 0,
              "attention: the query heads must be a multiple of the KV heads, got ", h, " and ", g, " heads of width ",
              q.size(2));
  const at::ScalarType dtype = q.scalar_type();
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf || dtype == at::kDouble,
              "attention: float32, bfloat16, float16 or (composed) float64 expected, got ", dtype);
  TORCH_CHECK(in.key.scalar_type() == dtype && in.value.scalar_type() == dtype,
              "attention: query, key and value must have one dtype, got ", dtype, ", ", in.key.scalar_type(), ", ",
              in.value.scalar_type());
  TORCH_CHECK(in.key.device() == q.device() && in.value.device() == q.device(),
              "attention: query, key and value must be on one device, got ", q.device(), ", ", in.key.device(), ", ",
              in.value.device());
  TORCH_CHECK(std::isfinite(in.scale) && in.scale > 0, "attention: scale must be positive, got ", in.scale);
  TORCH_CHECK(in.window >= 0, "attention: window must be 0 (none) or positive, got ", in.window);
  const int64_t b = in.key_begin.numel();
  for (const Tensor* t : {&in.query_begin, &in.key_begin, &in.key_length})
    TORCH_CHECK(t->dim() == 1 && t->scalar_type() == at::kLong && t->size(0) == (t == &in.query_begin ? b + 1 : b),
                "attention: query_begin [b+1], key_begin [b] and key_length [b] must be int64, got ",
                in.query_begin.sizes(), ", ", in.key_begin.sizes(), ", ", in.key_length.sizes());
  if (in.window > 0) {
    TORCH_CHECK(given(in.query_position) && given(in.key_position),
                "attention: a window needs query_position and key_position");
    check_per_token(in.query_position, "query_position", q.size(0), at::kLong, q.device());
    check_per_token(in.key_position, "key_position", in.key.size(0), at::kLong, q.device());
  }
  if (given(in.key_weight)) {
    const at::ScalarType weight_dtype = dtype == at::kDouble ? at::kDouble : at::kFloat;
    check_per_token(in.key_weight, "key_weight", in.key.size(0), weight_dtype, q.device());
  }
}

void check_attention(const AttentionCall& in) {
  check_attention_shapes(in);
  const int64_t b = in.key_begin.size(0), num_keys = in.key.size(0), num_queries = in.query.size(0);
  for (const Tensor* t : {&in.query_begin, &in.key_begin, &in.key_length})
    TORCH_CHECK(t->device().is_cpu() && t->is_contiguous(),
                "attention: query_begin, key_begin and key_length must be contiguous and on the CPU");
  const int64_t* query_begin = in.query_begin.const_data_ptr<int64_t>();
  const int64_t* key_begin = in.key_begin.const_data_ptr<int64_t>();
  const int64_t* key_length = in.key_length.const_data_ptr<int64_t>();
  TORCH_CHECK(query_begin[0] == 0 && query_begin[b] == num_queries, "attention: query_begin must run from 0 to ",
              num_queries, ", got ", query_begin[0], " to ", query_begin[b]);
  for (int64_t s = 0; s < b; ++s) {
    TORCH_CHECK(query_begin[s] <= query_begin[s + 1], "attention: query_begin must ascend, got ", query_begin[s],
                " before ", query_begin[s + 1]);
    TORCH_CHECK(key_begin[s] >= 0 && key_length[s] >= 0 && key_begin[s] <= num_keys - key_length[s], "attention: keys ",
                key_begin[s], " + ", key_length[s], " of sequence ", s, " lie outside the ", num_keys, " rows of key");
  }
}

bool attention_needs_composed(const AttentionCall& in) {
  return given(in.key_weight) || in.query.scalar_type() == at::kDouble;
}

namespace {

Tensor with_contiguous_width(const Tensor& t) {
  return t.stride(2) == 1 || t.size(2) == 1 ? t : t.contiguous();
}

kernels::AttentionRows rows_of(const Tensor& t) {
  return {t.const_data_ptr(), t.stride(0), t.stride(1)};
}

}  // namespace

AttentionTensors::AttentionTensors(const AttentionCall& in)
    : query(with_contiguous_width(in.query)),
      key(with_contiguous_width(in.key)),
      value(with_contiguous_width(in.value)),
      query_position(in.window > 0 ? in.query_position->contiguous() : Tensor()),
      key_position(in.window > 0 ? in.key_position->contiguous() : Tensor()),
      output(at::empty(query.sizes(), query.options())),
      lse(at::empty({query.size(1), query.size(0)}, query.options().dtype(at::kFloat))),
      problem{.query = rows_of(query),
              .key = rows_of(key),
              .value = rows_of(value),
              .output = output.data_ptr(),
              .lse = lse.data_ptr<float>(),
              .query_position = in.window > 0 ? query_position.const_data_ptr<int64_t>() : nullptr,
              .key_position = in.window > 0 ? key_position.const_data_ptr<int64_t>() : nullptr,
              .num_query_rows = query.size(0),
              .num_heads = query.size(1),
              .num_kv_heads = key.size(1),
              .head_dim = query.size(2),
              .window = in.window,
              .scale = static_cast<float>(in.scale),
              .is_causal = in.is_causal,
              .dtype = kernels::element_type(query, "attention")} {}

std::vector<kernels::AttentionSequence> attention_sequences(const AttentionCall& in) {
  const int64_t* query_begin = in.query_begin.const_data_ptr<int64_t>();
  std::vector<kernels::AttentionSequence> sequences;
  for (int64_t s = 0; s < in.key_begin.size(0); ++s)
    sequences.push_back({query_begin[s], query_begin[s + 1] - query_begin[s], in.key_begin.const_data_ptr<int64_t>()[s],
                         in.key_length.const_data_ptr<int64_t>()[s]});
  return sequences;
}

// Not flash: float32; other widths; a window, which flash would count in keys and not in positions; rows that see no
// key, whose lse flash gives as +inf; and few rows, where flash leaves most of a GPU idle.
bool attention_takes_flash(const AttentionCall& in) {
  const int64_t d = in.query.size(2), ratio = in.query.size(1) / in.key.size(1);
  if (in.query.scalar_type() == at::kFloat || d % 8 != 0 || d > 256 || in.window > 0) return false;
  int64_t most_queries = 0;
  for (const kernels::AttentionSequence& s : attention_sequences(in)) {
    if (s.num_queries > 0 && s.num_keys < (in.is_causal ? s.num_queries : 1)) return false;
    most_queries = std::max(most_queries, s.num_queries);
  }
  return most_queries > 1 && most_queries * ratio > kernels::kAttentionCudaRows;
}

std::string_view attention_kernel_name(const AttentionCall& in) {
  if (attention_needs_composed(in)) return "composed";
  if (in.query.is_cuda()) return attention_takes_flash(in) ? "cuda_flash" : "cuda_tiled";
  return kernels::attention_cpu_name(kernels::element_type(in.query, "attention"), kernels::cpu_level());
}

namespace {

// Which keys each row may see [nq, nk], and with key_weight which of them is the row's own.
struct Visibility {
  Tensor visible, own;
};

Visibility visibility(const AttentionCall& in, int64_t query_begin, int64_t num_queries, int64_t key_begin,
                      int64_t num_keys) {
  const auto options = in.query.options().dtype(at::kLong).requires_grad(false);
  const Tensor last = at::arange(num_queries, options).unsqueeze(1) + (num_keys - num_queries);  // own key of each row
  const Tensor column = at::arange(num_keys, options).unsqueeze(0);
  Tensor visible = in.is_causal ? column <= last : at::ones({num_queries, num_keys}, options.dtype(at::kBool));
  if (in.window > 0) {
    const Tensor query_position = in.query_position->narrow(0, query_begin, num_queries).unsqueeze(1);
    const Tensor key_position = in.key_position->narrow(0, key_begin, num_keys).unsqueeze(0);
    visible = visible.logical_and(query_position - in.window < key_position);
  }
  return {visible, in.is_causal ? column == last : at::zeros_like(visible)};
}

// One sequence: q [nq, h, d], k and v [nk, g, d] in the dtype of the arithmetic; w [nk] or undefined.
std::pair<Tensor, Tensor> composed_sequence(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& w,
                                            const Visibility& mask, double scale) {
  const int64_t nq = q.size(0), h = q.size(1), d = q.size(2), nk = k.size(0), g = k.size(1), ratio = h / g;
  const Tensor q_groups = q.permute({1, 0, 2}).reshape({g, ratio * nq, d});
  const Tensor scores = (at::matmul(q_groups, k.permute({1, 2, 0})) * scale).view({h, nq, nk});
  const double minus_infinity = -std::numeric_limits<double>::infinity();
  const Tensor hidden = mask.visible.logical_not();
  // The weight multiplies the exponential instead of joining the score as log(w): so its derivative is exact at w = 0
  // too.
  Tensor weight, log_weight;
  if (w.defined()) {
    weight = at::where(mask.own, at::ones_like(w), w.unsqueeze(0));
    log_weight = at::log(weight.detach());
  }
  Tensor peak_scores = scores.detach();
  if (w.defined()) peak_scores = peak_scores + log_weight;
  const Tensor row_peak = at::amax(peak_scores.masked_fill(hidden, minus_infinity), -1, true);
  const Tensor peak = row_peak.masked_fill(row_peak == minus_infinity, 0.0);
  // A key of weight 0 may lie far above the peak; the bound keeps 0 · exp(…) and its gradient finite. Weights below
  // e^-60 saturate.
  Tensor mass = at::exp((scores - peak).masked_fill(hidden, minus_infinity).clamp_max(60.0));
  if (w.defined()) mass = mass * weight;
  const Tensor sum = mass.sum(-1, true);
  const Tensor empty = sum == 0;
  const Tensor safe_sum = at::where(empty, at::ones_like(sum), sum);
  const Tensor lse = (peak + at::log(safe_sum)).masked_fill(empty, minus_infinity).squeeze(-1);
  const Tensor probability = (mass / safe_sum).view({g, ratio * nq, nk});
  const Tensor output = at::matmul(probability, v.permute({1, 0, 2})).view({h, nq, d}).permute({1, 0, 2});
  return {output, lse};
}

}  // namespace

std::tuple<Tensor, Tensor> attention_composed(const AttentionCall& in) {
  const at::ScalarType compute = in.query.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const Tensor q = in.query.to(compute), k = in.key.to(compute), v = in.value.to(compute);
  const Tensor w = given(in.key_weight) ? *in.key_weight : Tensor();
  const int64_t* query_begin = in.query_begin.const_data_ptr<int64_t>();
  const int64_t* key_begin = in.key_begin.const_data_ptr<int64_t>();
  const int64_t* key_length = in.key_length.const_data_ptr<int64_t>();
  std::vector<Tensor> outputs, lses;
  for (int64_t s = 0; s < in.key_begin.size(0); ++s) {
    const int64_t nq = query_begin[s + 1] - query_begin[s], nk = key_length[s];
    if (nq == 0) continue;
    const Tensor q_rows = q.narrow(0, query_begin[s], nq);
    if (nk == 0) {
      outputs.push_back(at::zeros_like(q_rows));
      lses.push_back(at::full({q.size(1), nq}, -std::numeric_limits<double>::infinity(), q.options()));
      continue;
    }
    const Visibility mask = visibility(in, query_begin[s], nq, key_begin[s], nk);
    auto [output, lse] = composed_sequence(q_rows, k.narrow(0, key_begin[s], nk), v.narrow(0, key_begin[s], nk),
                                           w.defined() ? w.narrow(0, key_begin[s], nk) : Tensor(), mask, in.scale);
    outputs.push_back(output);
    lses.push_back(lse);
  }
  if (outputs.empty()) return {q.to(in.query.scalar_type(), false, true), at::empty({q.size(1), 0}, q.options())};
  return {at::cat(outputs, 0).to(in.query.scalar_type()), at::cat(lses, 1)};
}

namespace {

std::tuple<Tensor, Tensor> attention_meta(const AttentionCall& in) {
  if (has_plain_sizes(in.query, in.key, in.value, in.query_begin, in.key_begin, in.key_length, in.query_position,
                      in.key_position, in.key_weight))
    check_attention_shapes(in);
  const at::ScalarType lse_dtype = in.query.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  return {at::empty_symint(in.query.sym_sizes(), in.query.options()),
          at::empty_symint({in.query.sym_size(1), in.query.sym_size(0)}, in.query.options().dtype(lse_dtype))};
}

// Neighbouring sequences of equal lengths, packed behind each other: one batched product serves them.
struct SequenceBlock {
  int64_t query_begin, num_queries, key_begin, num_keys, count;
};

std::vector<SequenceBlock> sequence_blocks(const AttentionCall& in) {
  constexpr int64_t kMaxProbabilities = 1 << 18;  // of one block, over all heads: they should stay in the cache
  std::vector<SequenceBlock> blocks;
  for (const kernels::AttentionSequence& s : attention_sequences(in)) {
    if (s.num_queries == 0 || s.num_keys == 0) continue;
    if (!blocks.empty() && in.window == 0) {
      SequenceBlock& last = blocks.back();
      const bool follows = s.num_queries == last.num_queries && s.num_keys == last.num_keys &&
                           s.query_begin == last.query_begin + last.count * last.num_queries &&
                           s.key_begin == last.key_begin + last.count * last.num_keys;
      if (follows && (last.count + 1) * in.query.size(1) * s.num_queries * s.num_keys <= kMaxProbabilities) {
        ++last.count;
        continue;
      }
    }
    blocks.push_back({s.query_begin, s.num_queries, s.key_begin, s.num_keys, 1});
  }
  return blocks;
}

// Gradients of output and lse, with the probabilities recomputed from lse as exp(s - lse):
//   dV = Pᵀ·dO,  dS = P·(dO·Vᵀ - rowsum(dO·O) + dlse),  dQ = scale·dS·K,  dK = scale·dSᵀ·Q.
// Arithmetic in float32 (float64 for float64). Without key_weight.
class AttentionGradient : public torch::autograd::Function<AttentionGradient> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context, const Tensor& query,
                                                const Tensor& key, const Tensor& value, const AttentionCall* in) {
    const auto [output, lse] = attention_needs_composed(*in) ? attention_composed(*in) : attention(*in);
    context->save_for_backward({query, key, value, output, lse, in->query_begin, in->key_begin, in->key_length,
                                in->window > 0 ? *in->query_position : Tensor(),
                                in->window > 0 ? *in->key_position : Tensor()});
    context->saved_data["scale"] = in->scale;
    context->saved_data["is_causal"] = in->is_causal;
    context->saved_data["window"] = in->window;
    return {output, lse};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const torch::autograd::variable_list saved = context->get_saved_variables();
    const AttentionCall in{.query = saved[0],
                           .key = saved[1],
                           .value = saved[2],
                           .query_begin = saved[5],
                           .key_begin = saved[6],
                           .key_length = saved[7],
                           .scale = context->saved_data["scale"].toDouble(),
                           .is_causal = context->saved_data["is_causal"].toBool(),
                           .window = context->saved_data["window"].toInt(),
                           .query_position = saved[8],
                           .key_position = saved[9]};
    const Tensor q = widened(in.query), k = widened(in.key), v = widened(in.value);
    const Tensor d_output = gradients[0].defined() ? widened(gradients[0]) : at::zeros_like(q);
    // [nq, h]: what a row's probabilities share.
    Tensor shared = (d_output * widened(saved[3])).sum(-1);
    if (gradients[1].defined()) shared = shared - gradients[1].t();
    const Tensor d_query = at::zeros(q.sizes(), q.options()), d_key = at::zeros(k.sizes(), k.options()),
                 d_value = at::zeros(v.sizes(), v.options());
    for (const SequenceBlock& block : sequence_blocks(in))
      add_block(in, block, q, k, v, d_output, shared, saved[4], d_query, d_key, d_value);
    const at::ScalarType dtype = in.query.scalar_type();
    return {d_query.to(dtype), d_key.to(dtype), d_value.to(dtype), Tensor()};
  }

 private:
  // [rows, heads, d] of a block -> [count · groups, (heads / groups) · rows of one sequence, d].
  static Tensor by_head(const Tensor& t, int64_t begin, int64_t rows, int64_t count, int64_t groups) {
    const int64_t d = t.size(2);
    return t.narrow(0, begin, rows * count)
        .view({count, rows, t.size(1), d})
        .transpose(1, 2)
        .reshape({count * groups, t.size(1) / groups * rows, d});
  }
  static void put(const Tensor& to, const Tensor& from, int64_t begin, int64_t rows, int64_t count) {
    const int64_t heads = to.size(1);
    to.narrow(0, begin, rows * count)
        .view({count, rows, heads, to.size(2)})
        .add_(from.view({count, heads, rows, to.size(2)}).transpose(1, 2));
  }

  static void add_block(const AttentionCall& in, const SequenceBlock& b, const Tensor& q, const Tensor& k,
                        const Tensor& v, const Tensor& d_output, const Tensor& shared, const Tensor& lse,
                        const Tensor& d_query, const Tensor& d_key, const Tensor& d_value) {
    const int64_t g = k.size(1), h = q.size(1), nq = b.num_queries, nk = b.num_keys;
    const auto queries = [&](const Tensor& t) { return by_head(t, b.query_begin, nq, b.count, g); };
    const auto keys = [&](const Tensor& t) { return by_head(t, b.key_begin, nk, b.count, g); };
    const Tensor q_heads = queries(q), k_heads = keys(k), v_heads = keys(v), o_heads = queries(d_output);
    const Tensor lse_rows = queries(lse.t().unsqueeze(2));
    Tensor probability = at::bmm(q_heads, k_heads.transpose(1, 2)).mul_(in.scale).sub_(lse_rows).exp_();
    if (in.is_causal || in.window > 0) {
      const Tensor hidden = visibility(in, b.query_begin, nq, b.key_begin, nk).visible.logical_not();
      probability.view({b.count * h, nq, nk}).masked_fill_(hidden, 0.0);
    }
    put(d_value, at::bmm(probability.transpose(1, 2), o_heads), b.key_begin, nk, b.count);
    const Tensor d_score =
        at::bmm(o_heads, v_heads.transpose(1, 2)).sub_(queries(shared.unsqueeze(2))).mul_(probability).mul_(in.scale);
    put(d_query, at::bmm(d_score, k_heads), b.query_begin, nq, b.count);
    put(d_key, at::bmm(d_score.transpose(1, 2), q_heads), b.key_begin, nk, b.count);
  }
};

std::tuple<Tensor, Tensor> attention_autograd(const AttentionCall& in) {
  if (wants_gradient(in.query, in.key, in.value, in.key_weight)) {
    check_attention(in);
    if (given(in.key_weight)) return attention_composed(in);
    const torch::autograd::variable_list out = AttentionGradient::apply(in.query, in.key, in.value, &in);
    return {out[0], out[1]};
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return attention(in);
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, Meta, m) {
  m.impl("attention", Unpacked<AttentionSignature, attention_meta>::call);
}
TORCH_LIBRARY_IMPL(espalier, Autograd, m) {
  m.impl("attention", Unpacked<AttentionSignature, attention_autograd>::call);
}

}  // namespace espalier::ops
