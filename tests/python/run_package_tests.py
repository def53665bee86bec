#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""run_package_tests.py TORCH_VERSION SITE FILE ARGUMENT...: pytest on the package that lies in
SITE, or ends with 77 (skipped) where Python has no torch of this version, no pytest, or the package
is not there."""

import importlib.util
import os
import sys
from pathlib import Path

version, site, file, *arguments = sys.argv[1:]


def skip(why):
    print(f"skipped: {why}")
    sys.exit(77)


try:
    import torch
except (ImportError, OSError) as missing:
    skip(missing)
if torch.__version__.split("+")[0] != version:
    skip(f"Python has torch {torch.__version__}, the library was built with {version}")
for needed in ("pytest", "numpy", "PIL"):
    if importlib.util.find_spec(needed) is None:
        skip(f"Python has no {needed}")
if not (Path(site) / "espalier").is_dir():
    skip(f"no package in {site}: python.package.build was skipped")
sys.path.insert(0, site)
os.environ["PYTHONPATH"] = os.pathsep.join([site, os.environ.get("PYTHONPATH", "")])  # of the tests' own processes
import pytest

sys.exit(pytest.main(["-p", "no:cacheprovider", str(Path(__file__).parent / "package" / file), *arguments]))
