# SPDX-License-Identifier: Apache-2.0
"""Programs that end while something runs: in processes of their own, which must end by themselves,
with status 0 and without a word."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PROGRAMS = {
    "a call in a thread": """
        answers = []  # torch gives the lock up while it frees a tensor, and the thread would be ended in there
        def ask():
            answers.append(engine.generate("what?", [picture], policy=Norms(), on_token=slow, **LONG))
        threading.Thread(target=ask, daemon=True).start()
        begun.wait()
        """,
    "a scheduler with requests": """
        scheduler = espalier.Scheduler(engine)
        tickets = [scheduler.submit("what?", [picture], policy=Norms(), on_token=slow, **LONG) for _ in range(4)]
        begun.wait()
        """,
    "a ticket that nobody waits for": """
        espalier.Scheduler(engine).submit("what?", [picture], policy=Norms(), on_token=slow, **LONG)
        """,
    "a session and what it holds": """
        session = espalier.Session(engine, Norms())
        session.ask("what?", [picture], on_token=lambda *_: None)
        """,
    "objects in a cycle, in any order": """
        class Holder:
            pass
        holder = Holder()
        holder.self, holder.engine, holder.seen = holder, engine, engine.look_at(picture)
        holder.session, holder.policy = espalier.Session(engine, Norms()), espalier.chain([Norms(), "none"])
        holder.result = engine.generate("what?", [holder.seen], policy=holder.policy)
        del engine
        """,
    "an exception that carries all of it": """
        def fail(*_):
            begun.set()
            raise SystemExit(0)
        engine.generate("what?", [picture], on_token=fail)
        """,
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_ends(name, picture):
    program = textwrap.dedent("""
        import sys, threading, time
        sys.path.insert(0, sys.argv[2])
        import espalier
        from own_policies import Norms
        picture = sys.argv[1]
        engine = espalier.Engine(options=espalier.EngineOptions(prefix_cache_bytes=1 << 26))
        LONG = dict(ignore_eos=True, max_new_tokens=400)
        begun = threading.Event()
        def slow(*_):
            begun.set()
            time.sleep(0.01)
        """) + textwrap.dedent(PROGRAMS[name])
    done = subprocess.run(
        [sys.executable, "-c", program, str(picture), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = [line for line in done.stderr.splitlines() if "NumPy" not in line]
    assert (done.returncode, said) == (0, [])
