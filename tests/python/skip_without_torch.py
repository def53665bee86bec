#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""skip_without_torch.py TORCH_VERSION SCRIPT ARGUMENT...: runs a script of examples/, or ends with 77 (skipped) where Python has no torch
of this version."""
import runpy
import sys

version, script, *arguments = sys.argv[1:]
try:
    import torch
except (ImportError, OSError) as missing:  # OSError: a library that torch itself needs
    print(f"skipped: {missing}")
    sys.exit(77)
if torch.__version__.split("+")[0] != version:
    print(f"skipped: Python has torch {torch.__version__}, the library was built with {version}")
    sys.exit(77)
sys.argv = [script, *arguments]
runpy.run_path(script, run_name="__main__")
