# SPDX-License-Identifier: Apache-2.0
"""What the Python tests of the server share: `espalier serve` in a process of its own, and an end for tests that cannot run here."""
import contextlib
import re
import subprocess
import sys


def skip(why):
    print(f"skipped: {why}")
    sys.exit(77)


@contextlib.contextmanager
def served(espalier, *arguments):
    """Yields (process, port) of a server on a free port; it is told to stop behind the block, and must end well."""
    process = subprocess.Popen([espalier, "serve", "--port", "0", *arguments], stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        found = re.search(r":(\d+)$", line.strip())
        if not found:
            raise SystemExit(f"the server did not start: {line!r}, status {process.poll()}")
        yield process, int(found.group(1))
        if process.poll() is None:
            process.terminate()
            if process.wait(timeout=60) != 0:
                raise SystemExit(f"the server ended with {process.returncode}")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
