#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""transcripts.py ESPALIER DOCUMENT...: runs what the documents show in blocks marked `console` against a server with the bundled model,
and compares what it prints with what stands there; `…` stands for anything within a line, and a line of it alone for any lines. Ends with 77 (skipped) where there is no curl."""
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

from served import served, skip

if not shutil.which("curl"):
    skip("there is no curl")
espalier, *documents = sys.argv[1:]


def goes_on(command):
    """Whether its last line ends with a backslash or within quotes."""
    try:
        shlex.split(command)
    except ValueError:
        return True
    return command.endswith("\\")


def commands(document):
    """(line number, command, expected output) of each `$ curl` of the document."""
    lines = pathlib.Path(document).read_text().split("\n")
    inside, found = False, []
    for number, line in enumerate(lines, 1):
        if line.startswith("```"):
            inside = line == "```console"
        elif not inside:
            continue
        elif line.startswith("$ "):
            found.append([number, line[2:], []])
        elif found and goes_on(found[-1][1]):
            found[-1][1] += "\n" + line
        elif found:
            found[-1][2].append(line)
    return [(number, command, output) for number, command, output in found if command.startswith("curl")]


def pattern_of(lines):
    parts = []
    for line in lines:
        if line == "…":
            parts.append(r"(?:.*\n)*?")
        else:
            parts.append(".*?".join(re.escape(piece) for piece in line.split("…")) + r"\n")
    return re.compile("".join(parts))


folder = pathlib.Path(__file__).resolve().parent.parent.parent
failures = count = 0
with served(espalier, "--allow-images", str(folder / "examples/demo")) as (_, port):
    for document in documents:
        for number, command, expected in commands(document):
            count += 1
            ran = subprocess.run(
                ["bash", "-c", command.replace("127.0.0.1:8080", f"127.0.0.1:{port}").replace("curl ", "curl -sS ", 1)],
                capture_output=True, text=True, cwd=folder,
            )
            said = ran.stdout.rstrip("\n") + "\n"
            while expected and not expected[-1]:
                expected = expected[:-1]
            if ran.returncode != 0 or not pattern_of(expected).fullmatch(said.replace("\r", "")):
                failures += 1
                print(f"{document}:{number}: {command}\n  printed (status {ran.returncode}):\n{said}{ran.stderr}", end="")
print(f"{count} commands, {failures} of them print something else")
sys.exit(1 if failures or not count else 0)
