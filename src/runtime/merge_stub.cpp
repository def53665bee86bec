#include <ATen/ATen.h>
#include "espalier/ops.h"
namespace espalier::ops {
std::tuple<Tensor, Tensor> merge_states(const Tensor& a, const Tensor& la, const Tensor& b, const Tensor& lb);
std::tuple<Tensor, Tensor> merge_states(const Tensor& a, const Tensor& la, const Tensor& b, const Tensor& lb) {
  const Tensor lse = at::logaddexp(la, lb);
  const auto w = [&](const Tensor& l) { return at::exp(l - lse).nan_to_num(0).transpose(0, 1).unsqueeze(2); };
  return {(a.to(at::kFloat) * w(la) + b.to(at::kFloat) * w(lb)).to(a.scalar_type()), lse};
}
}
