// SPDX-License-Identifier: Apache-2.0
// Another policy for some pictures of a request than for the others. Each judges its own pictures' tokens alone, and
// its amounts are shares of these. No libtorch type appears here.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace espalier {

class PruningPolicy;

// `others`: for the pictures that `own` does not name. Images are counted from 0 in the order of the prompt; one that
// the prompt lacks is an Error when the request comes, and so is a policy whose decisions cannot be taken picture by
// picture: one that counts over the whole request in its own way (catp), lets the data decide how many stay, adds
// tokens on top, or acts on pictures before they are prepared (resize). Throws Error for common options or treatments
// of row breaks that differ.
std::shared_ptr<const PruningPolicy> per_image(
    std::shared_ptr<const PruningPolicy> others,
    std::vector<std::pair<std::shared_ptr<const PruningPolicy>, std::vector<int64_t>>> own);

}  // namespace espalier
