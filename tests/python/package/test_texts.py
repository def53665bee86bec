# SPDX-License-Identifier: Apache-2.0
"""What is written about the package: types, the code of its page, the example."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import espalier
from conftest import SOURCES

HERE = Path(__file__).parent


def test_types(tmp_path):
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("no mypy")
    package = Path(espalier.__file__).parent
    assert (package / "py.typed").exists()
    # Of the installed package alone, as a user's checker sees it: torch's own files are followed,
    # and not complained about. What else lies beside it would be taken for the user's.
    (tmp_path / "espalier").symlink_to(package)
    check = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--no-incremental",
        "--cache-dir",
        "/dev/null",
        "--follow-imports",
        "silent",
        "-p",
        "espalier",
    ]
    done = subprocess.run(check, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_another_torch_is_refused_before_anything_is_loaded(tmp_path):
    (tmp_path / "torch.py").write_text("__version__ = '2.3.1'")
    program = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(Path(espalier.__file__).parents[1])!r}]; import espalier"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert re.search(
        r"ImportError: espalier was built for torch [0-9.]+, and .*torch.py is torch 2.3.1: pip", done.stderr
    )


def test_every_name_has_a_place():
    assert [name for name in espalier.__all__ if not hasattr(espalier, name)] == []
    stub = (Path(espalier.__file__).parent / "_native.pyi").read_text()
    for name in dir(espalier._native):
        if not name.startswith("__"):
            assert re.search(rf"\b{name}\b", stub), f"_native.pyi says nothing of {name}"


def blocks_of(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.S)


def test_the_code_of_the_page_runs(tmp_path, monkeypatch):
    """All blocks of docs/python.md, one after another in one program, in a folder with the pictures
    that they name."""
    blocks = blocks_of(SOURCES / "docs/python.md")
    assert len(blocks) >= 5
    for name, file in (("cat.png", "4.png"), ("dog.png", "0.png")):
        (tmp_path / name).write_bytes((SOURCES / "examples/demo/shape" / file).read_bytes())
    program = tmp_path / "page.py"
    program.write_text("\n".join(blocks))
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, cwd=tmp_path, timeout=600)
    assert done.returncode == 0, done.stderr


def test_the_example(tmp_path):
    done = subprocess.run(
        [sys.executable, str(SOURCES / "examples/python/own_policy.py"), str(tmp_path), "4"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"sharpest:keep_ratio=1/4 +\d+ of \d+", done.stdout), done.stdout
    assert (tmp_path / "kept.html").read_text().count("sharpest:keep_ratio=1/4") > 0
    assert (tmp_path / "accuracy.png").exists() == (importlib.util.find_spec("matplotlib") is not None)
