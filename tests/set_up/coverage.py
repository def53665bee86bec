#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""coverage.py BUILD [TOP]: what the tests reached of src and kernels, by folder.

Reads what GCC counted in the build folder. A line of a header counts once, reached where any unit reached it. Prints a table,
and writes FILE:LINE of every line that was not reached to BUILD/uncovered.txt. TOP: the top of the sources."""

import collections
import json
import pathlib
import subprocess
import sys

build = pathlib.Path(sys.argv[1]).resolve()
top = pathlib.Path(sys.argv[2]).resolve() if len(sys.argv) > 2 else pathlib.Path(__file__).resolve().parents[2]
reached = collections.defaultdict(dict)  # file -> line -> how often


def read_counts(unit):
    """One document of gcov's a unit; without counts of a run all of its lines are at zero."""
    said = subprocess.run(["gcov", "--json-format", "--stdout", str(unit)], capture_output=True, cwd=unit.parent)
    for document in said.stdout.splitlines():
        parsed = json.loads(document)
        for file in parsed["files"]:
            path = pathlib.Path(parsed["current_working_directory"], file["file"]).resolve()
            if not path.is_relative_to(top) or path.is_relative_to(build):
                continue
            name = str(path.relative_to(top))
            if name.startswith(("src/", "kernels/")):
                for line in file["lines"]:
                    number = line["line_number"]
                    reached[name][number] = max(reached[name].get(number, 0), line["count"])


for unit in sorted(build.rglob("*.gcno")):
    if "test" not in str(unit.relative_to(build)):
        read_counts(unit)
folders = collections.defaultdict(lambda: [0, 0])
for name, lines in reached.items():
    parts = name.split("/")
    for folder in {parts[0], "/".join(parts[:2]), "all"}:
        folders[folder][0] += len(lines)
        folders[folder][1] += sum(1 for count in lines.values() if count)
print(f"{'folder':24} {'lines':>7} {'reached':>8}")
for folder in sorted(folders, key=lambda name: (name == "all", name)):
    total, hit = folders[folder]
    print(f"{folder:24} {total:7} {100 * hit / total:7.1f}%")
missed = [f"{name}:{line}" for name in sorted(reached) for line, count in sorted(reached[name].items()) if not count]
(build / "uncovered.txt").write_text("".join(f"{place}\n" for place in missed))
print(f"{len(missed)} lines not reached: {build / 'uncovered.txt'}")
