// SPDX-License-Identifier: Apache-2.0
// How a training of ATP's modules went, drawn from its log.
#pragma once

#include <filesystem>

namespace espalier {

// An SVG with three panels over the steps: losses; image tokens of a picture, by soft masks and with tokens removed,
// beside the target; accuracy of the evaluations. Of steps that ran twice (before and after a kill) the later counts.
// Throws Error naming file and line where the log is not one.
void write_atp_plot(const std::filesystem::path& svg, const std::filesystem::path& log, double target_tokens);

}  // namespace espalier
