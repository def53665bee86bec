#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Asks the bundled model five in-context questions with made-up words, unpruned and under pruning policies, and shows answers, tokens
# and time. The pictures are items of the benchmark (espalier synth --suite bind --suite define --seed 7), none of which the model was
# trained on.
#   examples/demo/run.sh BINARY [options of `espalier generate`]
set -euo pipefail
here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
espalier=$1
shift

# Folder, what the examples name, the right answer.
questions=('shape|two words for two shapes|dir' 'colour|two words for two colours|gav' 'spot|two words for the colour of a tiny spot|kib'
           'words|four words for four shapes|pog' 'define|a question about a thing whose shape has just been named|red')
# The model reads what a word names in layer 2, and what a question is about in layers 3, 6 and 7 (models/demo/README.md): policies that
# prune between, CATP as published and as it holds (docs/findings.md) among them, the first with the k that policy_defaults.json names, and trained modules (there, "ATP modules") that leave a quarter of the tokens on the average over layers.
models=$(readlink -f "$here/../../models/demo")
policies=(none catp:keep_ratio=2/9 catp+:keep_ratio=2/9,k=3 "atp:weights=$models/atp_25.safetensors" fastv:keep_ratio=2/9,layer=3 random:keep_ratio=2/9)

# field NAME JSON: a string, or the last number of a list.
text_of() { sed -E 's/.*"text":"([^"]*)","token_ids".*/\1/' <<<"$1"; }
last_of() { sed -E "s/.*\"$1\":\[([0-9]+,)*([0-9]+)\].*/\2/" <<<"$2"; }
number_of() { sed -E "s/.*\"$1\":([0-9.e+-]+).*/\1/" <<<"$2"; }

echo "Each prompt shows pictures with their made-up names, then another: what is it called? Or: what colour is the thing of that name?"
for question in "${questions[@]}"; do
  IFS='|' read -r folder what right <<<"$question"
  printf '\n%s: the right answer is "%s"\n' "$what" "$right"
  printf '  %-30s %-10s %-24s %s\n' policy answer 'tokens in the last layer' 'time to the first token'
  for policy in "${policies[@]}"; do
    json=$("$espalier" generate --chat "$here/$folder/messages.json" --policy "$policy" --max-new-tokens 4 --greedy --json "$@")
    answer=$(text_of "$json")
    printf '  %-30s %-10s %5d of %-15d %8.1f ms\n' "${policy/$models\//}" "$answer$([ "$answer" = "$right" ] || echo '  (wrong)')" \
      "$(last_of tokens_per_layer "$json")" "$(number_of prompt_tokens "$json")" \
      "$(awk "BEGIN {print $(number_of encode "$json") + $(number_of select "$json") + $(sed -E 's/.*"time_ms":\{[^}]*"prefill":([0-9.e+-]+).*/\1/' <<<"$json")}")"
  done
done
