#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes the accuracy tables of the bundled models that bench/accuracy.md reports: one `espalier eval` a table, each leaving NAME
# with the endings json, md (with its own command) and, where policies are compared, svg in the folder. A table that is there is not made again, so an
# interrupted run goes on.
#   bench/accuracy.sh BINARY FOLDER [--items N] [--ratio R]... [--threads N] [TABLE...]     tables: curve policies main bind scenes catp plus kept atp
#                                              and of models/crowded: crowded_curve crowded_policies crowded_main
# Without a table, all. 500 items a cell, 2,000 in `main` and `bind` (the unpruned model in every cell of binding, with controls); ratios 1/3,
# 2/9 and 1/9, for models/crowded 1/16 too. On two idle cores that is hours for `policies`; --items and --ratio cut it down, and two runs of one thread beat one of two.
set -euo pipefail
usage() { sed -n 's/^# \{0,1\}//; 3,9p' "$0" >&2; exit 2; }
[ $# -ge 2 ] || usage
root=$(cd "$(dirname "$0")/.." && pwd)
espalier=$1 out=$2
shift 2
items=500 many=2000
ratios=() threads=()
while [ $# -gt 1 ]; do
  case "$1" in
    --items) items=$2 many=$2; shift 2 ;;
    --ratio) ratios+=("$2"); shift 2 ;;
    --threads) threads=(--threads "$2"); shift 2 ;;
    *) break ;;
  esac
done
tables=("${@:-}")
[ -n "${tables[0]}" ] || tables=(curve policies main bind scenes catp plus kept atp crowded_curve crowded_policies crowded_main)
mkdir -p "$out"
readonly work=build/accuracy  # below the root, where everything runs: pictures to fit on, modules trained for a table
mkdir -p "$root/$work"
out=$(cd "$out" && pwd)
espalier=$(readlink -f "$espalier")

# The layer before which the decoder's policies cut, from the curve: in layer 2 the model begins to read its pictures (what a word names), so
# this is the first place with a signal; spots and colours are read in layer 3 and all else in 6 and 7, behind it. Layer 2, the default of
# most policies, stands beside it. models/crowded looks for what is asked about from layer 2 on and reads it in layer 5: READ is after that.
readonly K=3 READ=6
cells=(bind/shape-2x1 bind/shape-2x2 bind/shape-4x1 bind/colour-2x1 bind/colour-2x2 bind/spot-2x1 define)
readonly in_context=("${cells[@]/#/--suite=}")
readonly all=(--suite=single --suite=detail "${in_context[@]}")
readonly crowds=(--suite=crowded --suite=in-context --suite=screens)

# printed FILE COMMAND...: keeps what the command, run in the root folder, prints as FILE of the folder, unless it is there.
printed() {
  local file=$1 name=${1%.*}
  shift
  if [ -s "$out/$file" ]; then echo "$name is there" >&2; return; fi
  echo "$(date +%H:%M:%S) $name" >&2
  (cd "$root" && "$@") >"$out/$name.partial"
  mv "$out/$name.partial" "$out/$file"
}

# eval_table NAME ITEMS ARGUMENT...
eval_table() {
  printed "$1.json" "$espalier" eval --model "$model" "${threads[@]}" --items "$2" --json --markdown "$out/$1.md" \
    --answers "$out/$1.answers.partial" --resume "${@:3}"
  rm -f "$out/$1.answers.partial"  # of this binary and model: another run must not find them
}

plotted_table() { eval_table "$@" --svg "$out/$1.svg"; }

# policies SPEC...: with every @ as each of the ratios; sets `specs`.
policies() {
  specs=()
  local spec ratio each=("${ratios[@]}")
  if [ ${#each[@]} -eq 0 ]; then
    each=(1/3 2/9 1/9)
    if [ "$model" = models/crowded ]; then each+=(1/16); fi
  fi
  for spec in "$@"; do
    for ratio in "${each[@]}"; do
      specs+=(--policy "${spec//@/keep_ratio=$ratio}")
      case "$spec" in *@*) ;; *) break ;; esac
    done
  done
}

# Those that take a ratio; sets `specs`.
every_policy() {
  policies oracle:@ oracle:@,knows=scene random:@ uniform:@ resize:@ divprune:@ cdpruner:@ hired:@ visionzip:@ prumerge:@ prumerge+:@ \
    fastv:@ "fastv:@,layer=$K" "attention:@,layer=$K" "attention:@,layer=$K,rows=own_text" "attention:@,layer=$K,rows=query_text" \
    "attention:@,layer=$K,rows=all" "dart:@,layer=$K" catp:@,k=2 "catp:@,k=$K" "catp+:@,k=$K" sparsevlm:@ pyramiddrop:@ plphp:@ \
    "divprune:keep_ratio=1/2 + fastv:@,layer=$K"
}

# drawn NAME OPTION...: items of `espalier synth` in build/accuracy/NAME.
drawn() { [ -d "$root/$work/$1" ] || "$espalier" synth --out "$root/$work/$1" "${@:2}" >&2; }

# FitPrune's recipes, fitted on pictures of the training split, one for each part of the cost to save; adds to `specs`.
fitted() {
  local reduction recipe
  mkdir -p "$out/fit"
  drawn fit_items --split train --suite bind/shape-2x2 --suite bind/colour-2x2 --items 16
  for reduction in "$@"; do
    recipe=$out/fit/fitprune_$reduction.json
    [ -s "$recipe" ] ||
      "$espalier" fit --policy fitprune --model "$root/models/demo" --data "$root/$work/fit_items" --reduction "$reduction" --out "$recipe" >&2
    specs+=(--policy "fitprune:recipe=${recipe#"$root"/}")  # eval runs there
  done
}

# Modules of atp for a quarter of the tokens, each trained as models/demo/README.md says of atp_25 but for what its name says; first
# thresholds are such that about a quarter stays before the first step. `constant`: thresholds that are learned but the same for every
# prompt. `fixed`: ranks under a constant threshold, so the same share of every picture, whatever it shows; `fixed_both`: that or the grid;
# `ranks`: that with thresholds predicted for each prompt. `decoder`: the decoder trained along; `decoder_15`: the same for 15 %, as atp_15.
readonly shipped=(--scores cross --initial-theta-r 0.9 0.1 --initial-theta-s 0.15 0.9)
readonly fixed=(--scores cross --strategy redundant --norm rank --head constant --initial-theta-r 0.75 0.6)
readonly ranks=(--scores cross --norm rank --initial-theta-r 0.9 0.76 --initial-theta-s 0.15 0.9)
readonly along=(--train-decoder --decoder-learning-rate 0.0002)

# atp_ablation NAME: sets `target` and `options`.
atp_ablation() {
  target=0.25
  case "$1" in
    shipped) options=("${shipped[@]}") ;;
    both_scores) options=(--scores both --initial-theta-r 0.9 0.3 --initial-theta-s 0.15 0.9) ;;
    self_only) options=(--scores self --initial-theta-r 0.9 0.35 --initial-theta-s 0.15 0.9) ;;
    no_redundancy) options=(--scores cross --strategy spatial --initial-theta-s 0.15 0.5) ;;
    no_spatial) options=(--scores cross --strategy redundant --initial-theta-r 0.1 0.45) ;;
    constant) options=("${shipped[@]}" --head constant) ;;
    fixed) options=("${fixed[@]}") ;;
    fixed_both) options=("${ranks[@]}" --head constant) ;;
    ranks) options=("${ranks[@]}") ;;
    decoder) options=("${shipped[@]}" "${along[@]}") ;;
    fixed_decoder) options=("${fixed[@]}" "${along[@]}") ;;
    decoder_15) target=0.15 options=(--target-weight 1 --scores cross --initial-theta-r 0.9 0.6 --initial-theta-s 0.5 0.96 "${along[@]}") ;;
  esac
}

# trained_atp NAME...: leaves build/accuracy/atp/NAME/atp.safetensors; a killed run goes on.
trained_atp() {
  local name target options
  for name in "$@"; do
    [ ! -s "$root/$work/atp/$name/done" ] || continue
    atp_ablation "$name"
    (cd "$root" && "$espalier" train-atp --model models/demo --target-ratio "$target" --layers 1 3 --hidden-size 64 --steps 200 --batch 8 \
      --learning-rate 0.002 --warm-up 20 --temperature 20 --final-temperature 200 --evaluate-every 50 --threads 1 \
      "${options[@]}" --out "$work/atp/$name") >&2
    date >"$root/$work/atp/$name/done"
  done
}

for table in "${tables[@]}"; do
  model=models/demo
  case "$table" in crowded_*) model=models/crowded ;; esac
  case "$table" in
    curve) plotted_table curve "$items" --curve "${all[@]}" ;;
    policies)
      every_policy
      fitted 0.6 0.7 0.8
      specs+=(--policy m3:keep_ratio=1/4 --policy m3:keep_ratio=1/16 --policy "vtw:layer=$K")
      plotted_table policies "$items" --no-controls "${all[@]}" "${specs[@]}"
      ;;
    main)
      policies random:@ "fastv:@,layer=$K" "catp:@,k=$K"
      plotted_table main "$many" "${all[@]}" "${specs[@]}" \
        --policy atp:weights=models/demo/atp_25.safetensors --policy atp:weights=models/demo/atp_15.safetensors
      ;;
    bind) eval_table bind "$many" --suite bind --policy none ;;
    scenes)  # the unpruned model on easier scenes than those it is asked about elsewhere
      for difficulty in plain clutter distractor; do
        eval_table "scenes_$difficulty" "$items" --difficulty "$difficulty" --no-controls "${all[@]}" --policy none
      done
      ;;
    catp)
      specs=()
      for options in '' ,stage1_share=1 ,stage1_share=0 ,lambda1=0 ,lambda1=0.3 ,lambda1=1.5 ,lambda1=3 ,lambda2=0 ,lambda2=0.2 ,lambda2=1.5 \
        ,delta_norm=minmax ,delta_norm=minmax,lambda2=0.2 ,importance=attention,lambda2=0 ,importance=attention,delta_norm=minmax \
        ,ranking=per_image ,query_pool=text ,query_pool=last ,context_pool=image; do
        specs+=(--policy "catp:keep_ratio=2/9,k=$K$options")
      done
      for k in 2 4 5 6; do specs+=(--policy "catp:keep_ratio=2/9,k=$k"); done
      plotted_table catp "$items" --no-controls "${in_context[@]}" "${specs[@]}"
      ;;
    plus)  # catp+ beside catp and at as many tokens as divprune, on items that nothing was chosen by
      policies catp+:keep_ratio=14/64 divprune:keep_ratio=14/64 catp+:keep_ratio=7/64 divprune:keep_ratio=7/64 catp+:keep_ratio=4/64 \
        catp+:keep_ratio=4/64,stage1_share=1 divprune:keep_ratio=4/64
      for seed in 3 4 5; do
        eval_table "plus_seed$seed" "$items" --no-controls --seed "$seed" "${all[@]}" --policy "catp:keep_ratio=2/9,k=$K" "${specs[@]}"
      done
      ;;
    kept)  # which patches stay, by what they show
      drawn kept_items --suite define --items 40
      policies random:keep_ratio=2/9,seed=0 divprune:keep_ratio=2/9 "fastv:keep_ratio=2/9,layer=$K" "catp:keep_ratio=2/9,k=$K" \
        "catp:keep_ratio=2/9,k=$K,stage1_share=1" "catp:keep_ratio=2/9,k=$K,stage1_share=0" \
        "catp:keep_ratio=2/9,k=$K,importance=attention,lambda2=0" "catp+:keep_ratio=2/9,k=$K" \
        atp:weights=models/demo/atp_25.safetensors
      printed kept.md python3 bench/kept_patches.py --espalier "$espalier" --model "$model" --items "$work/kept_items" "${specs[@]}"
      ;;
    atp)  # a frozen decoder; then each decoder that was trained along, with its own unpruned row
      frozen=(shipped both_scores self_only no_redundancy no_spatial constant fixed fixed_both ranks)
      trained_atp "${frozen[@]}"
      specs=(--policy uniform:keep_ratio=1/4)
      for name in "${frozen[@]}"; do specs+=(--policy "atp:weights=$work/atp/$name/atp.safetensors"); done
      plotted_table atp "$items" --no-controls "${all[@]}" "${specs[@]}"
      for name in decoder fixed_decoder decoder_15; do
        trained_atp "$name"
        model=$work/atp/$name/model
        plotted_table "atp_$name" "$items" --no-controls "${all[@]}" --policy "atp:weights=$work/atp/$name/atp.safetensors"
      done
      ;;
    crowded_curve) plotted_table "$table" "$items" --curve "${crowds[@]}" ;;
    crowded_policies)
      every_policy
      plotted_table "$table" "$items" --no-controls "${crowds[@]}" "${specs[@]}" --policy "vtw:layer=$READ"
      ;;
    crowded_main)
      policies oracle:@ divprune:@ "fastv:@,layer=$K" "fastv:@,layer=$READ" "catp:@,k=$K" "catp:@,k=$READ" "catp+:@,k=$K"
      plotted_table "$table" "$many" "${crowds[@]}" "${specs[@]}"
      ;;
    *) usage ;;
  esac
done
