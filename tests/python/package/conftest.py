# SPDX-License-Identifier: Apache-2.0
"""What the tests of the package share: an engine with the bundled model, its pictures, and the
command line to compare with."""

import json
import subprocess
from pathlib import Path

import pytest

import espalier

SOURCES = Path(__file__).parents[3]


def pytest_addoption(parser):
    parser.addoption(
        "--program", default=str(SOURCES / "build/release/bin/espalier"), help="the espalier of the command line"
    )


@pytest.fixture(scope="session")
def engine():
    with espalier.Engine() as loaded:
        yield loaded


@pytest.fixture(scope="session")
def demo():
    return SOURCES / "examples/demo/shape"


@pytest.fixture(scope="session")
def picture(demo):
    return demo / "4.png"


@pytest.fixture(scope="session")
def chat(demo):
    """Four examples, each with its picture, and the question."""
    return espalier.read_chat(demo / "messages.json")


@pytest.fixture(scope="session")
def program(request):
    """Runs a command of the command line on the bundled model and returns what it printed."""

    def run(command, *arguments, with_model=True):
        model = ["--model", str(SOURCES / "models/demo")] if with_model else []
        done = subprocess.run(
            [request.config.getoption("--program"), command, *model, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    return run


@pytest.fixture(scope="session")
def generated(program):
    """What `espalier generate --json` says."""
    return lambda *arguments: json.loads(program("generate", "--json", *arguments))
