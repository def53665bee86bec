// SPDX-License-Identifier: Apache-2.0
// Every op's schema, the index of this folder. Op x: x.cpp (checks, shapes, Meta, Autograd), x_cpu.cpp (plain loops,
// then the fast path), x_cuda.cpp (ATen side) and x_cuda.cu (kernel). C++ signatures and meanings:
// include/espalier/ops.h. A schema is a promise. dynamic_output_shape: the sum of num_kept, which tracing cannot know.
#include <ATen/core/enum_tag.h>
#include <torch/library.h>

TORCH_LIBRARY(espalier, m) {
  m.def("rms_norm(Tensor x, Tensor weight, float eps) -> Tensor");
  m.def("rope(Tensor query, Tensor key, Tensor cos, Tensor sin) -> (Tensor, Tensor)");
  m.def("linear(Tensor x, Tensor weight, Tensor? bias=None) -> Tensor");
  m.def("linear_int8(Tensor x, Tensor weight, Tensor scale) -> Tensor");
  m.def("silu_mul(Tensor gate, Tensor up) -> Tensor");
  m.def(
      "attention(Tensor query, Tensor key, Tensor value, Tensor query_begin, Tensor key_begin, Tensor key_length, "
      "float scale, "
      "bool is_causal, int window=0, Tensor? query_position=None, Tensor? key_position=None, Tensor? key_weight=None) "
      "-> (Tensor, Tensor)");
  m.def(
      "attention_decode(Tensor query, Tensor key, Tensor value, Tensor key_begin, Tensor key_length, int max_length, "
      "float scale, int window=0, Tensor? query_position=None, Tensor? key_position=None) -> (Tensor, Tensor)");
  m.def("merge_states(Tensor output_a, Tensor lse_a, Tensor output_b, Tensor lse_b) -> (Tensor, Tensor)");
  m.def(
      "attention_probe(Tensor query, Tensor key, Tensor lse, Tensor rows, Tensor row_begin, Tensor columns, Tensor "
      "column_begin, "
      "float scale, bool is_causal, str heads, bool reduce_rows, int window=0, Tensor? position=None, Tensor? "
      "own_key=None) -> Tensor");
  m.def(
      "attention_growth(Tensor query_lower, Tensor key_lower, Tensor lse_lower, Tensor query_upper, Tensor key_upper, "
      "Tensor lse_upper, Tensor rows, Tensor row_begin, Tensor columns, Tensor column_begin, float scale, bool "
      "relu_per_head, "
      "int window=0, Tensor? position=None, Tensor? hidden=None, Tensor? direction=None, float cosine_weight=0.0, "
      "Tensor? own_key=None) -> Tensor");
  m.def("cosine_score(Tensor x, Tensor direction, Tensor? index=None) -> Tensor");
  m.def("pairwise_cosine(Tensor x, Tensor y) -> Tensor");
  m.def(
      "facility_location_greedy(Tensor features, Tensor block_begin, Tensor num_kept, str similarity, float "
      "coverage_scale=1.0, "
      "Tensor? modular=None, Tensor? forced=None) -> Tensor",
      {at::Tag::dynamic_output_shape});
  m.def(
      "max_min_select(Tensor features, Tensor block_begin, Tensor num_kept, str distance, Tensor? forced=None) -> "
      "Tensor",
      {at::Tag::dynamic_output_shape});
  m.def(
      "greedy_dpp(Tensor features, Tensor relevance, Tensor block_begin, Tensor num_kept, Tensor? forced=None) -> "
      "Tensor",
      {at::Tag::dynamic_output_shape});
  m.def("topk_sorted(Tensor scores, Tensor block_begin, Tensor num_kept) -> Tensor", {at::Tag::dynamic_output_shape});
  m.def("gather_rows(Tensor x, Tensor index) -> Tensor");
  m.def("merge_tokens(Tensor x, Tensor index, Tensor group_begin, Tensor? weight=None) -> Tensor");
  m.def("compact_kv(Tensor key, Tensor value, Tensor index) -> (Tensor, Tensor)");
}
