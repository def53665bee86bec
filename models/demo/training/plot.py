#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws training.svg from the trainer's logs: for each stage, the accuracy of its topics over the steps.

    python3 models/demo/training/plot.py [FOLDER]     the folder of the logs, and of the drawing; without it this one
"""
import json
import pathlib
import sys

FOLDER = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).parent
STAGES = ["copying", "short-turns", "text-binding", "tower", "one-token", "few-tokens", "late-reading", "all-tokens"]
# Topics of a stage that click together share a line: the mean of those whose name begins so.
GROUPS = [("defined", "#c0392b"), ("resolve", "#8e44ad"), ("bind", "#2471a3"), ("count", "#b9770e"),
          ("position", "#117a65"), ("other", "#7f8c8d")]
WIDTH, HEIGHT, LEFT, TOP, GAP, COLUMNS = 230, 120, 40, 44, 34, 4


def group_of(topic):
    return next((name for name, _ in GROUPS if topic.startswith(name)), "other")


def curves(stage):
    """group -> [(step, mean accuracy)]"""
    result = {}
    for line in (FOLDER / f"{stage}.log.jsonl").read_text().splitlines():
        entry = json.loads(line)
        means = {}
        for topic, score in entry.get("evaluation", {}).items():
            means.setdefault(group_of(topic), []).append(score["accuracy"])
        for group, values in means.items():
            result.setdefault(group, []).append((entry["step"], sum(values) / len(values)))
    return result


def panel(stage, x, y):
    lines = curves(stage)
    last = max(step for points in lines.values() for step, _ in points)
    out = [f'<text x="{x}" y="{y - 6}" font-weight="bold">{stage}</text>',
           f'<text x="{x + WIDTH}" y="{y - 6}" text-anchor="end">{last} steps</text>',
           f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#aaa"/>']
    for level in (0, 0.5, 1):
        out.append(f'<text x="{x - 4}" y="{y + HEIGHT * (1 - level) + 4}" text-anchor="end">{level}</text>')
    for group, colour in reversed(GROUPS):
        points = " ".join(f"{x + WIDTH * step / last:.1f},{y + HEIGHT * (1 - a):.1f}"
                          for step, a in lines.get(group, []))
        if points:
            out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
    return out


def main():
    rows = (len(STAGES) + COLUMNS - 1) // COLUMNS
    width, height = LEFT + COLUMNS * (WIDTH + GAP), TOP + rows * (HEIGHT + GAP)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
           'font-family="sans-serif" font-size="11">', f'<rect width="{width}" height="{height}" fill="white"/>']
    for i, (group, colour) in enumerate(GROUPS):
        out.append(f'<text x="{LEFT + 100 * i}" y="16" fill="{colour}">{group}</text>')
    for i, stage in enumerate(STAGES):
        out += panel(stage, LEFT + i % COLUMNS * (WIDTH + GAP), TOP + i // COLUMNS * (HEIGHT + GAP))
    (FOLDER / "training.svg").write_text("\n".join(out + ["</svg>"]) + "\n")


if __name__ == "__main__":
    main()
