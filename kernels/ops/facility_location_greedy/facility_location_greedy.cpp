// SPDX-License-Identifier: Apache-2.0
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "espalier/ops.h"
#include "kernels/ops/facility_location_greedy/facility_location_greedy_arguments.h"

namespace espalier::kernels {

CosineMap cosine_map(std::string_view name) {
  if (name == "affine") return CosineMap::kAffine;
  if (name == "clamp") return CosineMap::kClamp;
  TORCH_CHECK(name == "minmax", "facility_location_greedy: similarity must be affine, clamp or minmax, got ", name);
  return CosineMap::kMinmax;
}

namespace {

void check_per_row(const char* name, const std::optional<at::Tensor>& value, at::ScalarType dtype,
                   const at::Tensor& features) {
  if (!value.has_value() || !value->defined()) return;
  TORCH_CHECK(value->dim() == 1 && value->size(0) == features.size(0) && value->scalar_type() == dtype &&
                  value->device() == features.device(),
              "facility_location_greedy: ", name, " must be ", dtype, " [", features.size(0), "] on ",
              features.device(), ", got ", value->scalar_type(), " ", value->sizes(), " on ", value->device());
}

}  // namespace

void check_facility_location_greedy(const at::Tensor& features, const at::Tensor& block_begin,
                                    const at::Tensor& num_kept, std::string_view similarity,
                                    const std::optional<at::Tensor>& modular, const std::optional<at::Tensor>& forced) {
  TORCH_CHECK(features.dim() == 2, "facility_location_greedy: features [m, d] expected, got ", features.sizes());
  element_type(features, "facility_location_greedy");
  check_offsets("facility_location_greedy", "block_begin", block_begin, features.size(0));
  TORCH_CHECK(num_kept.device().is_cpu() && num_kept.scalar_type() == at::kLong && num_kept.dim() == 1 &&
                  num_kept.size(0) == block_begin.size(0) - 1,
              "facility_location_greedy: num_kept must be int64 [", block_begin.size(0) - 1, "] on the CPU, got ",
              num_kept.scalar_type(), " ", num_kept.sizes(), " on ", num_kept.device());
  const at::Tensor begins = block_begin.contiguous(), counts = num_kept.contiguous();
  const int64_t* begin = begins.const_data_ptr<int64_t>();
  const int64_t* count = counts.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < num_kept.size(0); ++i) {
    TORCH_CHECK(count[i] >= 0 && count[i] <= begin[i + 1] - begin[i], "facility_location_greedy: num_kept[", i, "] is ",
                count[i], ", the block has ", begin[i + 1] - begin[i], " rows");
  }
  cosine_map(similarity);
  check_per_row("modular", modular, at::kFloat, features);
  check_per_row("forced", forced, at::kBool, features);
}

int64_t total_kept(const at::Tensor& num_kept) {
  const at::Tensor counts = num_kept.contiguous();
  const int64_t* count = counts.const_data_ptr<int64_t>();
  int64_t total = 0;
  for (int64_t i = 0; i < counts.numel(); ++i) total += count[i];
  return total;
}

}  // namespace espalier::kernels

namespace espalier::ops {

namespace {

using GreedySignature = Tensor(const Tensor&, const Tensor&, const Tensor&, std::string_view, double,
                               const OptionalTensor&, const OptionalTensor&);

const char* name_of(Similarity similarity) {
  switch (similarity) {
    case Similarity::kAffine:
      return "affine";
    case Similarity::kClamp:
      return "clamp";
    case Similarity::kMinmax:
      return "minmax";
  }
  TORCH_CHECK(false, "facility_location_greedy: unknown similarity ", static_cast<int>(similarity));
}

Tensor facility_location_greedy_meta(const Tensor& features, const Tensor& block_begin, const Tensor& num_kept,
                                     std::string_view similarity, double, const OptionalTensor& modular,
                                     const OptionalTensor& forced) {
  kernels::check_facility_location_greedy(features, block_begin, num_kept, similarity, modular, forced);
  return at::empty({kernels::total_kept(num_kept)}, features.options().dtype(at::kLong));
}

}  // namespace

Tensor facility_location_greedy(const Tensor& features, const Tensor& block_begin, const Tensor& num_kept,
                                Similarity similarity, double coverage_scale, const OptionalTensor& modular,
                                const OptionalTensor& forced) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("espalier::facility_location_greedy", "").typed<GreedySignature>();
  return op.call(features, block_begin, num_kept, name_of(similarity), coverage_scale, modular, forced);
}

TORCH_LIBRARY_IMPL(espalier, Meta, m) {
  m.impl("facility_location_greedy", facility_location_greedy_meta);
}

}  // namespace espalier::ops
