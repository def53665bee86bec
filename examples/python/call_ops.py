#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Calls Espalier's operators from Python: attention with its log-sum-exp, the last token's attention to the image recomputed from it,
and three ways to thin out image tokens.

    python examples/python/call_ops.py PREFIX/lib/libespalier.so [cuda]

Needs the torch that the library was built with: `espalier --version` names it, and another one refuses to load. Shapes and meanings of
the operators are in include/espalier/ops.h; offsets (`*_begin`, `num_kept`) are int64 tensors on the CPU.
"""
import sys

import torch


def main(library, device="cpu"):
    torch.ops.load_library(library)
    ops = torch.ops.espalier
    torch.manual_seed(0)
    image, text, heads, kv_heads, width = 576, 24, 8, 2, 64
    n = image + text
    query = torch.randn(n, heads, width, device=device)
    key, value = (torch.randn(n, kv_heads, width, device=device) for _ in range(2))
    scale = width ** -0.5

    # One sequence, causal. Several lie one after another, with one more offset and one more length each.
    whole, first, length = torch.tensor([0, n]), torch.tensor([0]), torch.tensor([n])
    output, lse = ops.attention(query, key, value, whole, first, length, scale, True)
    print("attention", tuple(output.shape), "log-sum-exp", tuple(lse.shape))

    # What the last token thinks of every image token, without a matrix of n x n: the mean over heads.
    last, columns = torch.tensor([n - 1], device=device), torch.arange(image, device=device)
    rows, blocks = torch.tensor([0, 1]), torch.tensor([0, image])
    attention = ops.attention_probe(query, key, lse, last, rows, columns, blocks, scale, True, "mean", True)
    keep = torch.tensor([144])
    best = ops.topk_sorted(attention, blocks, keep)
    print("kept by attention", best[:8].tolist(), "...")

    # Tokens that together cover the image (CATP's first stage), and tokens that lie far apart (DivPrune).
    features = torch.randn(image, 256, device=device)
    cover = ops.facility_location_greedy(features, blocks, keep, "affine")
    apart = ops.max_min_select(features, blocks, keep, "cosine")
    print("kept by coverage", cover[:8].tolist(), "... by distance", apart[:8].tolist(), "...")

    # The others join the kept one that they resemble most. A group begins with its own kept token.
    dropped = torch.ones(image, dtype=torch.bool, device=device)
    dropped[cover] = False
    dropped = dropped.nonzero().squeeze(1)
    likeness = ops.pairwise_cosine(ops.gather_rows(features, dropped), ops.gather_rows(features, cover))
    owner = torch.cat([torch.arange(144, device=device), likeness.argmax(1)])
    order = owner.argsort(stable=True)
    begin = torch.searchsorted(owner[order].contiguous(), torch.arange(145, device=device))
    merged = ops.merge_tokens(features, torch.cat([cover, dropped])[order], begin)
    print("merged", tuple(merged.shape))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:3])
