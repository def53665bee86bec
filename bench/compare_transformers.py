#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times the decoder of a checkpoint in Hugging Face Transformers (SDPA) and in Espalier, one after the other in each round, and prints
the ratios.

    build/release/bin/make_checkpoint --size 500m --out /tmp/500m
    python bench/compare_transformers.py --model /tmp/500m --espalier build/release/bin/espalier [--json FILE]

Needs Python packages torch and transformers (5.x). Same weights, dtype and threads on both sides, the same number of prompt tokens (four
shots). Vision tower and tokenizer are left out on both sides: Transformers gets embeddings, Espalier's time is `prefill` (unpruned) or
select + prefill (pruned). A round is one run of each; medians over rounds.
"""
import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time

import torch
from transformers import LlavaForConditionalGeneration


def run_espalier(a, new_tokens):
    """policy -> one JSON line of `espalier bench` (a warm-up and one counted run in one process)."""
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "bench.jsonl")
        command = [a.espalier, "bench", "--model", a.model, "--repeat", "1", "--new-tokens", str(new_tokens), "--json", out,
                   "--threads", str(a.threads), "--dtype", a.dtype]
        for policy in ["none"] + a.policy:
            command += ["--policy", policy]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return {row["policy"]: row for row in map(json.loads, open(out, encoding="utf-8"))}


@torch.inference_mode()
def run_transformers(model, tokens, new_tokens):
    """(prefill ms, decode ms a token), the logits of the last token only."""
    lm, head = model.model.language_model, model.lm_head
    embeds = torch.randn(1, tokens, lm.config.hidden_size, generator=torch.Generator().manual_seed(0)).to(model.dtype) * 0.6
    begin = time.perf_counter()
    out = lm(inputs_embeds=embeds, use_cache=True)
    token = head(out.last_hidden_state[:, -1:]).argmax(-1)
    prefill = time.perf_counter() - begin
    cache, begin = out.past_key_values, time.perf_counter()
    for _ in range(new_tokens - 1):
        out = lm(input_ids=token, past_key_values=cache, use_cache=True)
        token = head(out.last_hidden_state[:, -1:]).argmax(-1)
    return 1e3 * prefill, 1e3 * (time.perf_counter() - begin) / max(1, new_tokens - 1)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--model", required=True)
    ap.add_argument("--espalier", required=True)
    ap.add_argument("--policy", action="append", default=[], help="compared too (default: catp:keep_ratio=2/9)")
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--new-tokens", type=int, default=8)
    ap.add_argument("--threads", type=int, default=os.cpu_count())
    ap.add_argument("--dtype", default="bf16", choices=["bf16", "f32"])
    ap.add_argument("--json", help="file that receives one JSON line a side")
    a = ap.parse_args()
    a.policy = a.policy or ["catp:keep_ratio=2/9"]
    torch.set_num_threads(a.threads)
    dtype = {"bf16": torch.bfloat16, "f32": torch.float32}[a.dtype]
    model = LlavaForConditionalGeneration.from_pretrained(a.model, dtype=dtype, attn_implementation="sdpa").eval()

    theirs, ours = [], []
    for i in range(a.rounds):
        ours.append(run_espalier(a, a.new_tokens))
        tokens = ours[-1]["none"]["prompt_tokens"]
        if i == 0:
            run_transformers(model, tokens, 2)          # warm-up
        theirs.append(run_transformers(model, tokens, a.new_tokens))
        print(f"round {i + 1} of {a.rounds} done", flush=True)

    prefill, per_token = (statistics.median(x) for x in zip(*theirs))
    print(f"\n{tokens} tokens, {a.dtype}, {a.threads} threads, {a.rounds} rounds; torch {torch.__version__}")
    print(f"{'':42s} {'first token ms':>15s} {'ratio':>7s} {'ms a token':>12s} {'ratio':>7s}")
    print(f"{'Transformers, SDPA':42s} {prefill:15.1f} {1:7.2f} {per_token:12.2f} {1:7.2f}")
    rows = [{"side": "transformers", "prefill_ms": [t[0] for t in theirs], "decode_ms": [t[1] for t in theirs], "tokens": tokens,
             "dtype": a.dtype, "threads": a.threads, "torch": torch.__version__}]
    for policy in ["none"] + a.policy:
        first = [r[policy]["time_ms"]["first_token"]["median"] for r in ours]
        decode = [r[policy]["time_ms"]["decode_per_token"]["median"] for r in ours]
        rows.append({"side": "espalier", "policy": policy, "first_token_ms": first, "decode_ms": decode,
                     "select_ms": [r[policy]["time_ms"]["select"]["median"] for r in ours]})
        f, d = statistics.median(first), statistics.median(decode)
        print(f"{'Espalier, ' + policy:42s} {f:15.1f} {prefill / f:7.2f} {d:12.2f} {per_token / d:7.2f}")
    if a.json:
        with open(a.json, "w", encoding="utf-8") as out:
            out.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
