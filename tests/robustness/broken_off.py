#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Breaks runs of espalier off: by kill -9 at random moments, and by a disk that takes no more.

    broken_off.py BINARY [--kills N] [--limits N] [--seed S] [--only NAME]...

Killed trainers, started again, end with the bits of a run that nobody disturbed. Of every other command each output is,
whenever it is looked at, the old file or the new one, whole. Where the disk is full (a limit on the size of files, with
its signal ignored) the command says so in one line, leaves the older outputs as they were, and leaves nothing behind.
Prints a line for each command; exit status 1 with what went wrong."""

import argparse
import json
import pathlib
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time

source = pathlib.Path(__file__).resolve().parents[2]
tiny = source / "tests/golden/llava15"
demo = source / "models/demo"
pictures = [source / f"examples/demo/shape/{i}.png" for i in range(2)]

# Pages tell how long a run took, so no two are alike: one is whole where it ends as pages do.
# name -> (arguments, where {out} is a folder that belongs to the run and {i} tells two runs apart; its outputs)
ask = ["--model", tiny, "--threads", "1", "--image", "{picture}", "--prompt", "what shape?"]
commands = {
    "record": (["record", *ask, "--signals", "{out}/s.safetensors", "--layout", "{out}/l.json"],
               ["s.safetensors", "l.json"]),
    "dump": (["generate", *ask, "--greedy", "--max-new-tokens", "2", "--dump", "{out}/d"], ["d.safetensors", "d.json"]),
    "inspect": (["inspect", *ask, "--policy", "fastv:keep_ratio=1/2,layer=1", "--out", "{out}/page.html"], ["page.html"]),
    "fit": (["fit", "--model", demo, "--policy", "fitprune", "--data", source / "examples/demo/shape", "--reduction",
             "0.5{i}", "--out", "{out}/fit.json"], ["fit.json"]),
}
trainers = {
    "train-demo": ["train-demo", "--stage", "copying", "--seed", "3", "--dtype", "bf16", "--threads", "1", "--max-steps", "40",
                   "--save-every", "4", "--out", "{out}"],
    "train-atp": ["train-atp", "--model", tiny, "--suite", "single", "--batch", "2", "--threads", "1", "--dtype", "f32",
                  "--hidden-size", "8", "--evaluation-items", "2", "--evaluate-every", "20", "--steps", "60", "--save-every", "3",
                  "--out", "{out}"],
    "train-atp --train-decoder": ["train-atp", "--model", demo, "--train-decoder", "--batch", "1", "--threads", "1", "--dtype",
                                  "f32", "--hidden-size", "8", "--evaluation-items", "1", "--evaluate-every", "6", "--steps",
                                  "12", "--save-every", "2", "--out", "{out}"],
}

wrong = []


def complain(name, what):
    wrong.append(f"{name}: {what}")
    print(f"  {what}", flush=True)


def filled(arguments, out, i=0):
    return [str(a).replace("{out}", str(out)).replace("{picture}", str(pictures[i])).replace("{i}", str(i)) for a in arguments]


def start(arguments, limit=None):
    def take_limit():
        if limit is None:
            return
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    # Pipes and not files: they have no size, so that the message comes through.
    return subprocess.Popen([binary, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
                            preexec_fn=take_limit)


def run(arguments, limit=None):
    process = start(arguments, limit)
    out, err = process.communicate()
    return process.returncode, err.decode(errors="replace")


def run_or_killed(arguments, seconds):
    """None: it was killed."""
    process = start(arguments)
    try:
        _, err = process.communicate(timeout=seconds)
        return process.returncode, err.decode(errors="replace")
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return None


def must_run(name, arguments):
    code, err = run(arguments)
    if code != 0:
        complain(name, f"exit status {code}: {err.strip()}")
    return code == 0


def contents(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def half_written(name, content):
    """What is broken in a file that is there, or nothing."""
    try:
        if name.endswith(".json"):
            json.loads(content)
        elif name.endswith(".safetensors"):
            length, = struct.unpack("<Q", content[:8])
            ends = [t["data_offsets"][1] for key, t in json.loads(content[8:8 + length]).items() if key != "__metadata__"]
            if len(content) != 8 + length + max(ends, default=0):
                return f"{name} has {len(content)} bytes"
    except (ValueError, KeyError, struct.error) as error:
        return f"{name}: {error}"


def is_temporary(name):
    return ".tmp-" in name or ".partial-" in name


def kill_trainer(name, arguments, folder):
    whole = folder / "whole"
    began = time.monotonic()
    if not must_run(name, filled(arguments, whole)):
        return
    seconds = time.monotonic() - began
    kills = runs = 0
    while kills < options.kills:
        killed = folder / "killed"
        shutil.rmtree(killed, ignore_errors=True)
        while True:
            ended = run_or_killed(filled(arguments, killed), randomness.uniform(0, seconds)) if kills < options.kills else \
                run(filled(arguments, killed))
            if ended is not None:
                break
            kills += 1
            for file, content in contents(killed).items():
                if not is_temporary(file) and (broken := half_written(file, content)):
                    complain(name, f"after kill {kills}: {broken}")
        runs += 1
        if ended[0] != 0:
            complain(name, f"started again after a kill: exit status {ended[0]}: {ended[1].strip()}")
        expected, got = contents(whole), contents(killed)
        for file in sorted(expected.keys() | {f for f in got if not is_temporary(f)}):
            if not file.endswith((".jsonl", ".svg")) and expected.get(file) != got.get(file):  # logs tell of the kills
                complain(name, f"{file} differs from that of the undisturbed run")
        if left := [f for f in got if is_temporary(f)]:
            complain(name, f"left behind: {', '.join(left)}")
    print(f"{name}: {kills} kills in {runs} runs, all equal to the undisturbed one", flush=True)


def both_runs(name, arguments, folder):
    """What two different runs of a command write, and how long one takes; nothing where one fails."""
    written, seconds = [], 0.0
    for i in range(2):
        out = folder / f"whole{i}"
        out.mkdir(parents=True)
        began = time.monotonic()
        if not must_run(name, filled(arguments, out, i)):
            return None
        seconds = time.monotonic() - began
        written.append(contents(out))
    return written[0], written[1], seconds


def fresh_copy(folder, of):
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(of, folder)
    return folder


def kill_command(name, arguments, outputs, folder):
    runs = both_runs(name, arguments, folder)
    if runs is None:
        return
    old, new, seconds = runs
    counts = [0, 0]
    for kill in range(options.kills):
        out = fresh_copy(folder / "killed", folder / "whole0")
        # Most of a run is loading: the later moments are those that write.
        run_or_killed(filled(arguments, out, 1), seconds * (1 - randomness.random() ** 2 * 0.7))
        now = contents(out)
        for file in outputs:
            is_new = now.get(file) != old[file]
            counts[is_new] += 1
            if is_new and now.get(file) != new[file] and not now.get(file, b"").endswith(b"</html>\n"):
                complain(name, f"kill {kill}: {file} is neither the old nor the new one")
    print(f"{name}: {options.kills} kills, {counts[0]} old and {counts[1]} new files, all whole", flush=True)


def fill_disk(name, arguments, outputs, folder):
    runs = both_runs(name, arguments, folder)
    if runs is None:
        return
    old, new, _ = runs
    largest = max(len(new[file]) for file in outputs)
    for _ in range(options.limits):
        limit = randomness.randrange(largest)
        out = fresh_copy(folder / "full", folder / "whole0")
        code, err = run(filled(arguments, out, 1), limit)
        lines = err.strip().splitlines()
        if code not in (1, 2) or not lines or "cannot write" not in lines[-1]:
            complain(name, f"{limit} bytes allowed: exit status {code}: {err.strip()}")
        if contents(out) != old:
            complain(name, f"{limit} bytes allowed: what was there before has changed")
    print(f"{name}: {options.limits} limits below {largest} bytes, refused in one line, older outputs as they were", flush=True)


def fill_disk_of_trainer(name, arguments, folder):
    whole, full = folder / "whole", folder / "full"
    if not must_run(name, filled(arguments, whole)):
        return
    largest = max(len(c) for f, c in contents(whole).items() if f.endswith(".safetensors"))
    for _ in range(options.limits):
        shutil.rmtree(full, ignore_errors=True)
        limit = randomness.randrange(largest)
        code, err = run(filled(arguments, full), limit)
        if code not in (1, 2) or "cannot" not in err:
            complain(name, f"{limit} bytes allowed: exit status {code}: {err.strip()}")
        for file, content in contents(full).items() if full.exists() else ():
            if is_temporary(file):
                complain(name, f"{limit} bytes allowed: left behind: {file}")
            elif broken := half_written(file, content):
                complain(name, f"{limit} bytes allowed: {broken}")
        if code in (1, 2) and must_run(name, filled(arguments, full)):
            expected, got = contents(whole), contents(full)
            for file in expected:
                if not file.endswith((".jsonl", ".svg")) and expected[file] != got.get(file):
                    complain(name, f"{limit} bytes allowed, then room again: {file} differs from that of the undisturbed run")
    print(f"{name}: {options.limits} limits below {largest} bytes, refused, and gone on to the same bits with room", flush=True)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("binary")
parser.add_argument("--kills", type=int, default=50, help="of each command; 0: none")
parser.add_argument("--limits", type=int, default=10, help="sizes of the disk that each command is tried with; 0: none")
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--only", action="append", help="name of a command; several times for several")
options = parser.parse_args()
binary = str(pathlib.Path(options.binary).resolve())
randomness = random.Random(options.seed)
with tempfile.TemporaryDirectory(prefix="espalier-broken-") as folder:
    folder = pathlib.Path(folder)
    for kind, count in [("kill", options.kills), ("full", options.limits)]:
        for name in [*commands, *trainers] if count else []:
            if options.only and name not in options.only:
                continue
            place = folder / f"{kind} {name}"
            if name in trainers:
                (kill_trainer if kind == "kill" else fill_disk_of_trainer)(name, trainers[name], place)
            else:
                (kill_command if kind == "kill" else fill_disk)(name, *commands[name], place)
            shutil.rmtree(place, ignore_errors=True)
for line in wrong:
    print(line, file=sys.stderr)
sys.exit(1 if wrong else 0)
