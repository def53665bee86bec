#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times the decoder of a checkpoint in Hugging Face Transformers (SDPA) and in Espalier, one after the other in each round, and prints
the ratios.

    build/release/bin/make_checkpoint --size 500m --out /tmp/500m
    python bench/compare_transformers.py --model /tmp/500m --espalier build/release/bin/espalier [--device cuda] [--json FILE]

Needs Python packages torch and transformers (5.x). Same weights, dtype and threads on both sides, the same number of prompt tokens (four
shots). Vision tower and tokenizer are left out on both sides: Transformers gets embeddings, Espalier's time is `prefill` (unpruned) or
select + prefill (pruned). A round is one run of each; medians over rounds. The latency of an answer of k tokens is the time to the
first token and k - 1 later ones; peak memory on CUDA is that of each side's allocator, weights included (of Transformers without its
vision tower's activations, which do not run).
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
        command = [a.espalier, "bench", "--model", a.model, "--repeat", "1", "--max-repeat", "1", "--new-tokens", str(new_tokens), "--json", out,
                   "--threads", str(a.threads), "--dtype", a.dtype, "--device", a.device]
        for policy in ["none"] + a.policy:
            command += ["--policy", policy]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return {row["policy"]: row for row in map(json.loads, open(out, encoding="utf-8"))}


def clock(device):
    """Seconds, after all that the device was asked to do."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


@torch.inference_mode()
def run_transformers(model, tokens, new_tokens, device):
    """(prefill ms, decode ms a token, peak bytes of the device's allocator), the logits of the last token only."""
    lm, head = model.model.language_model, model.lm_head
    embeds = torch.randn(1, tokens, lm.config.hidden_size, generator=torch.Generator().manual_seed(0)).to(device, model.dtype) * 0.6
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    begin = clock(device)
    out = lm(inputs_embeds=embeds, use_cache=True)
    token = head(out.last_hidden_state[:, -1:]).argmax(-1)
    prefill = clock(device) - begin
    cache, begin = out.past_key_values, clock(device)
    for _ in range(new_tokens - 1):
        out = lm(input_ids=token, past_key_values=cache, use_cache=True)
        token = head(out.last_hidden_state[:, -1:]).argmax(-1)
    per_token = (clock(device) - begin) / max(1, new_tokens - 1)
    return 1e3 * prefill, 1e3 * per_token, torch.cuda.max_memory_allocated() if device == "cuda" else 0


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--model", required=True)
    ap.add_argument("--espalier", required=True)
    ap.add_argument("--policy", action="append", default=[], help="compared too (default: catp:keep_ratio=2/9)")
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--new-tokens", type=int, default=8)
    ap.add_argument("--threads", type=int, default=os.cpu_count())
    ap.add_argument("--dtype", default="bf16", choices=["bf16", "f32"])
    ap.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    ap.add_argument("--json", help="file that receives one JSON line a side")
    a = ap.parse_args()
    a.policy = a.policy or ["catp:keep_ratio=2/9"]
    torch.set_num_threads(a.threads)
    dtype = {"bf16": torch.bfloat16, "f32": torch.float32}[a.dtype]
    model = LlavaForConditionalGeneration.from_pretrained(a.model, dtype=dtype, attn_implementation="sdpa").eval().to(a.device)

    theirs, ours = [], []
    for i in range(a.rounds):
        ours.append(run_espalier(a, a.new_tokens))
        tokens = ours[-1]["none"]["stats"]["prompt_tokens"]
        if i == 0:
            run_transformers(model, tokens, 2, a.device)          # warm-up
        theirs.append(run_transformers(model, tokens, a.new_tokens, a.device))
        print(f"round {i + 1} of {a.rounds} done", flush=True)

    prefill, per_token, memory = (statistics.median(x) for x in zip(*theirs))
    print(f"\n{tokens} tokens, {a.dtype}, {a.device}, {a.threads} threads, {a.rounds} rounds; torch {torch.__version__}")
    print(f"{'':36s} {'prefill ms':>15s} {'ratio':>6s} {'ms a token':>11s} {'ratio':>6s} {'8 tokens ms':>12s} {'64 tokens ms':>13s} "
          f"{'peak GB':>8s}")

    def line(name, first, later, peak):
        print(f"{name:36s} {first:15.1f} {prefill / first:6.2f} {later:11.2f} {per_token / later:6.2f} {first + 7 * later:12.1f} "
              f"{first + 63 * later:13.1f} {peak * 1e-9:8.1f}")

    line("Transformers, SDPA", prefill, per_token, memory)
    rows = [{"side": "transformers", "prefill_ms": [t[0] for t in theirs], "decode_ms": [t[1] for t in theirs], "tokens": tokens,
             "dtype": a.dtype, "device": a.device, "threads": a.threads, "peak_memory_bytes": memory, "torch": torch.__version__}]
    for policy in ["none"] + a.policy:
        first = [r[policy]["time_ms"]["select_prefill"]["median"] for r in ours]
        decode = [r[policy]["time_ms"]["decode_per_token"]["median"] for r in ours]
        peak = max(r[policy]["stats"]["peak_memory_bytes"] for r in ours)
        rows.append({"side": "espalier", "policy": policy, "select_prefill_ms": first, "decode_ms": decode,
                     "select_ms": [r[policy]["time_ms"]["select"]["median"] for r in ours], "peak_memory_bytes": peak})
        line(f"Espalier, {policy}", statistics.median(first), statistics.median(decode), peak)
    if a.json:
        with open(a.json, "w", encoding="utf-8") as out:
            out.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
