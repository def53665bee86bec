#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times to the first token that a model of costs expects, against those that came. Standard library only.

    espalier calibrate --model DIR && espalier calibrate --model DIR --check 100 --seed 1 > checked.jsonl
    python bench/budget_times.py --svg times.svg --title "demo, 2 threads" checked.jsonl

Prints how many prompts are within 10 % and draws a point for each.
"""
import argparse
import json
import math
import sys

SIDE, LEFT, TOP = 420, 70, 40
WITHIN = 0.10


def read(name):
    with open(name, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def quantile(values, part):
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def ticks(low, high):
    """1, 2 and 5 of each power of ten in between."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [t for p in powers for t in (1 * 10 ** p, 2 * 10 ** p, 5 * 10 ** p) if low <= t <= high]


def svg(rows, title):
    times = [row[key] for row in rows for key in ("predicted_ms", "measured_ms")]
    low, high = 0.8 * min(times), 1.25 * max(times)

    def place(value):
        return SIDE * math.log(value / low) / math.log(high / low)

    def line(begin, end, colour, dash=""):
        (x0, y0), (x1, y1) = begin, end
        return (f'<line x1="{LEFT + place(x0):.1f}" y1="{TOP + SIDE - place(y0):.1f}" x2="{LEFT + place(x1):.1f}" '
                f'y2="{TOP + SIDE - place(y1):.1f}" stroke="{colour}"{dash}/>')

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + SIDE + 30}" height="{TOP + SIDE + 60}" '
             'font-family="sans-serif" font-size="12">', '<rect width="100%" height="100%" fill="white"/>',
             f'<text x="{LEFT}" y="22" font-size="14">{title}</text>']
    for tick in ticks(low, high):
        parts += [line((tick, low), (tick, high), "#e4e4e4"), line((low, tick), (high, tick), "#e4e4e4"),
                  f'<text x="{LEFT + place(tick):.1f}" y="{TOP + SIDE + 16}" text-anchor="middle">{tick:g}</text>',
                  f'<text x="{LEFT - 6}" y="{TOP + SIDE - place(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>']
    parts.append(line((low, low), (high, high), "#444"))
    for factor in (1 - WITHIN, 1 + WITHIN):   # measured = factor x expected
        begin, end = (low, low * factor), (high, high * factor)
        if factor < 1:
            begin = (low / factor, low)
        else:
            end = (high / factor, high)
        parts.append(line(begin, end, "#888", ' stroke-dasharray="4 4"'))
    for row in rows:
        colour = "#1f77b4" if row["policy"] == "none" else "#d95f02"
        parts.append(f'<circle cx="{LEFT + place(row["predicted_ms"]):.1f}" cy="{TOP + SIDE - place(row["measured_ms"]):.1f}" '
                     f'r="3" fill="{colour}" fill-opacity="0.7"><title>{row["policy"]}</title></circle>')
    parts += [f'<text x="{LEFT + SIDE / 2}" y="{TOP + SIDE + 40}" text-anchor="middle">expected, ms to the first token '
              '(blue: unpruned; dashed: 10 %)</text>',
              f'<text x="16" y="{TOP + SIDE / 2}" text-anchor="middle" '
              f'transform="rotate(-90 16 {TOP + SIDE / 2})">measured, ms</text>', '</svg>']
    return "\n".join(parts) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="lines of espalier calibrate --check")
    parser.add_argument("--svg", help="picture to write")
    parser.add_argument("--title", default="")
    options = parser.parse_args()
    rows = read(options.file)
    errors = [row["predicted_ms"] / row["measured_ms"] - 1 for row in rows]
    off = [abs(e) for e in errors]
    print(f"{sum(e <= WITHIN for e in off)} of {len(rows)} prompts within 10 %; median error {100 * quantile(off, .5):.1f} %, "
          f"95 % within {100 * quantile(off, .95):.1f} %, mean {100 * sum(errors) / len(errors):+.1f} %")
    for row, error in sorted(zip(rows, errors), key=lambda pair: -abs(pair[1]))[:5]:
        print(f'  {100 * error:+6.1f} %  {row["measured_ms"]:9.1f} ms  {row["prompt_tokens"]:5d} tokens  {row["policy"]}')
    if options.svg:
        with open(options.svg, "w", encoding="utf-8") as out:
            out.write(svg(rows, options.title))


if __name__ == "__main__":
    sys.exit(main())
