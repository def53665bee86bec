#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Turns benchmark output into one short table and one page of plots. Standard library only.

    python bench/report.py --out DIR FILE.jsonl... [--machine machine.json] [--parts ended.txt]
    python bench/report.py --folder DIR [--parts ended.txt]      # the .jsonl files in DIR, as ./dev gpu leaves them
    python bench/report.py --out DIR --name NAME FILE.jsonl...   # as ./dev record keeps them

Takes lines of the op benchmarks (--json), of `espalier bench --json` and of compare_transformers.py --json, in any order; writes
table.txt and plots.html and prints the table. The table holds the project's targets against what was measured. With --name: NAME.txt,
whose table has every row, NAME.html, and where there are several numbers of shots NAME.svg, the cost by shots as a picture of its own.
"""
import argparse
import glob
import html
import json
import math
import os
import sys

GPU_COPY_TARGET = 0.8   # share of copy bandwidth at 11,520 tokens and batch 8


def read_lines(files):
    """(op rows, rows of `espalier bench`, rows of compare_transformers.py)"""
    ops, runs, sides = [], [], []
    for name in files:
        with open(name, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    print(f"{name}:{number}: no JSON, left out", file=sys.stderr)   # the last line of a part that was stopped
                    continue
                if "op" in row:
                    ops.append(row)
                elif "side" in row:
                    sides.append(row if "first_token_ms" not in row else {**row, "select_prefill_ms": row["first_token_ms"]})
                elif row.get("shots") is not None:   # a prompt of one's own has no place on the axis of shots
                    runs.append(row if "schema" in row else of_old_form(row))
    return ops, runs, sides


def of_old_form(row):
    """A line of before the form had a number, when "first_token" was select and prefill alone: as it is written now."""
    times = dict(row["time_ms"])
    times["select_prefill"] = times["first_token"]
    times["first_token"] = {k: times["encode"][k] + times["select_prefill"][k] for k in times["encode"]}
    flops = {"prefill": row["prefill_flops"], "prefill_unpruned": row["prefill_flops_unpruned"]}
    return {**row, "time_ms": times, "stats": {"flops": flops, **{k: row[k] for k in ("prompt_tokens", "kv_bytes", "peak_memory_bytes")}}}


def median(row, stage):
    return row["time_ms"][stage]["median"]


def share(row):
    """Share of its ceiling that an op reached, and what the ceiling is."""
    seconds = row["median_us"] * 1e-6
    if "bytes" in row:
        return row["bytes"] / seconds / (row["ceiling_gb_per_s"] * 1e9), row["ceiling"]
    if "flops" in row:
        return row["flops"] / seconds / (row["matrix_gflop_per_s"] * 1e9), "matrix rate"
    return None, ""


def middle(values):
    values = sorted(values)
    return values[len(values) // 2]


# ---- the table ----

def beside_transformers(row, theirs):
    """The targets beside Transformers: on a GPU for the pruned run, on the CPU for the unpruned one."""
    first, later = middle(row["select_prefill_ms"]), middle(row["decode_ms"])
    first_theirs, later_theirs = middle(theirs["prefill_ms"]), middle(theirs["decode_ms"])
    sooner, shorter = first_theirs / first, 1 - (first + 7 * later) / (first_theirs + 7 * later_theirs)
    is_gpu, is_pruned, policy = theirs.get("device", "cpu") == "cuda", row["policy"] != "none", row["policy"]
    least = 2.5 if is_gpu and is_pruned else 1.6 if not is_gpu and not is_pruned else 0
    least_decode = 3.5 if not is_gpu and not is_pruned else 0
    return [
        (f"select + prefill, {policy}", f"{least} x sooner" if least else "", f"{sooner:.2f} x", sooner >= least if least else None),
        (f"later tokens, {policy}", f"{least_decode} x" if least_decode else "", f"{later_theirs / later:.2f} x",
         later_theirs / later >= least_decode if least_decode else None),
        (f"answer of 8 tokens, {policy}", "40 % shorter" if is_gpu and is_pruned else "", f"{100 * shorter:.0f} % shorter",
         shorter >= 0.4 if is_gpu and is_pruned else None),
        (f"peak memory, {policy}", "", f"{row['peak_memory_bytes'] * 1e-9:.1f}, Transformers {theirs['peak_memory_bytes'] * 1e-9:.1f} GB", None),
    ]


def answer_ms(row, tokens):
    """From the decoder's input to the last token of an answer."""
    return median(row, "select_prefill") + (tokens - 1) * median(row, "decode_per_token")


def beside_unpruned(row, none):
    """A GPU's targets for the pruned run against our own unpruned one."""
    sooner = median(none, "select_prefill") / median(row, "select_prefill")
    shorter = {tokens: 1 - answer_ms(row, tokens) / answer_ms(none, tokens) for tokens in (8, 64)}
    return [(f"select + prefill, {row['policy']} against none", "2.5 x sooner", f"{sooner:.2f} x", sooner >= 2.5),
            (f"answer of 8 tokens, {row['policy']} against none", "40 % shorter", f"{100 * shorter[8]:.0f} % shorter", shorter[8] >= 0.4),
            (f"answer of 64 tokens, {row['policy']} against none", "", f"{100 * shorter[64]:.0f} % shorter", None)]


def target_lines(ops, runs, sides):
    """(what, target, measured, met or None) for the project's targets that these files can speak of."""
    lines = []
    cuda = [r for r in ops if r["device"] == "cuda"]
    for op, begins in (("attention_growth", "8 x 11520 tokens"), ("attention_probe", "1 row, 8 x 11520 tokens"),
                       ("compact_kv", "8 x 11520 tokens")):
        for row in (r for r in cuda if r["op"] == op and r["shape"].startswith(begins) and r["dtype"] == "BFloat16"):
            reached, _ = share(row)
            lines.append((f"{op} {row['shape']}", "80 % of copying", f"{100 * reached:.0f} %", reached >= GPU_COPY_TARGET))
    for row in cuda:
        if row["op"] == "facility_location_greedy" and row["shape"].startswith("5 x 352 of 576") and row["dtype"] == "BFloat16":
            faster = row["beside_us"]["loop"] / row["median_us"]
            lines.append((f"facility_location_greedy {row['shape']}", "under 1 ms, 30 x the loop",
                          f"{row['median_us'] * 1e-3:.2f} ms, {faster:.0f} x", row["median_us"] < 1000 and faster >= 30))
    four = {r["policy"]: r for r in runs if r["shots"] == 4 and r.get("decode_graphs", True)}
    catp = next((r for p, r in four.items() if p.startswith("catp")), None)
    if catp and "none" in four:
        is_gpu, none = catp.get("device", "cpu") == "cuda", four["none"]
        most = 0.02 if is_gpu else 0.01
        part = median(catp, "select") / median(none, "prefill")
        lines.append(("CATP's selection at four shots", f"{100 * most:.0f} % of unpruned prefill", f"{100 * part:.2f} %", part < most))
        if not is_gpu:
            yielded = (median(none, "select_prefill") / median(catp, "select_prefill")
                       / (none["stats"]["flops"]["prefill"] / catp["stats"]["flops"]["prefill"]))
            lines.append((f"{catp['policy']}, select + prefill against FLOPs", "0.92 of the ratio", f"{yielded:.2f}", yielded >= 0.92))
        else:
            lines += beside_unpruned(catp, none)
    theirs = next((r for r in sides if r["side"] == "transformers"), None)
    for row in (r for r in sides if r["side"] == "espalier" and theirs):
        lines += beside_transformers(row, theirs)
    return lines


def op_line(row):
    reached, ceiling = share(row)
    part = f"{100 * reached:3.0f} % of {ceiling}" if reached is not None else ""
    beside = ", ".join(f"{name} {other / row['median_us']:.1f} x" for name, other in row["beside_us"].items())
    return (f"{row['op']:24s} {row['dtype']:8s} {row['shape']:46s} {row['median_us']:11.1f} us ({row['fastest_us']:.1f} .. {row['slowest_us']:.1f})  "
            f"{part:20s} {beside:20s} [{row['kernel']}, {row['threads']} threads]")


def ceilings(ops):
    """The ceilings that rows were counted against, as each program measured them."""
    known = {}
    for row in ops:
        if "bytes" in row:
            known.setdefault(f"{row['ceiling']}, GB/s", []).append(row["ceiling_gb_per_s"])
        if "flops" in row:
            known.setdefault(f"matrix rate of {row['dtype']}, GFLOP/s", []).append(row["matrix_gflop_per_s"])
    return [f"{name}: {min(values):.0f} .. {max(values):.0f}" for name, values in sorted(known.items())]


def table(machine, parts, ops, runs, sides, has_every_row=False):
    text = []
    if machine:
        text.append(", ".join(str(machine[k]) for k in ("device", "date", "commit") if k in machine))
    text += parts + ceilings(ops)
    for what, target, measured, is_met in target_lines(ops, runs, sides):
        mark = "" if is_met is None else "met" if is_met else "MISSED"
        text.append(f"{what:66s} {measured:>18s}   {target:26s} {mark}".rstrip())
    if has_every_row:
        text += [op_line(row) for row in ops]
    best = {}
    for row in [] if has_every_row else ops:
        reached, ceiling = share(row)
        if reached is not None and reached > best.get(row["op"], (0,))[0]:
            best[row["op"]] = (reached, ceiling, row)
    for op, (reached, ceiling, row) in sorted(best.items()):
        text.append(f"{op + ', ' + row['shape']:66s} {row['median_us']:15.1f} us   {100 * reached:.0f} % of {ceiling}, [{row['kernel']}]")
    for row in runs:
        how = "" if row.get("decode_graphs", True) else ", steps launched one by one"
        later = median(row, "decode_per_token")
        text.append(f"{str(row['shots']) + ' shots, ' + row['policy'] + how:66s} {median(row, 'first_token'):15.1f} ms   "
                    f"{later:.2f} ms a later token ({1000 / later if later else 0:.0f}/s), 8 tokens {answer_ms(row, 8):.0f} ms, 64 tokens "
                    f"{answer_ms(row, 64):.0f} ms behind encode, select + prefill {median(row, 'select_prefill'):.1f} ms, encode {median(row, 'encode'):.0f} ms, "
                    f"{row['stats']['peak_memory_bytes'] * 1e-9:.1f} GB")
    return "\n".join(text) + "\n"


# ---- the page ----

# The look of the inspect page and of src/report/plot.cpp.
LIGHT = ("--paper:#fbfaf7;--card:#fff;--ink:#24261f;--soft:#6d7066;--line:#e3e1d8;--line0:#3f7d4e;--line1:#3a6ea5;--line2:#b4532a;"
         "--line3:#7a5aa6;--line4:#a8842c;--line5:#2f8f8b")
DARK = ("--paper:#191b17;--card:#22251f;--ink:#ecebe2;--soft:#a3a697;--line:#363a31;--line0:#74b684;--line1:#7eaede;--line2:#e08a5f;"
        "--line3:#b39bdc;--line4:#d9b862;--line5:#6cc7c3")
COLOURS = f":root {{ color-scheme: light dark; {LIGHT} }} @media (prefers-color-scheme: dark) {{ :root {{ {DARK} }} }}"
MARKS = "text { font: 13px system-ui, sans-serif; fill: var(--ink); } .quiet { fill: var(--soft); } .axis { stroke: var(--line); }"
STYLE = f"""{COLOURS}
body {{ font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 24px; font-weight: 650; }} h2 {{ font-size: 17px; font-weight: 650; margin: 2.2rem 0 .3rem; }} p {{ color: var(--soft); margin: 0 0 .6rem; }}
table {{ border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; width: 100%; }}
th, td {{ text-align: right; padding: 4px 8px; border-bottom: 1px solid var(--line); }} th {{ color: var(--soft); font-weight: 500; }}
th:first-child, td:first-child {{ text-align: left; }} .missed {{ color: var(--line2); font-weight: 600; }}
.scroll {{ overflow-x: auto; }} .plots {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: 8px; }}
svg {{ width: 100%; height: auto; }} {MARKS}
"""
LINES_PER_PLOT = 6   # more cannot be followed: they go on in a plot of their own


def round_ticks(end, count=5):
    """0 and multiples of 1, 2 or 5 times a power of ten up to `end`, about `count` of them."""
    rough = end / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    return [i * step for i in range(int(end / step * (1 + 1e-9)) + 1)]


def named(value):
    return f"{value:,.10g}"


def groups(series):
    """The series in parts that one plot can show; the first, which the others are compared with, in each of them."""
    names = list(series)
    first, rest = names[:1], names[1:]
    step = LINES_PER_PLOT - 1
    return [{n: series[n] for n in first + rest[i:i + step]} for i in range(0, max(1, len(rest)), step)]


def bars(rows, has_ceiling=True, width=1000, left=430):
    """rows: (label, part of the full width from 0 to 1, text behind the bar)"""
    step, out = 20, []
    for i, (label, part, text) in enumerate(rows):
        y, room = 4 + i * step, width - left - 170
        out.append(f'<text x="{left - 8}" y="{y + 12}" text-anchor="end">{html.escape(label)}</text>'
                   f'<rect x="{left}" y="{y + 2}" width="{max(1, room * min(part, 1.2) / 1.2):.1f}" height="13" style="fill:var(--line1)"/>'
                   f'<text class="quiet" x="{left + room * min(part, 1.2) / 1.2 + 6:.1f}" y="{y + 12}">{html.escape(text)}</text>')
    if has_ceiling:
        x = left + (width - left - 170) / 1.2
        out.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{8 + len(rows) * step}"/>')
    return f'<svg viewBox="0 0 {width} {10 + len(rows) * step}" role="img">{"".join(out)}</svg>'


def lines(series, title, unit, width=640, height=300):
    """series: name -> [(x, y)]; both axes from 0. The legend stands below."""
    left, right, top = 62, 16, 44
    bottom = 46 + 18 * len(series)
    points = [p for line in series.values() for p in line]
    most_x, most_y = max(p[0] for p in points) or 1, max(p[1] for p in points) or 1
    ticks = round_ticks(most_y)
    if ticks[-1] < most_y:
        ticks.append(ticks[-1] + ticks[1])
    height += bottom

    def place(x, y):
        return left + (width - left - right) * x / most_x, height - bottom - (height - top - bottom) * y / ticks[-1]

    out = [f'<text x="{left}" y="18" style="font-weight:600">{html.escape(title)}</text><text class="quiet" x="{left}" y="35">{html.escape(unit)}</text>']
    for value in ticks:
        _, y = place(0, value)
        out.append(f'<line class="axis" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>'
                   f'<text class="quiet" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{named(value)}</text>')
    for x in sorted({p[0] for p in points}):
        out.append(f'<text class="quiet" x="{place(x, 0)[0]:.1f}" y="{height - bottom + 18}" text-anchor="middle">{x}</text>')
    out.append(f'<text class="quiet" x="{(left + width) / 2:.0f}" y="{height - bottom + 36}" text-anchor="middle">shots</text>')
    for i, (name, line) in enumerate(series.items()):
        style = f"var(--line{i % LINES_PER_PLOT})"
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*p) for p in line))
        out.append(f'<polyline points="{path}" fill="none" stroke-width="2" style="stroke:{style}"/>')
        out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" style="fill:{style}"/>' for x, y in (place(*p) for p in line)]
        y = height - bottom + 56 + 18 * i
        out.append(f'<circle cx="{left + 4}" cy="{y - 4.5}" r="3.2" style="fill:{style}"/><text x="{left + 14}" y="{y}">{html.escape(name)}</text>')
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(title)}">{"".join(out)}</svg>', height


def by_shots(runs, value):
    series = {}
    for row in sorted(runs, key=lambda r: r["shots"]):
        series.setdefault(row["policy"], []).append((row["shots"], value(row)))
    return series


COSTS = (("Time to the first token", "encode + select + prefill, ms", lambda r: median(r, "first_token")),
         ("A later token", "ms", lambda r: median(r, "decode_per_token")),
         ("KV cache after prefill", "MiB", lambda r: r["stats"]["kv_bytes"] / 2 ** 20))


def plots(runs):
    """Cost by shots, as (SVG, height)."""
    return [lines(group, title, unit) for title, unit, value in COSTS for group in groups(by_shots(runs, value))]


def picture(runs):
    """The same below each other, to show by itself."""
    out, y = [], 0
    for panel, height in plots([r for r in runs if r.get("decode_graphs", True)]):
        out.append(panel.replace("<svg ", f'<svg x="0" y="{y}" width="640" height="{height}" ', 1))
        y += height
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 {y}"><style>{COLOURS} {MARKS}</style>'
            f'<rect width="100%" height="100%" style="fill:var(--paper)"/>{"".join(out)}</svg>\n')


def html_table(head, rows):
    cells = lambda kind, row: "".join(f"<{kind}>{c}</{kind}>" for c in row)
    return (f'<div class="scroll"><table><tr>{cells("th", map(html.escape, head))}</tr>'
            + "".join(f"<tr>{cells('td', row)}</tr>" for row in rows) + "</table></div>")


def op_row(row):
    reached, ceiling = share(row)
    beside = ", ".join(f"{name} {other / row['median_us']:.1f} x" for name, other in row["beside_us"].items())
    return [html.escape(str(c)) for c in (
        f"{row['op']}, {row['shape']}", row["dtype"], f"{row['median_us']:,.1f}", f"{row['fastest_us']:,.1f} .. {row['slowest_us']:,.1f}",
        f"{100 * reached:.0f} % of {ceiling}" if reached is not None else "", beside, f"{row['kernel']}, {row['threads']} threads")]


def run_row(row):
    return [html.escape(str(c)) for c in (
        row["policy"] + ("" if row.get("decode_graphs", True) else ", steps launched one by one"), row["shots"],
        f"{median(row, 'encode'):.0f}", f"{median(row, 'select_prefill'):.1f}", f"{median(row, 'first_token'):.1f}",
        f"{median(row, 'decode_per_token'):.2f}",
        f"{answer_ms(row, 8):.0f}", f"{answer_ms(row, 64):.0f}", f"{row['stats']['kv_bytes'] / 2 ** 20:.1f}", f"{row['stats']['peak_memory_bytes'] / 2 ** 30:.2f}")]


def tables(machine, parts, ops, runs, sides):
    head = ([", ".join(str(machine[k]) for k in ("device", "date", "commit") if k in machine)] if machine else []) + parts + ceilings(ops)
    body = [f"<p>{'<br>'.join(map(html.escape, head))}</p>"] if head else []
    targets = target_lines(ops, runs, sides)
    if targets:
        marks = {None: "", True: "met", False: '<span class="missed">missed</span>'}
        body.append("<h2>Targets</h2>" + html_table(("", "measured", "target", ""), [
            (html.escape(what), html.escape(measured), html.escape(target), marks[is_met]) for what, target, measured, is_met in targets]))
    if runs:
        body.append("<h2>Runs</h2><p>Medians.</p>" + html_table(
            ("policy", "shots", "encode, ms", "select + prefill, ms", "first token, ms", "a later token, ms", "8 tokens, ms", "64 tokens, ms", "KV, MiB", "peak memory, GiB"),
            map(run_row, runs)))
    if ops:
        body.append("<h2>Operators</h2>" + html_table(("op", "dtype", "median, us", "fastest .. slowest", "of its ceiling", "beside", "kernel"),
                                                      map(op_row, ops)))
    return body


def page(machine, parts, ops, runs, sides):
    body = [f"<h1>Espalier: measured{html.escape(' on ' + machine['device'] if machine else '')}</h1>"] + tables(machine, parts, ops, runs, sides)
    shares = [(r, *share(r)) for r in ops if r["dtype"] == "BFloat16"]
    for ceiling in ("copying", "reading", "matrix rate"):
        rows = [(f"{r['op']}, {r['shape']}", part, f"{100 * part:.0f} %, {r['median_us']:.0f} us") for r, part, of in shares if of == ceiling]
        if rows:
            body.append(f"<h2>Share of the measured {ceiling}</h2><p>bfloat16; the line is the ceiling.</p>{bars(rows)}")
    faster = []
    for row in ops:
        for name, other in row["beside_us"].items():
            faster.append((f"{row['op']}, {row['dtype']}, {row['shape']}", other / row["median_us"], name))
    if faster:
        most = max(math.log1p(ratio) for _, ratio, _ in faster)
        body.append("<h2>How much faster than the same result by other means</h2><p>The formula in torch operators, the library's own op, or "
                    "the loop of published Python code, in the same process. Lengths are logarithmic.</p>")
        body.append(bars([(label, math.log1p(ratio) / most, f"{ratio:.1f} x {name}") for label, ratio, name in faster], has_ceiling=False))
    runs = [r for r in runs if r.get("decode_graphs", True)]
    if len({r["shots"] for r in runs}) > 1:
        body.append(f'<h2>Cost by number of shots</h2><div class="plots">{"".join(svg for svg, _ in plots(runs))}</div>')
    return f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Espalier, measured</title><style>{STYLE}</style>{"".join(body)}</html>\n'


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("files", nargs="*", metavar="FILE.jsonl")
    ap.add_argument("--folder", help="take the .jsonl files and machine.json of this folder, and write there")
    ap.add_argument("--out", help="folder to write to")
    ap.add_argument("--name", help="write NAME.txt, NAME.html and NAME.svg, with every row in the table")
    ap.add_argument("--machine", help="JSON with device, date and commit")
    ap.add_argument("--parts", help="text, printed first: how each part ended")
    a = ap.parse_args()
    out = a.out or a.folder
    if not out:
        ap.error("--out or --folder is needed")
    files = a.files + (sorted(glob.glob(os.path.join(glob.escape(a.folder), "*.jsonl"))) if a.folder else [])
    known = a.machine or (os.path.join(a.folder, "machine.json") if a.folder else "")
    machine = json.load(open(known, encoding="utf-8")) if os.path.exists(known) else {}
    parts = open(a.parts, encoding="utf-8").read().splitlines() if a.parts else []
    ops, runs, sides = read_lines(files)
    text = table(machine, parts, ops, runs, sides, has_every_row=bool(a.name))
    os.makedirs(out, exist_ok=True)
    files = [(f"{a.name}.txt" if a.name else "table.txt", text), (f"{a.name}.html" if a.name else "plots.html", page(machine, parts, ops, runs, sides))]
    if a.name and len({r["shots"] for r in runs}) > 1:
        files.append((f"{a.name}.svg", picture(runs)))
    for name, content in files:
        with open(os.path.join(out, name), "w", encoding="utf-8") as file:
            file.write(content)
    print(text, end="")


if __name__ == "__main__":
    main()
