#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""blocks.py PAGE FOLDER --build DIR --cxx COMPILER [--include DIR]...: does what the blocks of code on a page say.

A block has a language. `sh` is run, `console` is run and must print what stands there (`…` is anything within a line, a line of it alone
any lines), `cpp` and `c` are compiled, `json` is read; `text` is no code. All commands of a page run in FOLDER, one after the other, where
the sources' top and the build lie as links; then its `python`, all blocks as one program. Commands that ask 127.0.0.1:8080 ask a server of
the bundled model.

Comments on the lines above a block, which readers do not see, say more:
  <!-- file: NAME -->     it is written to that file of FOLDER, for commands below it; C++ and Python in it is not looked at otherwise
  <!-- with: … -->        `NAME = PATH, …`, what a name on the page stands for here; cpp: variables that are there already
  <!-- ends with: N -->   console: the status of its commands
  <!-- needs: NAME, … --> python: modules without which it and what follows is only parsed; sh, console: programs without which it is not run
  <!-- not run: WHY -->   nothing is done

Ends with 1 for a block that fails, has no such language, or is set in by four spaces; with 77 where a program was missing.
"""
import argparse
import ast
import contextlib
import importlib.util
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

root = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.append(str(root / "tests" / "serve"))
from served import served  # noqa: E402

DIRECTIVE = re.compile(r"<!-- (file|with|ends with|needs|not run): (.*) -->")


class Block:
    def __init__(self, page, line, language, directives):
        self.place, self.line, self.language, self.directives = f"{page}:{line}", line, language, directives
        self.lines = []

    @property
    def text(self):
        return "".join(line + "\n" for line in self.lines)


def blocks_of(page):
    """(blocks, what is wrong with their form)"""
    blocks, wrong, fence, directives, before, in_list = [], [], None, {}, "", False
    for number, line in enumerate((root / page).read_text(encoding="utf-8").split("\n"), 1):
        mark = re.match(r"^ *(```+)(.*)$", line)
        if fence:
            if mark and mark.group(1) == fence and not mark.group(2):
                fence = None
            else:
                blocks[-1].lines.append(line)
        elif mark:
            fence = mark.group(1)
            blocks.append(Block(page, number + 1, mark.group(2).strip(), directives))
        elif line.startswith("    ") and not before.strip() and not in_list:
            wrong.append(f"{page}:{number}: a block that is set in; fence it and name its language")
        elif line.strip() and not line.startswith(" "):
            in_list = re.match(r"([-*]|\d+\.) ", line) is not None
        found = DIRECTIVE.fullmatch(line)
        directives = directives | {found.group(1): found.group(2)} if found and not fence else {}
        before = line
    if fence:
        wrong.append(f"{page}: the last block does not end")
    return blocks, wrong


class Failure(Exception):
    pass


class Missing(Exception):
    """A program that is not here."""


def names_in(text):
    return [name for name in text.split(", ") if name]


def pattern_of(lines):
    parts = []
    for line in lines:
        if line == "…":
            parts.append(r"(?:.*\n)*?")
        else:
            parts.append(".*?".join(re.escape(piece) for piece in line.split("…")) + r"\n")
    return re.compile("".join(parts))


def goes_on(command):
    """Whether its last line ends with a backslash or within quotes."""
    try:
        shlex.split(command)
    except ValueError:
        return True
    return command.endswith("\\")


def commands_of(block):
    """[command, expected output] of each `$ …`."""
    found = []
    for line in block.lines:
        if line.startswith("$ "):
            found.append([line[2:], []])
        elif not found:
            raise Failure("does not begin with a command: $ …")
        elif not found[-1][1] and goes_on(found[-1][0]):
            found[-1][0] += "\n" + line
        else:
            found[-1][1].append(line)
    for _, output in found:
        while output and not output[-1]:
            output.pop()
    return found


class Page:
    def __init__(self, page, options, stack):
        self.folder, self.options, self.stack, self.port = pathlib.Path(options.folder).resolve(), options, stack, None
        self.page, self.fragments, self.program, self.program_lacks = page, [], [], None
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / "build").mkdir(parents=True)
        for entry in root.iterdir():
            if entry.name not in ("build", ".git"):
                (self.folder / entry.name).symlink_to(entry)
        (self.folder / "build" / "release").symlink_to(pathlib.Path(options.build).resolve())

    def run(self, command, status=0):
        """What the command prints."""
        if "127.0.0.1:8080" in command:
            if not self.port:
                _, self.port = self.stack.enter_context(
                    served(str(self.folder / "build/release/bin/espalier"), "--allow-images", str(root / "examples/demo")))
            command = command.replace("127.0.0.1:8080", f"127.0.0.1:{self.port}").replace("curl ", "curl -sS ", 1)
        environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PATH": str(self.folder / "build/release/bin") + ":" + os.environ["PATH"]}
        ran = subprocess.run(["bash", "-euo", "pipefail", "-c", command], cwd=self.folder, env=environment, stdin=subprocess.DEVNULL,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        said = ran.stdout.rstrip("\n").replace("\r", "") + "\n"
        if ran.returncode != status:
            raise Failure(f"{command}\n  ended with {ran.returncode}, expected {status}, and printed:\n{said}")
        return said

    def stand_ins(self, text):
        for pair in names_in(text):
            name, path = pair.split(" = ")
            link = self.folder / name
            link.unlink(missing_ok=True)
            link.symlink_to((root if (root / path).exists() else self.folder) / path)

    def syntax(self, compiler, arguments, source, name):
        file = self.folder / name
        file.write_text(source, encoding="utf-8")
        includes = [argument for folder in self.options.include for argument in ("-isystem", folder)]
        ran = subprocess.run([*compiler, *arguments, "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-Wno-unused", f"-I{root}/include", *includes,
                              str(file)], capture_output=True, text=True)
        if ran.returncode:
            raise Failure(f"does not compile:\n{ran.stderr}")

    def compile(self, block):
        """A unit with includes by itself; a fragment in a function, with all those of the page."""
        if "#include" in block.text:
            line = f'#line {block.line} "{self.page}"\n'
            if block.language == "c":
                self.syntax(self.options.cc, ["-std=c11"], line + block.text, "unit.c")
            else:
                self.syntax(self.options.cxx, ["-std=c++20"], line + block.text, "unit.cpp")
        elif block.language == "c":
            raise Failure("a fragment in C needs its #include")
        else:
            self.fragments.append(f'void fragment_{block.line}({block.directives.get("with", "")}) {{\n'
                                  f'#line {block.line} "{self.page}"\n{block.text}}}\n')

    def compile_fragments(self):
        if not self.fragments:
            return
        headers = [header.relative_to(root / "include") for header in sorted((root / "include").rglob("*.h"))
                   if header.name != "policy_conformance.h"]
        standard = ["chrono", "fstream", "iostream", "memory", "string", "thread", "vector"]
        lines = [f"#include <{name}>" for name in [*headers, *standard]]
        lines += ["using namespace espalier;", "using namespace std::chrono_literals;", *self.fragments]
        self.syntax(self.options.cxx, ["-std=c++20"], "\n".join(lines), "fragments.cpp")

    def python(self, block):
        try:
            ast.parse(block.text)
        except SyntaxError as error:
            raise Failure(f"line {error.lineno}: {error.msg}") from error
        for module in names_in(block.directives.get("needs", "")):
            if not importlib.util.find_spec(module):
                self.program_lacks = self.program_lacks or f"the Python module {module}"
        if self.program_lacks:
            raise Missing(self.program_lacks)
        text = "\n" * (block.line - 1) + block.text  # so that what is raised has the page's lines
        self.program.append(f"exec(compile({text!r}, {self.page!r}, 'exec'), names)\n")

    def run_program(self):
        if self.program:
            (self.folder / "program.py").write_text("names = {'__name__': '__main__'}\n" + "".join(self.program), encoding="utf-8")
            self.run(f"{shlex.quote(sys.executable)} program.py")

    def do(self, block):
        """One word for what was done."""
        if "not run" in block.directives:
            return "not run"
        if block.language in ("sh", "console", "python"):
            self.stand_ins(block.directives.get("with", ""))
        if block.language in ("sh", "console"):
            for program in names_in(block.directives.get("needs", "")):
                if not shutil.which(program):
                    raise Missing(program)
        if "file" in block.directives:
            file = self.folder / block.directives["file"]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text, encoding="utf-8")
            return "written"
        if block.language in ("json", "jsonl"):
            for text in [block.text] if block.language == "json" else block.lines:
                try:
                    json.loads(text)
                except json.JSONDecodeError as error:
                    raise Failure(f"not JSON: {error}") from error
            return "read"
        if block.language in ("cpp", "c"):
            self.compile(block)
            return "compiled"
        if block.language == "python":
            self.python(block)
            return "run"
        if block.language == "sh":
            self.run(block.text)
            return "run"
        if block.language == "console":
            if "curl " in block.text and not shutil.which("curl"):
                raise Missing("curl")
            for command, expected in commands_of(block):
                said = self.run(command, int(block.directives.get("ends with", 0)))
                if not pattern_of(expected or [""]).fullmatch(said):
                    raise Failure(f"{command}\n  printed:\n{said}")
            return "run"
        if block.language == "text":
            return "text"
        raise Failure(f"its language is '{block.language}': expected sh, console, cpp, c, python, json, jsonl or text, <!-- file: … --> or "
                      "<!-- not run: … --> above it")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("page")
    parser.add_argument("folder")
    parser.add_argument("--build", required=True)
    parser.add_argument("--cxx", required=True, type=shlex.split)
    parser.add_argument("--cc", default=["cc"], type=shlex.split)
    parser.add_argument("--include", action="append", default=[])
    options = parser.parse_args()
    page = pathlib.Path(options.page).resolve()
    page = str(page.relative_to(root) if page.is_relative_to(root) else page)
    blocks, wrong = blocks_of(page)
    counts, missing = {}, []
    with contextlib.ExitStack() as stack:
        there = Page(page, options, stack)
        for block in blocks:
            try:
                done = there.do(block)
            except Failure as failure:
                wrong.append(f"{block.place}: {failure}")
                done = "failed"
            except Missing as program:
                missing.append(f"{block.place}: not run, {program} is not there")
                done = "left out"
            counts[done] = counts.get(done, 0) + 1
        for rest in (there.compile_fragments, there.run_program):
            try:
                rest()
            except Failure as failure:
                wrong.append(f"{page}: {failure}")
    print(*wrong, *missing, sep="\n")
    print(f"{page}: {len(blocks)} blocks:", ", ".join(f"{count} {done}" for done, count in counts.items()))
    return 1 if wrong else 77 if missing else 0


sys.exit(main())
