#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""comments.py HEADER: prints the header with its plain comments as Doxygen reads them, line by line, so that warnings name the right one.

A comment right above a declaration belongs to it, one behind it too, with the lines that go on below at the same column; the comment at the
top is the file's, and so is what stands below the title of a section. Titles alone, and notes with a blank line below, stay as they are.
"""
import re
import sys

LITERAL = re.compile(r"(`[^`]*`)")


def escaped(text):
    """Plain words: no HTML, no commands, no links by `#`. What stands in backticks is left alone."""
    parts = LITERAL.split(re.sub(r" \.\.(?= |$)", " …", text))  # two dots would end a sentence, or a list
    return "".join(part if i % 2 else re.sub(r"([\\@<>&#%])", r"\\\1", part) for i, part in enumerate(parts))


def is_set_in(text):
    return re.match(r" {3,}\S", text) is not None


def block(lines, mark, indent):
    """Comment lines, without their slashes, as documentation; lines that are set in further keep their form."""
    if not any(map(is_set_in, lines)):
        return [indent + mark + escaped(text) for text in lines]
    out = []
    for i, text in enumerate(lines):
        if not is_set_in(text):
            out.append(escaped(text.removeprefix(" ")))
            continue
        begins = i == 0 or not is_set_in(lines[i - 1])
        ends = i + 1 == len(lines) or not is_set_in(lines[i + 1])
        out.append(("\\verbatim " if begins else "") + text[3:] + (" \\endverbatim" if ends else ""))
    # In this form nothing of the comment's own stands between the lines.
    return [indent + mark.replace("///", "/*!") + " " + out[0], *out[1:-1], out[-1] + " */"]


def of_the_file(lines):
    """A block, with one line more in front, which says that it is the file's."""
    marked = block(lines, "///", "")
    if marked[0].startswith("///"):
        return [r"/// \file", *marked]
    return [r"/*! \file", marked[0].removeprefix("/*! "), *marked[1:]]


def documented(source):
    lines = source.split("\n")
    out, i, of_file = [], 0, lines[0].startswith("// SPDX")
    if of_file:  # whose line goes to \file
        i = 1
    while i < len(lines):
        line = lines[i]
        full = re.match(r"^( *)//(?!/)(.*)$", line)
        if full:
            indent, end = full.group(1), i
            while end < len(lines) and re.match("^" + indent + "//(?!/)", lines[end]):
                end += 1
            texts = [lines[k][len(indent) + 2:] for k in range(i, end)]
            below = lines[end].strip() if end < len(lines) else ""
            title = re.match(r" ---- (.*) ----$", texts[0])
            stands_alone = not below or below.startswith(("}", "private:")) or (below.startswith("#") and not below.startswith("#define"))
            if title and len(texts) > 1:
                out += of_the_file([f" {title.group(1).capitalize()}: {texts[1].strip()}", *texts[2:]])
            elif of_file:
                out += of_the_file(texts)
            elif not (stands_alone or texts[0].startswith(" ----")):
                out += block(texts, "///", indent)
            else:
                out += lines[i:end]
            i, of_file = end, False
            continue
        behind = re.match(r"^( *[^ /].*?) // ?(.*)$", line)
        if behind and not re.match(r"^ *(}|#|namespace|(struct|class) \w+;)", line) and not line.endswith("\\"):
            column = line.index(" //", len(behind.group(1)) - 1) + 1
            texts = [line[column + 2:]]
            while i + 1 < len(lines) and lines[i + 1].startswith(" " * column + "//"):
                i += 1
                texts.append(lines[i][column + 2:])
            marked = block(texts, "///<", " " * column)
            out += [line[:column] + marked[0].lstrip(" ")] + marked[1:]
        else:
            out.append(line)
        i, of_file = i + 1, False
    return "\n".join(out)


with open(sys.argv[1], encoding="utf-8") as header:
    print(documented(header.read()), end="")
