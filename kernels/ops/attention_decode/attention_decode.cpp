// SPDX-License-Identifier: Apache-2.0
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cmath>

#include "espalier/ops.h"
#include "kernels/ops/attention_decode/attention_decode_arguments.h"
#include "kernels/support/dispatch.h"
#include "kernels/support/meta_shapes.h"
#include "kernels/support/tensor_checks.h"

namespace espalier::ops {

std::tuple<Tensor, Tensor> attention_decode(const AttentionDecodeCall& c) {
  static const auto op = find_op<AttentionDecodeSignature>("attention_decode");
  return op.call(c.query, c.key, c.value, c.key_begin, c.key_length, c.max_length, c.scale, c.window, c.query_position,
                 c.key_position);
}

namespace {

void check_numbers(const Tensor& t, const char* name, int64_t size, at::Device device) {
  TORCH_CHECK(t.defined() && t.scalar_type() == at::kLong && t.dim() == 1 && t.size(0) == size && t.device() == device,
              "attention_decode: ", name, " must be int64 [", size, "] on ", device, ", got ",
              t.defined() ? t.toString() : "nothing", " ", t.defined() ? t.sizes() : at::IntArrayRef());
}

}  // namespace

void check_attention_decode(const AttentionDecodeCall& in) {
  const Tensor& q = in.query;
  TORCH_CHECK(q.dim() == 3 && in.key.dim() == 3 && in.key.sizes() == in.value.sizes() && in.key.size(2) == q.size(2),
              "attention_decode: query [b, h, d], key and value [nk, g, d] expected, got ", q.sizes(), ", ",
              in.key.sizes(), ", ", in.value.sizes());
  TORCH_CHECK(in.key.size(1) > 0 && q.size(1) > 0 && q.size(1) % in.key.size(1) == 0 && q.size(2) > 0,
              "attention_decode: the query heads must be a multiple of the KV heads, got ", q.size(1), " and ",
              in.key.size(1), " heads of width ", q.size(2));
  kernels::element_type(q, "attention_decode");
  kernels::check_alike(q, in.key, "attention_decode");
  kernels::check_alike(q, in.value, "attention_decode");
  TORCH_CHECK(std::isfinite(in.scale) && in.scale > 0, "attention_decode: scale must be positive, got ", in.scale);
  TORCH_CHECK(in.max_length >= 0, "attention_decode: max_length must not be negative, got ", in.max_length);
  TORCH_CHECK(in.window >= 0, "attention_decode: window must be 0 (none) or positive, got ", in.window);
  check_numbers(in.key_begin, "key_begin", q.size(0), q.device());
  check_numbers(in.key_length, "key_length", q.size(0), q.device());
  if (in.window == 0) return;
  check_numbers(in.query_position.value_or(Tensor()), "query_position (a window needs it)", q.size(0), q.device());
  check_numbers(in.key_position.value_or(Tensor()), "key_position (a window needs it)", in.key.size(0), q.device());
}

namespace {

std::tuple<Tensor, Tensor> attention_decode_meta(const AttentionDecodeCall& in) {
  const Tensor& q = in.query;
  if (has_plain_sizes(q, in.key, in.value, in.key_begin, in.key_length, in.query_position, in.key_position))
    check_attention_decode(in);
  return {at::empty_symint(q.sym_sizes(), q.options()),
          at::empty_symint({q.sym_size(1), q.sym_size(0)}, q.options().dtype(at::kFloat))};
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, Meta, m) {
  m.impl("attention_decode", Unpacked<AttentionDecodeSignature, attention_decode_meta>::call);
}

}  // namespace espalier::ops
