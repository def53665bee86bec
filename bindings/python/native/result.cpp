// SPDX-License-Identifier: Apache-2.0
#include "result.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <c10/core/InferenceMode.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cmath>

namespace espalier::python {

namespace {

using namespace pybind11::literals;

py::object of_results(const char* name) {
  return py::module_::import("espalier.results").attr(name);
}

template <typename T>
at::Tensor copy_of(const std::vector<T>& values, at::ScalarType dtype) {
  const c10::InferenceMode ordinary(false);
  at::Tensor t = at::empty({std::ssize(values)}, dtype);
  std::ranges::copy(values, t.data_ptr<T>());
  return t;
}

at::Tensor tensor_of(const std::vector<float>& values) {
  return copy_of(values, at::kFloat);
}

// [rows][columns], all of one length.
at::Tensor tensor_of(const std::vector<std::vector<int64_t>>& rows) {
  const c10::InferenceMode ordinary(false);
  const int64_t columns = rows.empty() ? 0 : std::ssize(rows[0]);
  at::Tensor t = at::empty({std::ssize(rows), columns}, at::kLong);
  int64_t* to = t.data_ptr<int64_t>();
  for (const auto& row : rows) to = std::ranges::copy(row, to).out;
  return t;
}

py::tuple ints_of(const auto& values) {
  return py::tuple(py::cast(values));
}

py::object to_python(const SolvedAmount& s) {
  return of_results("SolvedAmount")("policy"_a = s.policy, "fits"_a = s.fits, "predicted_ms"_a = s.predicted_ms,
                                    "allowed_ms"_a = s.allowed_ms, "waited_ms"_a = s.waited_ms,
                                    "kv_bytes"_a = s.kv_bytes);
}

py::object to_python(const Stats& s) {
  py::dict kernels;
  for (const auto& [op, kernel] : s.kernels) kernels[py::str(op)] = kernel;
  py::tuple per_layer(s.image_tokens_per_layer.size());
  for (size_t i = 0; i < s.image_tokens_per_layer.size(); ++i) per_layer[i] = ints_of(s.image_tokens_per_layer[i]);
  return of_results("Stats")(
      "prompt_tokens"_a = s.prompt_tokens, "image_tokens"_a = ints_of(s.image_tokens),
      "image_tokens_per_layer"_a = per_layer, "tokens_per_layer"_a = ints_of(s.tokens_per_layer),
      "kv_tokens_per_layer"_a = ints_of(s.kv_tokens_per_layer), "reused_tokens"_a = s.reused_tokens,
      "new_tokens"_a = s.new_tokens, "encode_ms"_a = s.encode_ms, "select_ms"_a = s.select_ms,
      "prefill_ms"_a = s.prefill_ms, "decode_ms"_a = s.decode_ms, "prefill_flops"_a = s.prefill_flops,
      "prefill_flops_unpruned"_a = s.prefill_flops_unpruned, "probe_flops"_a = s.probe_flops, "kv_bytes"_a = s.kv_bytes,
      "kv_bytes_unpruned"_a = s.kv_bytes_unpruned, "kv_bytes_most"_a = s.kv_bytes_most,
      "peak_memory_bytes"_a = s.peak_memory_bytes, "threads"_a = s.threads, "kernels"_a = kernels,
      "solved"_a = s.solved ? to_python(*s.solved) : py::object(py::none()));
}

}  // namespace

at::Tensor tensor_of(const std::vector<int64_t>& values) {
  return copy_of(values, at::kLong);
}

py::object to_python(const TokenLogprobs& logprobs) {
  py::tuple top(logprobs.top.size());
  for (size_t i = 0; i < logprobs.top.size(); ++i) top[i] = py::make_tuple(logprobs.top[i].id, logprobs.top[i].logprob);
  return of_results("TokenLogprobs")("id"_a = logprobs.id, "logprob"_a = logprobs.logprob, "top"_a = top);
}

py::object to_python(const PointTrace& p) {
  py::dict notes;
  for (const auto& [name, values] : p.notes) notes[py::str(name)] = tensor_of(values);
  py::tuple per_head(p.kept_per_head.size());
  for (size_t i = 0; i < p.kept_per_head.size(); ++i) per_head[i] = tensor_of(p.kept_per_head[i]);
  return of_results("PointTrace")(
      "site"_a = p.site, "layer"_a = p.layer < 0 ? py::object(py::none()) : py::object(py::int_(p.layer)),
      "generated"_a = p.generated, "kept"_a = tensor_of(p.kept), "kept_per_head"_a = per_head,
      "dropped"_a = tensor_of(p.dropped), "candidates"_a = tensor_of(p.candidates), "scores"_a = tensor_of(p.scores),
      "notes"_a = notes, "tokens_per_image"_a = ints_of(p.tokens_per_image), "source"_a = tensor_of(p.source),
      "position_id"_a = tensor_of(p.position_id));
}

py::object to_python(const PromptTrace& p) {
  const auto each = [&](auto&& get) {
    std::vector<int64_t> values;
    for (const TokenTrace& token : p.tokens) values.push_back(get(token));
    return tensor_of(values);
  };
  at::Tensor box;
  {
    const c10::InferenceMode ordinary(false);
    box = at::full({std::ssize(p.tokens), 4}, std::nan(""), at::kDouble);
  }
  double* edge = box.data_ptr<double>();
  for (const TokenTrace& token : p.tokens) {
    if (token.box) std::ranges::copy(std::array{token.box->x0, token.box->y0, token.box->x1, token.box->y1}, edge);
    edge += 4;
  }
  py::tuple pictures(p.pictures.size());
  for (size_t i = 0; i < p.pictures.size(); ++i) {
    const PromptTrace::Picture& picture = p.pictures[i];
    pictures[i] = of_results("PictureTrace")(
        "grid"_a = py::make_tuple(picture.rows, picture.columns),
        "tiling"_a = picture.tile_rows == 0 ? py::object(py::none())
                                            : py::object(py::make_tuple(picture.tile_rows, picture.tile_columns)));
  }
  return of_results("PromptTrace")("query_example"_a = p.query_example, "pictures"_a = pictures,
                                   "kind"_a = each([](const TokenTrace& t) { return static_cast<int64_t>(t.kind); }),
                                   "image"_a = each([](const TokenTrace& t) { return int64_t{t.image}; }),
                                   "crop"_a = each([](const TokenTrace& t) { return int64_t{t.crop}; }),
                                   "example"_a = each([](const TokenTrace& t) { return int64_t{t.example}; }),
                                   "row"_a = each([](const TokenTrace& t) { return t.row; }),
                                   "column"_a = each([](const TokenTrace& t) { return t.column; }), "box"_a = box,
                                   "position_id"_a = tensor_of(p.position_id));
}

py::object to_python(const Result& r) {
  return of_results("Result")(
      "text"_a = text_of(r.text), "token_ids"_a = ints_of(r.token_ids),
      "prompt_token_ids"_a = ints_of(r.prompt_token_ids), "logprobs"_a = python::to_python<TokenLogprobs>(r.logprobs),
      "prompt"_a = text_of(r.prompt), "policy"_a = r.policy, "finish_reason"_a = std::string(name_of(r.finish_reason)),
      "points"_a = python::to_python<PointTrace>(r.points), "kept"_a = tensor_of(r.kept),
      "stats"_a = to_python(r.stats));
}

}  // namespace espalier::python
