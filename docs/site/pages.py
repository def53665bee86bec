#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""pages.py PAGE: prints a Markdown page as Doxygen reads it, line by line, so that warnings name the right one.

Pages and headers that the text names by their path, in backticks or as a link, become links of the site; links to other files become
their words. Headings get anchors, whose names are the repository's viewers' behind the page's own.
"""
import pathlib
import re
import sys

root = pathlib.Path.cwd()


def page_id(path):
    """The name of a page's HTML file."""
    if path == pathlib.Path("README.md"):
        return "index"
    return ("spec_" if path.parent.name == "specs" else "") + path.stem.lower()


def slug(heading):
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def link(page, path, anchor, words):
    """A link to a page or header of the site; None for what is not there. Those that docs/methods.md lists are below it."""
    if page == pathlib.Path("docs/methods.md") and path.parent.name == "specs":
        return f'@subpage {page_id(path)} "{words}"'
    if path.suffix == ".md" and (path.parts[0] in ("docs", "include") or len(path.parts) == 1):
        return f'@ref {page_id(path)}{"-" + anchor if anchor else ""} "{words}"'
    if path.suffix == ".h" and path.parts[0] == "include":
        return f'@ref {path.relative_to("include")} "{words}"'
    return None


def rewritten(text, page):
    """A line outside of code."""

    def of_link(match):
        words, target = match.group(1), match.group(2)
        if re.match(r"[a-z]+:", target):
            return match.group(0)
        name, _, anchor = target.partition("#")
        path = (root / page.parent / name).resolve().relative_to(root) if name else page
        return link(page, path, anchor, words.replace("`", "")) or words

    def of_code(match):
        name = match.group(1)
        path = pathlib.Path(name)
        there = path.suffix in (".md", ".h") and "*" not in name and (root / path).is_file()
        return (there and link(page, path, "", name)) or match.group(0)

    text = re.sub(r"<!--.*?-->", "", text)
    text = re.sub(r"!\[([^\]]*)\]\(([^)]*)\)", r'@image html \2 "\1"', text)
    parts = re.split(r"(\[[^\]]*\]\([^)]+\)|`[^`]+`)", text)
    for i, part in enumerate(parts):
        if i % 2 == 0:
            if not part.startswith("@image"):
                parts[i] = re.sub(r"([\\@<&#])", r"\\\1", part)
        elif part.startswith("["):
            parts[i] = re.sub(r"^\[(.*)\]\((.*)\)$", lambda m: of_link(m), part)
        else:
            parts[i] = re.sub(r"^`(.*)`$", of_code, part)
    return "".join(parts)


def for_the_site(source, page):
    fence, in_comment, out = None, False, []
    for line in source.split("\n"):
        opening = re.match(r"^ *(```+|~~~+)", line)
        if fence:
            if opening and line.strip() == fence:
                fence = None
        elif opening:
            fence = opening.group(1)
        elif in_comment or (line.startswith("<!--") and "-->" not in line):
            in_comment, line = "-->" not in line, ""
        elif heading := re.match(r"^(#+) (.*)$", line):
            name = page_id(page)
            # The main page has a name of its own.
            anchor = f"{name}-{slug(heading.group(2))}" if heading.group(1) != "#" else "" if name == "index" else name
            words = heading.group(2) if anchor != name else heading.group(2).replace("`", "")  # a title is shown where there is no code
            line = f"{heading.group(1)} {rewritten(words, page)}" + (f" {{#{anchor}}}" if anchor else "")
        elif not line.startswith("    "):
            line = rewritten(line, page)
        out.append(line)
    return "\n".join(out)


file = pathlib.Path(sys.argv[1]).resolve()
print(for_the_site(file.read_text(encoding="utf-8"), file.relative_to(root)), end="")
