#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Load on a server that speaks OpenAI's chat completions: throughput, time to the first token and time per token.

    python bench/serve_load.py --url http://127.0.0.1:8080 --policy none --policy catp:keep_ratio=2/9 \\
        --clients 1,2,4,8 --open-loop 0.5,0.8,1.1 --out load.jsonl

Closed loop: each of N clients asks again as soon as it was answered. Open loop: requests arrive at random (Poisson), at a
part of the capacity that the closed loop with the most clients showed for the policy. Pictures are drawn here from a seed
and sent as data URIs. `--demonstrations shared`: all requests begin with the same demonstrations; `own`: each has its own.
The policy goes into the field `pruning`; `none` sends none, so that any server can be asked. One JSON line per
measurement; a table at the end. Only the standard library is used.
"""

import argparse
import base64
import http.client
import json
import queue
import random
import struct
import sys
import threading
import time
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
        self.shared = [image_part(1000 + shot, args.size) for shot in range(args.shots)]

    def body(self, number, policy):
        a = self.args
        shots = self.shared
        if a.demonstrations == "own":
            shots = [image_part(2000 + 100 * number + shot, a.size) for shot in range(a.shots)]
        messages = []
        for shot, image in enumerate(shots):
            messages.append({"role": "user", "content": [image, {"type": "text", "text": f"What is shown in picture {shot}?"}]})
            messages.append({"role": "assistant", "content": f"A pattern of kind {shot}."})
        query = image_part(5000 + number, a.size)
        messages.append({"role": "user", "content": [query, {"type": "text", "text": f"What is shown here, number {number}?"}]})
        body = {"messages": messages, "max_tokens": a.new_tokens, "temperature": a.temperature, "seed": number, "stream": True,
                "stream_options": {"include_usage": True}}
        if a.model:
            body["model"] = a.model
        if not a.plain:
            body["ignore_eos"] = True
        if policy != "none":
            body["pruning"] = policy
        return json.dumps(body)


def ask(url, body, timeout):
    """-> (seconds to the first token, seconds between the first and the last, tokens)."""
    began = time.perf_counter()
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=timeout)
    try:
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {response.read(300).decode(errors='replace')}")
        first = last = None
        pieces, tokens = 0, None
        for line in response:
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                continue
            event = json.loads(line[6:])
            if event.get("usage"):
                tokens = event["usage"]["completion_tokens"]
            if any(choice.get("delta", {}).get("content") for choice in event.get("choices", [])):
                last = time.perf_counter()
                first = first or last
                pieces += 1
        if first is None:  # tokens that make no text
            first = last = time.perf_counter()
        return first - began, last - first, tokens if tokens is not None else pieces
    finally:
        connection.close()


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


class Measurement:
    def __init__(self):
        self.lock = threading.Lock()
        self.first, self.each, self.tokens, self.errors = [], [], 0, []

    def add(self, answer):
        to_first, rest, tokens = answer
        with self.lock:
            self.first.append(to_first)
            self.tokens += tokens
            if tokens > 1:
                self.each.append(rest / (tokens - 1))

    def fail(self, error):
        with self.lock:
            self.errors.append(str(error))

    def row(self, seconds):
        return {"requests": len(self.first), "errors": len(self.errors), "seconds": round(seconds, 3),
                "requests_per_s": round(len(self.first) / seconds, 4), "tokens_per_s": round(self.tokens / seconds, 2),
                "first_token_ms": {f"p{round(100 * p)}": round(1e3 * percentile(self.first, p), 1) for p in (0.5, 0.95, 0.99)},
                "per_token_ms": {f"p{round(100 * p)}": round(1e3 * percentile(self.each, p), 2) for p in (0.5, 0.95, 0.99)}}


def run(url, bodies, num_clients, timeout, arrivals=None):
    """All bodies through `num_clients` threads; `arrivals`: when each may start, seconds from now."""
    measured, waiting = Measurement(), queue.SimpleQueue()
    for i, body in enumerate(bodies):
        waiting.put((arrivals[i] if arrivals else 0.0, body))
    began = time.perf_counter()

    def client():
        while True:
            try:
                at, body = waiting.get_nowait()
            except queue.Empty:
                return
            time.sleep(max(0.0, began + at - time.perf_counter()))
            try:
                measured.add(ask(url, body, timeout))
            except (OSError, RuntimeError, ValueError, http.client.HTTPException) as error:
                measured.fail(error)

    threads = [threading.Thread(target=client) for _ in range(num_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return measured, time.perf_counter() - began


def numbers(text):
    return [float(n) if "." in n else int(n) for n in text.split(",") if n]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--model", help="a name for servers that want one")
    parser.add_argument("--policy", action="append", help="a spec, or none; may be given several times")
    parser.add_argument("--clients", type=numbers, default=[1, 2, 4, 8], help="closed loop, for example 1,2,4")
    parser.add_argument("--open-loop", type=numbers, default=[], help="parts of the capacity, for example 0.5,0.8")
    parser.add_argument("--requests", type=int, default=8, help="per measurement, and at least one per client")
    parser.add_argument("--demonstrations", choices=["shared", "own"], default="own")
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--size", type=int, default=336, help="pixels of a picture's side")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--temperature", type=float, default=0.0,
                        help="0: greedy; weights that are random say nothing without sampling")
    parser.add_argument("--plain", action="store_true", help="send no field of Espalier's own")
    parser.add_argument("--rounds", type=int, default=1, help="policies take turns in each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=600.0)
    parser.add_argument("--label", default="", help="kept in each line")
    parser.add_argument("--out", help="JSON lines are added to this file")
    args = parser.parse_args()
    url, prompts, rng = urllib.parse.urlparse(args.url), Prompts(args), random.Random(args.seed)
    policies = args.policy or ["none"]
    capacity, rows, number = {}, [], 0

    def measure(policy, loop, clients, arrivals_per_s=None):
        nonlocal number
        count = max(args.requests, clients)
        bodies = [prompts.body(number + i, policy) for i in range(count)]
        number += count
        arrivals, threads = None, clients
        if arrivals_per_s:
            at, arrivals = 0.0, []
            for _ in bodies:
                arrivals.append(at)
                at += rng.expovariate(arrivals_per_s)
            threads = count
        measured, seconds = run(url, bodies, threads, args.timeout, arrivals)
        row = {"label": args.label, "policy": policy, "loop": loop, "clients": clients, "arrivals_per_s": arrivals_per_s,
               "demonstrations": args.demonstrations, "shots": args.shots, "new_tokens": args.new_tokens, **measured.row(seconds)}
        for error in sorted(set(measured.errors))[:3]:
            print(f"{policy}: {error}", file=sys.stderr)
        rows.append(row)
        if args.out:
            with open(args.out, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        return row

    for policy in policies:  # first touches: memory, caches of the shared demonstrations
        ask(url, prompts.body(99_000, policy), args.timeout)
    for _ in range(args.rounds):
        for clients in args.clients:
            for policy in policies:
                row = measure(policy, "closed", int(clients))
                capacity[policy] = max(capacity.get(policy, 0.0), row["requests_per_s"])
        for share in args.open_loop:
            for policy in policies:
                measure(policy, f"open {share}", int(max(args.clients)), round(share * capacity[policy], 4))
    print("| policy | loop | clients | requests/s | tokens/s | first token p50, p95, p99 ms | per token p50, p95, p99 ms | errors |")
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    for r in rows:
        first = ", ".join(f"{v:.0f}" for v in r["first_token_ms"].values())
        each = ", ".join(f"{v:.1f}" for v in r["per_token_ms"].values())
        print(f"| `{r['policy']}` | {r['loop']} | {r['clients']} | {r['requests_per_s']:.3f} | {r['tokens_per_s']:.1f} | {first} | {each} | {r['errors']} |")
    return 1 if any(r["errors"] for r in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
