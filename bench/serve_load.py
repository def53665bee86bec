#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Load on a server that speaks OpenAI's chat completions: throughput, time to the first token and between tokens.

    python bench/serve_load.py --url http://127.0.0.1:8080 --policy none --policy catp:keep_ratio=2/9 \\
        --clients 1,2,4,8 --open-loop 0.5,0.8,1.1 --out load.jsonl

Closed loop: each of N clients asks again as soon as it was answered. Open loop: requests arrive at random (Poisson), at a
part of the policy's capacity, which is the best that its closed loops did, here or in the lines of `--capacity-from`.
Pictures are drawn here from the seed and sent as data URIs; another `--seed`, and no request is one that a server has seen
before. `--demonstrations shared`: all requests begin with the same demonstrations, whatever the seed; `own`: each has its
own. The policy goes into the field `pruning`; `none` sends none, so that any server can be asked, and `--fields` adds what
another server wants (for llama-server: '{"ignore_eos": true, "cache_prompt": false}').

One JSON line per measurement; a table at the end. `first_token_ms`: from the request to its first text. `between_tokens_ms`:
from each event with text to the next, over all requests. `per_token_ms`: of each request, first text to last over the
tokens behind the first. A server that sends an event per token, of a model whose every token is text (make_checkpoint),
has all tokens in them; `samples` says how many. `kept`: of each request in the order in which they came, the share of
its image tokens that stayed to the end, from a server that says how many it dropped. `in_time`: the share of requests
whose first text came within `--within` milliseconds. Percentiles are interpolated. Only the standard library is used.
"""

import argparse
import base64
import http.client
import json
import queue
import random
import statistics
import struct
import sys
import threading
import time
import typing
import urllib.parse
import zlib


def png(width, height, seed):
    """A picture of coloured blocks."""
    rng = random.Random(seed)
    block = 28
    columns = (width + block - 1) // block
    rows = []
    for y in range(height):
        if y % block == 0:
            colours = [bytes(rng.randrange(256) for _ in range(3)) for _ in range(columns)]
            line = b"".join(colour * block for colour in colours)[: 3 * width]
        rows.append(b"\0" + line)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"".join(rows), 1)) + chunk(b"IEND", b"")


def image_part(seed, size):
    data = base64.b64encode(png(size, size, seed)).decode()
    return {"type": "image_url", "image_url": {"url": "data:image/png;base64," + data}}


class Prompts:
    """Demonstrations and a query; the same number gives the same request."""

    def __init__(self, args):
        self.args = args
        self.shared = [image_part(f"shared {shot}", args.size) for shot in range(args.shots)]

    def body(self, number, policy):
        a = self.args
        shots = self.shared
        if a.demonstrations == "own":
            shots = [image_part(f"own {a.seed} {number} {shot}", a.size) for shot in range(a.shots)]
        messages = []
        for shot, image in enumerate(shots):
            messages.append({"role": "user", "content": [image, {"type": "text", "text": f"What is shown in picture {shot}?"}]})
            messages.append({"role": "assistant", "content": f"A pattern of kind {shot}."})
        query = image_part(f"query {a.seed} {number}", a.size)
        messages.append({"role": "user", "content": [query, {"type": "text", "text": f"What is shown here, number {number:06}?"}]})
        body = {"messages": messages, "max_tokens": a.new_tokens, "temperature": a.temperature, "seed": number, "stream": True,
                "stream_options": {"include_usage": True}}
        if a.model:
            body["model"] = a.model
        if not a.plain:
            body["ignore_eos"] = True
        if policy != "none":
            body["pruning"] = policy
        return json.dumps({**body, **a.fields})


def ask(url, body, timeout):
    """One request, as an Answer."""
    began = time.perf_counter()
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=timeout)
    try:
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {response.read(300).decode(errors='replace')}")
        times, usage = [], {}
        for line in response:
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                continue
            event = json.loads(line[6:])
            usage = event.get("usage") or usage
            if any(choice.get("delta", {}).get("content") for choice in event.get("choices", [])):
                times.append(time.perf_counter())
        if not times:
            raise RuntimeError("an answer without text: no time to a first token")
        return Answer(times[0] - began, [b - a for a, b in zip(times, times[1:])],
                      usage.get("completion_tokens", len(times)), usage.get("prompt_tokens"),
                      kept_share(usage.get("prompt_tokens_details") or {}))
    finally:
        connection.close()


def kept_share(details):
    images, dropped = details.get("image_tokens"), details.get("pruned_tokens")
    return round(1 - dropped / images, 4) if images and dropped is not None else None


class Answer(typing.NamedTuple):
    first: float  # seconds to the first text
    gaps: list  # seconds from each event with text to the next
    tokens: int
    prompt_tokens: int | None  # where the server says
    kept: float | None = None  # likewise


def percentiles(seconds, digits):
    """p50, p95 and p99 in milliseconds; None where there is nothing."""
    if not seconds:
        return dict.fromkeys(("p50", "p95", "p99"))
    cuts = statistics.quantiles(seconds * 2 if len(seconds) == 1 else seconds, n=100, method="inclusive")
    return {f"p{p}": round(1e3 * cuts[p - 1], digits) for p in (50, 95, 99)}


class Measurement:
    def __init__(self):
        self.lock = threading.Lock()
        self.answer_of, self.errors = {}, []

    def add(self, number, answer):
        with self.lock:
            self.answer_of[number] = answer

    def fail(self, error):
        with self.lock:
            self.errors.append(str(error))

    def row(self, seconds, within_ms):
        answers = [self.answer_of[number] for number in sorted(self.answer_of)]
        first = [a.first for a in answers]
        gaps = [gap for a in answers for gap in a.gaps]
        each = [sum(a.gaps) / (a.tokens - 1) for a in answers if a.tokens > 1]
        within = {}
        if within_ms is not None:
            on_time = sum(1e3 * f <= within_ms for f in first)
            within = {"within_ms": within_ms, "in_time": round(on_time / max(1, len(first) + len(self.errors)), 4)}
        return {"requests": len(first), "errors": len(self.errors), "seconds": round(seconds, 3),
                "requests_per_s": round(len(first) / seconds, 4),
                "tokens_per_s": round(sum(a.tokens for a in answers) / seconds, 2),
                "prompt_tokens": sorted({a.prompt_tokens for a in answers if a.prompt_tokens}),
                "first_token_ms": percentiles(first, 1), "between_tokens_ms": percentiles(gaps, 2), "per_token_ms": percentiles(each, 2),
                "samples": {"first_token": len(first), "between_tokens": len(gaps), "per_token": len(each)},
                "kept": [a.kept for a in answers], **within}


def run(url, bodies, num_clients, timeout, arrivals=None):
    """All bodies through `num_clients` threads; `arrivals`: when each may start, seconds from now."""
    measured, waiting = Measurement(), queue.SimpleQueue()
    for i, body in enumerate(bodies):
        waiting.put((i, arrivals[i] if arrivals else 0.0, body))
    began = time.perf_counter()

    def client():
        while True:
            try:
                number, at, body = waiting.get_nowait()
            except queue.Empty:
                return
            time.sleep(max(0.0, began + at - time.perf_counter()))
            try:
                measured.add(number, ask(url, body, timeout))
            except (OSError, RuntimeError, ValueError, http.client.HTTPException) as error:
                measured.fail(error)

    threads = [threading.Thread(target=client) for _ in range(num_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return measured, time.perf_counter() - began


def print_table(rows):
    print("p50, p95, p99 in ms")
    print("| policy | loop | clients | requests | requests/s | first token | between tokens | per token | errors |")
    print("|---|---|--:|--:|--:|--:|--:|--:|--:|")
    for r in rows:
        times = [", ".join("" if v is None else f"{v:.{digits}f}" for v in r[key].values())
                 for key, digits in (("first_token_ms", 0), ("between_tokens_ms", 1), ("per_token_ms", 1))]
        print(f"| `{r['policy']}` | {r['loop']} | {r['clients'] or ''} | {r['requests']} | {r['requests_per_s']:.3f} | "
              f"{' | '.join(times)} | {r['errors']} |")


def numbers(text):
    return [float(n) if "." in n else int(n) for n in text.split(",") if n]


def poisson(rng, per_s, count):
    """When each of `count` requests arrives, in seconds; the first at once."""
    at = [0.0]
    while len(at) < count:
        at.append(at[-1] + rng.expovariate(per_s))
    return at


def capacities(path, alike):
    """policy -> the most requests per second of the closed loops in a file of lines that agree with `alike`."""
    best = {}
    with open(path, encoding="utf-8") as file:
        for row in map(json.loads, file):
            if row["loop"] == "closed" and all(row.get(key) == value for key, value in alike.items()):
                best[row["policy"]] = max(best.get(row["policy"], 0.0), row["requests_per_s"])
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--model", help="a name for servers that want one")
    parser.add_argument("--policy", action="append", help="a spec, or none; may be given several times")
    parser.add_argument("--clients", type=numbers, default=[1, 2, 4, 8], help="closed loop, for example 1,2,4")
    parser.add_argument("--open-loop", type=numbers, default=[], help="parts of the capacity, for example 0.5,0.8")
    parser.add_argument("--capacity-from", metavar="FILE", help="earlier lines of this program, of the same kind of request")
    parser.add_argument("--requests", type=int, default=8, help="per measurement, and at least one per client")
    parser.add_argument("--demonstrations", choices=["shared", "own"], default="own")
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--size", type=int, default=336, help="pixels of a picture's side")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--temperature", type=float, default=0.0,
                        help="0: greedy; weights that are random say nothing without sampling")
    parser.add_argument("--plain", action="store_true", help="send no field that OpenAI's protocol has not")
    parser.add_argument("--fields", type=json.loads, default={}, metavar="JSON", help="added to each request")
    parser.add_argument("--warm-up", type=int, default=1, help="requests of each policy that are not counted")
    parser.add_argument("--rounds", type=int, default=1, help="policies take turns in each")
    parser.add_argument("--seed", type=int, default=0, help="of pictures and arrivals")
    parser.add_argument("--timeout", type=float, default=600.0)
    parser.add_argument("--within", type=float, metavar="MS", help="count whose first text came within this time")
    parser.add_argument("--label", default="", help="kept in each line")
    parser.add_argument("--out", help="JSON lines are added to this file")
    args = parser.parse_args()
    url, prompts, rng = urllib.parse.urlparse(args.url), Prompts(args), random.Random(args.seed)
    policies = args.policy or ["none"]
    request = {"demonstrations": args.demonstrations, "shots": args.shots, "size": args.size, "new_tokens": args.new_tokens}
    capacity, rows, number = {}, [], 0
    if args.capacity_from:
        capacity = capacities(args.capacity_from, {"label": args.label, **request})
    unknown = [] if args.clients or not args.open_loop else [policy for policy in policies if not capacity.get(policy)]
    if unknown:
        parser.error(f"--open-loop: the capacity of {unknown[0]} is not known: give --clients, or --capacity-from a file that has it")

    def bodies_of(policy, count):
        nonlocal number
        number += count
        return [prompts.body(i, policy) for i in range(number - count, number)]

    def measure(policy, loop, clients, arrivals_per_s=None):
        count = max(args.requests, clients or 1)
        bodies = bodies_of(policy, count)
        if arrivals_per_s:
            measured, seconds = run(url, bodies, count, args.timeout, poisson(rng, arrivals_per_s, count))
        else:
            measured, seconds = run(url, bodies, clients, args.timeout)
        row = {"label": args.label, "policy": policy, "loop": loop, "clients": clients, "arrivals_per_s": arrivals_per_s,
               **request, "seed": args.seed, **measured.row(seconds, args.within)}
        for error in sorted(set(measured.errors))[:3]:
            print(f"{policy}: {error}", file=sys.stderr)
        rows.append(row)
        if args.out:
            with open(args.out, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        return row

    for policy in policies:  # first touches: memory, caches of the shared demonstrations
        for body in bodies_of(policy, args.warm_up):
            ask(url, body, args.timeout)
    for _ in range(args.rounds):
        for clients in args.clients:
            for policy in policies:
                row = measure(policy, "closed", int(clients))
                capacity[policy] = max(capacity.get(policy, 0.0), row["requests_per_s"])
        for share in args.open_loop:
            for policy in policies:
                measure(policy, f"open {share}", None, round(share * capacity[policy], 4))
    print_table(rows)
    return 1 if any(r["errors"] for r in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
