#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Breaks runs of espalier off: by kill -9 at random moments, and by a disk that takes no more.

    broken_off.py BINARY [--kills N] [--limits N] [--seed S] [--only NAME]...

Trainers, `answer` and `eval --resume` that were killed, started again, end with the bits of a run that nobody disturbed, and
no line that was written is lost on the way. Of every other command each output is, whenever it is looked at, the old file or
a new one, whole. Where the disk is full the command says so in one line with exit status 1, leaves the older outputs as they
were, and leaves nothing behind; with room again the others go on to the bits of the undisturbed run. The disk is a small
tmpfs where this may be mounted (by root), else a limit on the size of files with its signal ignored; both in turn for
root. Prints a line for each command; exit status 1 with what went wrong."""

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

# name -> (arguments, where {out} is a folder that belongs to the run and {i} tells two runs apart; its outputs). Some tell
# how long a run took, so no two are alike: what is not the old file has to be a whole one.
ask = ["--model", tiny, "--threads", "1", "--image", "{picture}", "--prompt", "what shape?"]
commands = {
    "record": (["record", *ask, "--signals", "{out}/s.safetensors", "--layout", "{out}/l.json"],
               ["s.safetensors", "l.json"]),
    "generate": (["generate", *ask, "--greedy", "--max-new-tokens", "2", "--json", "{out}/g.json", "--dump", "{out}/d"],
                 ["g.json", "d.safetensors", "d.json"]),
    "inspect": (["inspect", *ask, "--policy", "fastv:keep_ratio=1/2,layer=1", "--out", "{out}/page.html"], ["page.html"]),
    "fit": (["fit", "--model", demo, "--policy", "fitprune", "--data", source / "examples/demo/shape", "--reduction",
             "0.5{i}", "--out", "{out}/fit.json"], ["fit.json"]),
    "fit vtw": (["fit", "--model", demo, "--policy", "vtw", "--data", source / "examples/demo/shape", "--samples", "2",
                 "--first-layer", "{i}", "--eta", "9", "--out", "{out}/vtw.json"], ["vtw.json"]),
    "replay": (["replay", "--policy", "fastv:keep_ratio=0.5{i},layer=1", "--signals", "{folder}/recorded/s.safetensors", "--layout",
                "{folder}/recorded/l.json", "--out", "{out}/kept.json"], ["kept.json"]),
    "tokenize": (["tokenize", "--model", tiny, "--in", "{folder}/cases{i}.json", "--out", "{out}/ids.json"], ["ids.json"]),
    "calibrate": (["calibrate", "--model", tiny, "--threads", "1", "--policy", "fastv", "--passes", "2", "--seed", "{i}",
                   "--out", "{out}/costs.json"], ["costs.json"]),
    "bench": (["bench", *ask, "--policy", "none", "--repeat", "1", "--max-repeat", "1", "--new-tokens", "2", "--json",
               "{out}/b.jsonl"], ["b.jsonl"]),
    "eval": (["eval", "--model", tiny, "--threads", "1", "--side", "56", "--items", "1", "--suite", "single/colour",
              "--no-controls", "--policy", "uniform:keep_ratio=1/2", "--seed", "{i}", "--json", "{out}/e.json",
              "--answers", "{out}/a.jsonl", "--svg", "{out}/e.svg"], ["e.json", "a.jsonl", "e.svg"]),
}
# name -> (arguments, the file that grows by whole lines)
growing = {
    "answer": (["answer", "--model", tiny, "--threads", "1", "--questions", "{folder}/questions.jsonl", "--greedy",
                "--max-new-tokens", "4", "--requests", "2", "--policy", "none", "--policy", "fastv:keep_ratio=1/2,layer=1",
                "--out", "{out}/answers.jsonl"], "answers.jsonl"),
    "eval --resume": (["eval", "--model", tiny, "--threads", "1", "--side", "56", "--items", "60", "--suite", "single/colour",
                       "--suite", "single/shape", "--policy", "uniform:keep_ratio=1/2", "--answers", "{out}/answers.jsonl",
                       "--resume"], "answers.jsonl"),
}
questions = 150
# name -> (arguments, the folder that is made, whole or not at all)
folders = {
    "synth": (["synth", "--suite", "single/colour", "--items", "60", "--side", "56", "--out", "{out}/items"], "items"),
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
    values = {"{out}": out, "{picture}": pictures[i], "{i}": i, "{folder}": everything}
    texts = []
    for text in map(str, arguments):
        for name, value in values.items():
            text = text.replace(name, str(value))
        texts.append(text)
    return texts


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
        elif name.endswith(".jsonl"):
            for line in content.decode().splitlines():
                json.loads(line)
            if content and not content.endswith(b"\n"):
                return f"{name} ends within a line"
        elif name.endswith((".html", ".svg")):
            if not content.rstrip().endswith(("</" + name.rsplit(".")[-1] + ">").encode()):
                return f"{name} has no end"
        elif name.endswith(".safetensors"):
            length, = struct.unpack("<Q", content[:8])
            ends = [t["data_offsets"][1] for key, t in json.loads(content[8:8 + length]).items() if key != "__metadata__"]
            if len(content) != 8 + length + max(ends, default=0):
                return f"{name} has {len(content)} bytes"
    except (ValueError, KeyError, struct.error) as error:
        return f"{name}: {error}"


def is_temporary(name):
    return ".espalier-tmp-" in name or ".partial-" in name


def clear(folder):
    """Empties a folder, which may be a mounted disk, or makes it."""
    folder.mkdir(parents=True, exist_ok=True)
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


page = 4096


class SizeOfFiles:
    """No file may grow beyond the limit."""

    def __init__(self, folder, bytes):
        self.folder, self.limit, self.words = folder, bytes, f"{bytes} bytes a file"
        clear(folder)

    def make_room(self):
        self.limit = None

    def close(self):
        pass


class SmallDisk:
    """A disk with so many free pages beside what is on it."""

    def __init__(self, folder, pages, held=()):
        self.folder, self.limit, self.words = folder, None, f"{pages} free pages"
        clear(folder)
        pages += sum(-(-size // page) for size in held)
        # 0 pages would mean no limit.
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={max(1, pages) * page}", "none", folder], check=True)

    def make_room(self):
        subprocess.run(["mount", "-o", "remount,size=1g", self.folder], check=True)

    def close(self):
        subprocess.run(["umount", self.folder], check=True)


def may_mount(folder):
    try:
        SmallDisk(folder, 1).close()
        return True
    except (subprocess.CalledProcessError, OSError):
        return False


def full_disks(folder, largest, held=()):
    """One after the other, on which a file of that size finds no room beside those that it holds already."""
    for i in range(options.limits):
        kinds = [lambda: SizeOfFiles(folder, randomness.randrange(1, largest * 9 // 10))]
        if mounts and largest > page:
            kinds.append(lambda: SmallDisk(folder, randomness.randrange(1, -(-largest // page)), held))
        disk = kinds[i % len(kinds)]()
        try:
            yield disk
        finally:
            disk.close()


def check_refusal(name, disk, ended):
    code, err = ended
    lines = err.strip().splitlines()
    if code != 1 or not lines or "cannot write" not in lines[-1] or "Traceback" in err:
        complain(name, f"{disk.words}: exit status {code}: {err.strip()}")


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


def kill_command(name, arguments, outputs, folder):
    runs = both_runs(name, arguments, folder)
    if runs is None:
        return
    old, new, seconds = runs
    counts = [0, 0]
    for kill in range(options.kills):
        out = folder / "killed"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(folder / "whole0", out)
        # Most of a run is loading: the later moments are those that write.
        run_or_killed(filled(arguments, out, 1), seconds * (1 - randomness.random() ** 2 * 0.7))
        now = contents(out)
        for file in outputs:
            is_new = now.get(file) != old[file]
            counts[is_new] += 1
            if is_new and now.get(file) != new[file] and (file not in now or half_written(file, now[file])):
                complain(name, f"kill {kill}: {file} is neither the old nor a new one, whole")
    if must_run(name, filled(arguments, out, 1)) and set(contents(out)) != set(outputs):
        complain(name, f"left behind after another run: {', '.join(set(contents(out)) - set(outputs))}")
    print(f"{name}: {options.kills} kills, {counts[0]} old and {counts[1]} new files, all whole", flush=True)


def fill_disk(name, arguments, outputs, folder):
    runs = both_runs(name, arguments, folder)
    if runs is None:
        return
    old, new, _ = runs
    largest = min(max(len(r[file]) for file in outputs) for r in (old, new))
    for disk in full_disks(folder / "full", largest, [len(content) for content in old.values()]):
        shutil.copytree(folder / "whole0", disk.folder, dirs_exist_ok=True)
        check_refusal(name, disk, run(filled(arguments, disk.folder, 1), disk.limit))
        now = contents(disk.folder)
        if set(now) != set(old):
            complain(name, f"{disk.words}: there are {', '.join(now)}")
        for file in outputs:  # those that had room may be new
            if now.get(file) != old[file] and (file not in now or half_written(file, now[file])):
                complain(name, f"{disk.words}: {file} is neither the old nor a new one, whole")
    print(f"{name}: {options.limits} full disks, refused in one line, older outputs whole", flush=True)


def first_lines(content):
    return content[:content.rfind(b"\n") + 1]


def undisturbed(name, arguments, folder):
    """What a run makes in the empty folder, None where it fails, and its seconds."""
    clear(folder)
    began = time.monotonic()
    made = contents(folder) if must_run(name, filled(arguments, folder)) else None
    return made, time.monotonic() - began


def kill_growing(name, arguments, file, folder):
    whole, killed = folder / "whole", folder / "killed"
    expected, seconds = undisturbed(name, arguments, whole)
    if expected is None:
        return
    expected = expected[file]
    kills = runs = 0
    while kills < options.kills:
        clear(killed)
        kept = b""
        while (ended := run_or_killed(filled(arguments, killed), randomness.uniform(0, seconds))) is None:
            kills += 1
            now = contents(killed).get(file, b"")
            if not expected.startswith(now) or not now.startswith(kept):
                complain(name, f"after kill {kills}: {file} lost or changed a line")
            kept = first_lines(now)
        runs += 1
        if ended[0] != 0:
            complain(name, f"started again after a kill: exit status {ended[0]}: {ended[1].strip()}")
        if contents(killed) != {file: expected}:
            complain(name, f"run {runs}: {file} differs from that of the undisturbed run, or something was left beside it")
    print(f"{name}: {kills} kills in {runs} runs, no line lost, all equal to the undisturbed one", flush=True)


def fill_disk_of_growing(name, arguments, file, folder):
    whole = folder / "whole"
    expected, _ = undisturbed(name, arguments, whole)
    if expected is None:
        return
    expected = expected[file]
    for disk in full_disks(folder / "full", len(expected)):
        check_refusal(name, disk, run(filled(arguments, disk.folder), disk.limit))
        now = contents(disk.folder).get(file, b"")
        if not expected.startswith(now) or now != first_lines(now):
            complain(name, f"{disk.words}: {file} holds no whole lines of the undisturbed run")
        disk.make_room()
        if must_run(name, filled(arguments, disk.folder)) and contents(disk.folder) != {file: expected}:
            complain(name, f"{disk.words}, then room again: {file} differs from that of the undisturbed run")
    print(f"{name}: {options.limits} full disks, refused in one line, and gone on to the same bytes with room", flush=True)


def fill_disk_of_trainer(name, arguments, folder):
    whole = folder / "whole"
    if not must_run(name, filled(arguments, whole)):
        return
    expected = contents(whole)
    for disk in full_disks(folder / "full", max(len(c) for f, c in expected.items() if f.endswith(".safetensors"))):
        check_refusal(name, disk, run(filled(arguments, disk.folder), disk.limit))
        for file, content in contents(disk.folder).items():
            if is_temporary(file):
                complain(name, f"{disk.words}: left behind: {file}")
            elif broken := half_written(file, content):
                complain(name, f"{disk.words}: {broken}")
        disk.make_room()
        if must_run(name, filled(arguments, disk.folder)):
            got = contents(disk.folder)
            for file in expected:
                if not file.endswith((".jsonl", ".svg")) and expected[file] != got.get(file):
                    complain(name, f"{disk.words}, then room again: {file} differs from that of the undisturbed run")
    print(f"{name}: {options.limits} full disks, refused in one line, and gone on to the same bits with room", flush=True)


def kill_maker(name, arguments, made, folder):
    whole, killed = folder / "whole", folder / "killed"
    expected, seconds = undisturbed(name, arguments, whole)
    if expected is None:
        return
    clear(killed)
    ended = 0
    for kill in range(options.kills):
        ended += run_or_killed(filled(arguments, killed), randomness.uniform(0, seconds)) is not None
        now = {file: content for file, content in contents(killed).items() if not is_temporary(file)}
        if now and now != expected:
            complain(name, f"kill {kill}: {made} is there, and not whole")
        shutil.rmtree(killed / made, ignore_errors=True)
    if must_run(name, filled(arguments, killed)) and contents(killed) != expected:
        complain(name, "after another run: not what an undisturbed run makes, or something was left beside it")
    print(f"{name}: {options.kills - ended} kills, a whole folder or none", flush=True)


def fill_disk_of_maker(name, arguments, made, folder):
    whole = folder / "whole"
    expected, _ = undisturbed(name, arguments, whole)
    if expected is None:
        return
    for disk in full_disks(folder / "full", max(map(len, expected.values()))):
        check_refusal(name, disk, run(filled(arguments, disk.folder), disk.limit))
        if left := contents(disk.folder):
            complain(name, f"{disk.words}: there are {', '.join(left)}")
    print(f"{name}: {options.limits} full disks, refused in one line, nothing left behind", flush=True)


def write_inputs():
    for i in range(2):
        (everything / f"cases{i}.json").write_text(json.dumps([{"text": f"What is shape {i} of {n}?"} for n in range(2000)]))
    recorded = everything / "recorded"
    recorded.mkdir()
    must_run("record", filled(commands["record"][0], recorded))
    asked = [{"question_id": i, "image": str(pictures[i % 2]), "text": f"What is shape {i}?"} for i in range(questions)]
    (everything / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in asked))


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("binary")
parser.add_argument("--kills", type=int, default=50, help="of each command; 0: none")
parser.add_argument("--limits", type=int, default=10, help="full disks that each command is tried with; 0: none")
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--only", action="append", help="name of a command; several times for several")
options = parser.parse_args()
binary = str(pathlib.Path(options.binary).resolve())
randomness = random.Random(options.seed)
with tempfile.TemporaryDirectory(prefix="espalier-broken-") as folder:
    everything = pathlib.Path(folder)
    write_inputs()
    mounts = options.limits > 0 and may_mount(everything / "disk")
    print(f"seed {options.seed}, {options.kills} kills, {options.limits} full disks ("
          f"{'small ones and a limit on files in turn' if mounts else 'a limit on files'})", flush=True)
    for kind, count in [("kill", options.kills), ("full", options.limits)]:
        for name in [*commands, *growing, *folders, *trainers] if count else []:
            if options.only and name not in options.only:
                continue
            place = everything / f"{kind} {name}"
            is_kill = kind == "kill"
            if name in trainers:
                (kill_trainer if is_kill else fill_disk_of_trainer)(name, trainers[name], place)
            elif name in folders:
                (kill_maker if is_kill else fill_disk_of_maker)(name, *folders[name], place)
            elif name in growing:
                (kill_growing if is_kill else fill_disk_of_growing)(name, *growing[name], place)
            else:
                (kill_command if is_kill else fill_disk)(name, *commands[name], place)
            shutil.rmtree(place, ignore_errors=True)
for line in wrong:
    print(line, file=sys.stderr)
sys.exit(1 if wrong else 0)
