#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a policy keeps of drawn pictures: which share of the patches that show what is asked about, other objects and spots, the grey
distractor, and the rest.

    espalier synth --out ITEMS --suite define --items 100
    python bench/kept_patches.py --espalier build/release/bin/espalier --items ITEMS --policy catp:keep_ratio=2/9,k=3 [--policy SPEC]...

Standard library only. The patches are those of the answer key (ITEMS/index.jsonl, whose grid must be the model's); kept is what is
alive behind the policy's last point. One process an item and policy, so a few items a second. Prints a table in Markdown; the examples'
pictures and the query's, the last one, are counted apart.
"""
import argparse
import json
import math
import os
import subprocess
import sys

KINDS = ("asked", "others", "distractor", "rest")


def kinds_of(turn, patches):
    """The kind of each patch of a picture."""
    kinds = ["rest"] * patches
    for patch in turn.get("distractor", {}).get("patches", []):
        kinds[patch] = "distractor"
    shown = [p for thing in turn["objects"] for p in thing["patches"]] + turn.get("spot", {}).get("patches", [])
    for patch in shown:
        kinds[patch] = "others"
    for patch in turn.get("asked_patches", []):
        kinds[patch] = "asked"
    return kinds


def kept_of(a, item, policy):
    """(answer, indices in the prompt of the image tokens alive at the end, ascending; how many tokens each picture has)"""
    command = [a.espalier, "generate", "--chat", os.path.join(a.items, item["messages"]), "--policy", policy, "--json", "--greedy",
               "--threads", "1"]
    if a.model:
        command += ["--model", a.model]
    run = subprocess.run(command, check=False, capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"{' '.join(command)}\n{run.stderr}")
    result = json.loads(run.stdout)
    return result["text"].strip(), result["kept"], result["stats"]["image_tokens"]


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--espalier", required=True)
    ap.add_argument("--items", required=True, help="a folder that `espalier synth` wrote")
    ap.add_argument("--model", help="default: the bundled one")
    ap.add_argument("--policy", action="append", required=True, help="may be given several times")
    a = ap.parse_args()
    try:
        with open(os.path.join(a.items, "index.jsonl"), encoding="utf-8") as lines:
            items = [json.loads(line) for line in lines]
    except OSError as failure:
        sys.exit(f"kept_patches.py: --items: {failure}; a folder of `espalier synth` is expected")
    places = ("examples", "query")
    columns = [(place, kind) for place in places for kind in KINDS]
    tokens_of = [kept_of(a, item, "none") for item in items]
    for item, (_, _, counts) in zip(items, tokens_of):
        if any(count != math.prod(item["grid"]) for count in counts):
            sys.exit(f"kept_patches.py: {item['item']}: its key is for a grid of {item['grid']} patches, the model makes {counts} tokens of its "
                     "pictures: give `espalier synth` the model's --grid")
    print("Percent of the patches that are kept, by what they show\n")
    print("| policy | right | " + " | ".join(f"{place}: {kind}" for place, kind in columns) + " |")
    print("|---|--:|" + "--:|" * len(columns))
    for policy in a.policy:
        right, kept, there = 0, dict.fromkeys(columns, 0), dict.fromkeys(columns, 0)
        for item, (_, all_tokens, counts) in zip(items, tokens_of):
            answer, alive, _ = kept_of(a, item, policy)
            right += answer == item["answer"]
            alive, tokens = set(alive), iter(all_tokens)
            for i, turn in enumerate(item["turns"]):
                place = places[i + 1 == len(item["turns"])]
                for kind in kinds_of(turn, counts[i]):
                    there[place, kind] += 1
                    kept[place, kind] += next(tokens) in alive
        shares = [f"{100 * kept[c] / there[c]:.1f}" if there[c] else "" for c in columns]
        print(f"| `{policy}` | {100 * right / len(items):.1f} | " + " | ".join(shares) + " |", flush=True)


if __name__ == "__main__":
    main()
