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
    parts = LITERAL.split(re.sub(r" \.\.$", " …", text))  # two dots at a line's end would end a list
    return "".join(part if i % 2 else re.sub(r"([\\@<>&#%])", r"\\\1", part) for i, part in enumerate(parts))


def block(lines, mark, indent):
    """Comment lines, without their slashes, as documentation; lines that are set in further keep their form."""
    out, literal = [], False
    for i, text in enumerate(lines):
        set_in = re.match(r" {3,}\S", text) is not None
        ends = set_in and not (i + 1 < len(lines) and re.match(r" {3,}\S", lines[i + 1]))
        if set_in:
            text = (" " if literal else r" \verbatim ") + text.strip(" ") + (r" \endverbatim" if ends else "")
            literal = not ends
        else:
            text = escaped(text)
        out.append(indent + mark + text)
    return out


def documented(source):
    lines = source.split("\n")
    out, i = [], 0
    if lines and lines[0].startswith("// SPDX"):
        out.append(r"/// \file")
        i = 1
    of_file = i == 1
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
                out += [r"/// \file"] + block([f" {title.group(1).capitalize()}: {texts[1].strip()}", *texts[2:]], "///", indent)
            elif of_file or not (stands_alone or texts[0].startswith(" ----")):
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
