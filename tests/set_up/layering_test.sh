#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Each rule of layering.sh fires: in a small tree of files that break one rule each, every one of them is named.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT

broken=()
file() { # PATH LINE...
  local path=$1
  shift
  mkdir -p "$(dirname "$tree/$path")"
  printf '%s\n' '// SPDX-License-Identifier: Apache-2.0' "$@" >"$tree/$path"
}
breaks() { broken+=("$1"); file "$@"; }

file kernels/fine.h '#include <ATen/core/Tensor.h>'
file src/text/fine.cpp '#include "text/fine.h"' '#include "espalier/error.h"' '#include <nlohmann/json.hpp>'
file src/base/fine.cpp '#include <spdlog/spdlog.h>'
file src/runtime/fine.cpp '#include "model/config.h"' '#include "base/json_file.h"'
breaks include/espalier/a.h '#include "runtime/b.h"'
breaks include/espalier/b.h '#include <nlohmann/json.hpp>'
breaks src/text/a.cpp '#include "model/config.h"'
breaks src/text/b.cpp '#include <ATen/core/Tensor.h>'
breaks src/text/c.cpp '#include <spdlog/spdlog.h>'
breaks src/model/a.cpp '#include "espalier/pruning.h"'
breaks src/model/b.cpp '#include "text/tokenizer.h"'
breaks src/pruning/a.cpp '#include "runtime/kv_cache.h"'
breaks src/pruning/b.cpp '#include <nlohmann/json.hpp>'
breaks src/runtime/a.cpp '#include "cli/progress.h"'
breaks src/runtime/b.cpp '#include <torch/torch.h>'
breaks src/runtime/c.cpp 'const char* f = std::getenv("F");'
breaks src/runtime/d.cpp '// TODO: later'
breaks src/runtime/e.cpp '#include <ATen/ATen.h>'
breaks src/cli/a.cpp '#include "pruning/selection.h"'
breaks kernels/a.cpp '#include "model/config.h"'
breaks kernels/b.cu '#include <c10/core/Device.h>'
breaks kernels/c_avx2.cpp '#include "kernels/c.h"'
file kernels/c.h '#include "kernels/fine.h"'
breaks examples/a.cpp '#include "runtime/engine_impl.h"'
file README.md 'See `src/text/fine.cpp`, kernels/*.h, [fine](src/text), [that](#fine), [far](https://example.org/src) and http://example.org/src/nowhere.' \
  '```cpp' 'auto one = [](const Two& two) { return two; };' '```'
file src/model/fine.h 'namespace espalier {' 'struct One;' 'struct One {};' 'enum class Two { kA };' '}  // namespace espalier'
file src/runtime/one.cpp 'namespace espalier {' 'namespace {' 'struct One {};' '}  // namespace' '}  // namespace espalier'
file src/jinja/one.h 'namespace espalier::jinja {' 'struct One {};' 'struct Two* two();' '}  // namespace espalier::jinja'
breaks src/runtime/f.h 'namespace espalier {' 'class One final : public Two {};' '}  // namespace espalier'
breaks src/runtime/g.h 'namespace espalier {' 'enum class Two { kB };' '}  // namespace espalier'
file src/pruning/fine.cpp '// docs/specs/fine.md and the README.md beside it; build/*.md.' 'auto file = "gone.md";'
file docs/specs/fine.md 'Text.'
breaks src/pruning/c.cpp '// As specs/fine.md reads it.'
breaks tests/a.sh '# As gone.md says.'
breaks docs.md 'See `src/text/gone.cpp`.'
breaks links.md '```sh' 'true' '```' 'See [this](gone.md).'
breaks src/text/d.cpp ''
echo 'int no_licence;' >"$tree/src/text/d.cpp"

if found=$("$here/../layering.sh" "$tree"); then echo 'layering.sh found nothing'; exit 1; fi
for path in "${broken[@]}"; do
  # What a unit reaches through a header is reported at the header, naming the unit.
  grep -qE "^(\./)?$path:|no libtorch header in $path\]" <<<"$found" || { echo "not reported: $path"; exit 1; }
done
if grep -E 'README|^src/(text|base|runtime)/fine' <<<"$found"; then echo 'reported without reason'; exit 1; fi
