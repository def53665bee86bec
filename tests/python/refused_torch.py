#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""refused_torch.py SOURCES BUILD: configuring the package for a Python whose torch is of another
version, or that has none, must end with one message that says which version is wanted and which
came, before a compiler is even looked for."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

sources, build = Path(sys.argv[1]), Path(sys.argv[2])
wanted = re.search(r'"torch==([0-9.]+)"', (sources / "pyproject.toml").read_text()).group(1)
shutil.rmtree(build, ignore_errors=True)
site = build / "site"
(site / "torch").mkdir(parents=True)
(site / "torch/__init__.py").write_text("")
(site / "torch-2.3.1.dist-info").mkdir()
(site / "torch-2.3.1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.3.1\n")
(build / "none").mkdir()
# An empty home of Python's: nothing but the standard library is to be seen.
subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(build / "venv")], check=True)
python = build / "venv/bin/python"
for path, says in (
    (site, f"torch {wanted} is needed, and {site}/torch is torch 2.3.1"),
    (build / "none", f"torch {wanted} is needed, and {python} has none"),
):
    done = subprocess.run(
        [
            "cmake",
            "-G",
            "Ninja",
            "-S",
            str(sources),
            "-B",
            str(build / "cmake" / path.name),
            f"-DPython_EXECUTABLE={python}",
            "-DCMAKE_CXX_COMPILER=/nowhere/c++",
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(path)},
    )
    said = re.sub(r"\s+", " ", done.stderr)
    assert (
        done.returncode != 0 and says in said and "pip install torch==" + wanted in said and "/nowhere" not in said
    ), done.stderr
