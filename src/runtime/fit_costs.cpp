// SPDX-License-Identifier: Apache-2.0
#include "runtime/fit_costs.h"

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <utility>

#include "espalier/error.h"

namespace espalier {

namespace {

using Eigen::Index;

// Of a term's norm: where the others say all but this much of it, it says nothing of its own.
constexpr double kOwnPart = 1e-7;

struct Problem {
  Eigen::MatrixXd terms;  // [passes, terms], weighted, each column divided by its norm
  Eigen::VectorXd times;  // weighted
  Eigen::VectorXd norms;
};

Problem problem_of(const std::vector<TimedPass>& passes) {
  const Index n = std::ssize(passes), k = std::ssize(passes[0].terms);
  Problem p{Eigen::MatrixXd(n, k), Eigen::VectorXd(n), {}};
  for (Index i = 0; i < n; ++i) {
    const TimedPass& pass = passes[static_cast<size_t>(i)];
    p.times(i) = pass.milliseconds / pass.of_milliseconds;
    for (Index j = 0; j < k; ++j) p.terms(i, j) = pass.terms[static_cast<size_t>(j)] / pass.of_milliseconds;
  }
  p.norms = p.terms.colwise().norm();
  for (Index j = 0; j < k; ++j)
    if (p.norms(j) > 0) p.terms.col(j) /= p.norms(j);
  return p;
}

std::vector<double> solve(const std::vector<TimedPass>& passes) {
  const Problem p = problem_of(passes);
  std::vector<Index> used;
  for (Index j = 0; j < p.norms.size(); ++j)
    if (p.norms(j) > 0) used.push_back(j);
  // More work never takes less time: the most negative term goes until there is none.
  Eigen::VectorXd costs;
  while (!used.empty()) {
    Eigen::ColPivHouseholderQR<Eigen::MatrixXd> qr;
    qr.setThreshold(kOwnPart);
    qr.compute(p.terms(Eigen::all, used));
    costs = qr.solve(p.times);
    Index least = 0;
    if (costs.minCoeff(&least) >= 0) break;
    used.erase(used.begin() + least);
  }
  std::vector<double> of_terms(passes[0].terms.size(), 0.0);
  for (size_t i = 0; i < used.size(); ++i)
    of_terms[static_cast<size_t>(used[i])] = costs(static_cast<Index>(i)) / p.norms(used[i]);
  return of_terms;
}

double error_of(const TimedPass& pass, const std::vector<double>& costs) {
  double expected = 0;
  for (size_t j = 0; j < costs.size(); ++j) expected += costs[j] * pass.terms[j];
  return std::abs(expected - pass.milliseconds) / pass.of_milliseconds;
}

}  // namespace

std::vector<double> fit_costs(std::vector<TimedPass> passes) {
  if (passes.empty()) throw Error("calibrate: there are no passes to fit costs to");
  const std::vector<double> first = solve(passes);
  std::vector<double> errors;
  for (const TimedPass& pass : passes) errors.push_back(error_of(pass, first));
  const auto middle = errors.begin() + std::ssize(errors) / 2;
  std::ranges::nth_element(errors, middle);
  const double far = 5 * *middle + 1e-9;
  const auto is_far = [&](const TimedPass& pass) { return error_of(pass, first) > far; };
  // Where many are, it is the model that does not fit.
  if (10 * std::ranges::count_if(passes, is_far) > std::ssize(passes)) return first;
  std::erase_if(passes, is_far);
  return solve(passes);
}

}  // namespace espalier
