#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Asks the bundled model a four-shot question, unpruned and with CATP, and shows what pruning saved.
#   examples/demo/run.sh BINARY [options of `espalier generate`]
set -euo pipefail
here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
espalier=$1
shift

echo "Four pictures with their names, then a fifth without. Until a trained model is bundled, its weights are random: the answers are"
echo "words without sense, but every number below is real."
for policy in none catp:keep_ratio=2/9; do
  echo
  echo "--- policy $policy: the answer, then what it took"
  "$espalier" generate --chat "$here/messages.json" --policy "$policy" --max-new-tokens 8 --stats "$@" 2>&1
done
