#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""build_package.py TORCH_VERSION ESPALIER_DIR SOURCES BUILD SITE: builds bindings/python against an
installed Espalier and puts the package into SITE; before that it configures what pip does without
one, the sources with a prefix of pip's own. Ends with 77 (skipped) where Python has no torch of this
version or no headers of its own."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

version, installed, sources, build, site = sys.argv[1:]
try:
    import torch
except (ImportError, OSError) as missing:
    print(f"skipped: {missing}")
    sys.exit(77)
if torch.__version__.split("+")[0] != version:
    print(f"skipped: Python has torch {torch.__version__}, the library was built with {version}")
    sys.exit(77)
if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
    print("skipped: no Python.h (python3-dev)")
    sys.exit(77)
ccache = shutil.which("ccache") or ""
configure = ["cmake", "-G", "Ninja", "-S", sources, f"-DPython_EXECUTABLE={sys.executable}"]
for command in (
    [*configure, "-B", f"{build}/from_sources", f"-DCMAKE_PREFIX_PATH={build}"],
    [*configure, "-B", build, f"-DEspalier_DIR={installed}", f"-DCMAKE_CXX_COMPILER_LAUNCHER={ccache}"],
    ["cmake", "--build", build],
    ["cmake", "--install", build, "--prefix", site, "--component", "python"],
):
    subprocess.run(command, check=True)
