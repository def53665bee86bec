#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of bench/serve_load.py, with a connection and a clock of its own: what it measures is known to the millisecond."""
import argparse
import importlib.util
import json
import pathlib
import random
import tempfile
import unittest
import urllib.parse

spec = importlib.util.spec_from_file_location("serve_load", pathlib.Path(__file__).parents[2] / "bench" / "serve_load.py")
serve_load = importlib.util.module_from_spec(spec)
spec.loader.exec_module(serve_load)

URL = urllib.parse.urlparse("http://127.0.0.1:1")


class Connection:
    """Plays `script`, pairs of (seconds until then, event), while its clock goes on."""

    script, now = [], 0.0
    status = 200

    def __init__(self, *_, **__):
        pass

    def request(self, *_):
        pass

    def getresponse(self):
        return self

    def close(self):
        pass

    def __iter__(self):
        for seconds, event in Connection.script:
            Connection.now += seconds
            yield b"data: " + (event if isinstance(event, bytes) else json.dumps(event).encode()) + b"\n"
            yield b"\n"


def text(content):
    return {"choices": [{"delta": {"content": content}}]}


class ServeLoad(unittest.TestCase):
    def setUp(self):
        kept = serve_load.http.client.HTTPConnection, serve_load.time.perf_counter
        serve_load.http.client.HTTPConnection, serve_load.time.perf_counter = Connection, lambda: Connection.now

        def put_back():
            serve_load.http.client.HTTPConnection, serve_load.time.perf_counter = kept

        self.addCleanup(put_back)

    def test_times_are_of_events_with_text(self):
        Connection.script = [(1, text("")), (2, text("a")), (0.25, text("b")), (4, {"choices": [{"delta": {}}]}),
                             (0.5, text("c")), (8, {"choices": [], "usage": {"completion_tokens": 5, "prompt_tokens": 7}}),
                             (16, b"[DONE]")]
        self.assertEqual(serve_load.ask(URL, "", 1), serve_load.Answer(first=3, gaps=[0.25, 4.5], tokens=5, prompt_tokens=7))

    def test_an_answer_without_text_is_an_error(self):
        Connection.script = [(1, text("")), (1, {"choices": [], "usage": {"completion_tokens": 5}})]
        with self.assertRaises(RuntimeError):
            serve_load.ask(URL, "", 1)

    def test_percentiles(self):
        in_ms = serve_load.percentiles([n / 1000 for n in range(101, 0, -1)], 3)  # 1 to 101 ms: the p-th is p + 1
        self.assertEqual(in_ms, {"p50": 51, "p95": 96, "p99": 100})
        self.assertEqual(serve_load.percentiles([0.002], 3), {"p50": 2, "p95": 2, "p99": 2})
        self.assertEqual(serve_load.percentiles([], 3), {"p50": None, "p95": None, "p99": None})

    def test_gaps_are_pooled_and_tokens_are_of_each_request(self):
        measured = serve_load.Measurement()
        measured.add(1, serve_load.Answer(1.0, [0.1, 0.1, 0.1, 0.1], 5, 7, kept=0.25))
        measured.add(0, serve_load.Answer(3.0, [0.3], 2, 7))
        row = measured.row(2.0, None)
        self.assertEqual(row["requests_per_s"], 1.0)
        self.assertEqual(row["tokens_per_s"], 3.5)
        self.assertEqual(row["prompt_tokens"], [7])
        self.assertEqual(row["first_token_ms"]["p50"], 2000)
        self.assertEqual(row["between_tokens_ms"]["p50"], 100)
        self.assertEqual(row["per_token_ms"]["p50"], 200)
        self.assertEqual(row["samples"], {"first_token": 2, "between_tokens": 5, "per_token": 2})
        self.assertEqual(row["kept"], [None, 0.25])
        self.assertNotIn("in_time", row)

    def test_who_failed_is_late(self):
        measured = serve_load.Measurement()
        for number, first in enumerate((0.5, 1.0, 1.5)):
            measured.add(number, serve_load.Answer(first, [], 1, 7))
        measured.fail("503")
        self.assertEqual(measured.row(2.0, 1000)["in_time"], 0.5)

    def test_what_is_kept_is_told_with_the_usage(self):
        self.assertEqual(serve_load.kept_share({"image_tokens": 144, "pruned_tokens": 108}), 0.25)
        self.assertIsNone(serve_load.kept_share({"image_tokens": 0, "pruned_tokens": 0}))
        self.assertIsNone(serve_load.kept_share({"cached_tokens": 3}))

    def test_capacity_is_the_best_closed_loop_of_the_same_requests(self):
        rows = [{"policy": "none", "loop": loop, "demonstrations": demonstrations, "requests_per_s": rate}
                for loop, demonstrations, rate in (("closed", "own", 1), ("closed", "own", 3), ("closed", "own", 2),
                                                   ("closed", "shared", 9), ("open 1.1", "own", 8))]
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
            file.flush()
            self.assertEqual(serve_load.capacities(file.name, {"demonstrations": "own"}), {"none": 3})

    def test_arrivals_have_their_rate(self):
        at = serve_load.poisson(random.Random(0), 4.0, 20_001)
        gaps = [b - a for a, b in zip(at, at[1:])]
        self.assertEqual(at[0], 0)
        self.assertAlmostEqual(sum(gaps) / len(gaps), 0.25, delta=0.01)
        # Of exponential gaps the part longer than the mean is 1/e.
        self.assertAlmostEqual(sum(gap > 0.25 for gap in gaps) / len(gaps), 0.368, delta=0.02)

    def test_another_seed_gives_other_requests_with_the_same_shared_demonstrations(self):
        def pictures(seed, demonstrations, number):
            args = argparse.Namespace(seed=seed, demonstrations=demonstrations, shots=2, size=56, new_tokens=1, temperature=0.0,
                                      model=None, plain=True, fields={})
            messages = json.loads(serve_load.Prompts(args).body(number, "none"))["messages"]
            return [message["content"][0]["image_url"]["url"] for message in messages if message["role"] == "user"]

        self.assertEqual(pictures(1, "own", 3), pictures(1, "own", 3))
        own = [picture for seed in (1, 2) for number in range(40) for picture in pictures(seed, "own", number)]
        self.assertEqual(len(set(own)), len(own))
        self.assertEqual(pictures(1, "shared", 3)[:2], pictures(2, "shared", 4)[:2])
        self.assertNotEqual(pictures(1, "shared", 3)[2], pictures(2, "shared", 3)[2])


if __name__ == "__main__":
    unittest.main()
