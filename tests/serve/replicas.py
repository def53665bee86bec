#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""replicas.py ESPALIER: examples/replicas/nginx.conf with real nginx before two servers. Requests that begin alike reach one replica; one
replica is killed under load, and every request is answered all the same. Ends with 77 (skipped) where there is no nginx."""
import concurrent.futures
import json
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

from served import served, skip

nginx = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
if not nginx:
    skip("there is no nginx")
(espalier,) = sys.argv[1:]
folder = pathlib.Path(__file__).resolve().parent.parent.parent
picture = folder / "examples/demo/shape/0.png"


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def ask(port, question, prefix=None, tokens=8):
    """(status, text, prefix of the answer)."""
    turns = [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:0.png"}}, {"type": "text", "text": question[0]}]},
        {"role": "assistant", "content": "round"},
        {"role": "user", "content": question[1]},
    ]
    body = json.dumps({"messages": turns, "temperature": 0, "max_tokens": tokens, "ignore_eos": True}).encode()
    headers = {"Content-Type": "application/json"} | ({"X-Espalier-Prefix": prefix} if prefix else {})
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            text = json.load(reply)["choices"][0]["message"]["content"]
            return reply.status, text, reply.headers["X-Espalier-Prefix"]
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read().decode(), None


def answered(port):
    """Chats that the replica at this port has answered."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
        for line in reply.read().decode().split("\n"):
            if line.startswith('espalier_http_requests_total{path="/v1/chat/completions",status="200"}'):
                return int(line.split()[-1])
    return 0


def expect(holds, says):
    if not holds:
        raise SystemExit(f"failed: {says}")


more = ("--allow-images", str(picture.parent), "--threads", "1")
with served(espalier, *more) as (first, first_port), served(espalier, *more) as (second, second_port), \
        tempfile.TemporaryDirectory() as scratch:
    pathlib.Path(scratch).chmod(0o755)  # for nginx's worker, where nginx was started by root
    front = free_port()
    text = (folder / "examples/replicas/nginx.conf").read_text()
    for old, new in ((8081, first_port), (8082, second_port), (8080, front)):
        text = text.replace(f"127.0.0.1:{old}", f"127.0.0.1:{new}")
    conf = pathlib.Path(scratch) / "nginx.conf"
    conf.write_text(text)
    proxy = subprocess.Popen([nginx, "-p", scratch, "-c", str(conf)], stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(200):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{front}/ready", timeout=5).read()
                break
            except (OSError, urllib.error.URLError):
                expect(proxy.poll() is None, "nginx did not start")
                time.sleep(0.05)
        beginnings = [f"What is number {i}?" for i in range(12)]
        known = {begin: ask(front, (begin, "Why?")) for begin in beginnings}
        expect(all(status == 200 for status, _, _ in known.values()), "a first question was not answered")
        expect(len({prefix for _, _, prefix in known.values()}) == len(beginnings), "beginnings that differ have one prefix")
        # Each beginning sent back reaches one replica, always the same.
        places = set()
        for begin in beginnings:
            before = answered(first_port), answered(second_port)
            for _ in range(3):
                expect(ask(front, (begin, "Why?"), known[begin][2])[0] == 200, "a known beginning was not answered")
            after = answered(first_port), answered(second_port)
            moved = (after[0] - before[0], after[1] - before[1])
            expect(sorted(moved) == [0, 3], f"one beginning went to both replicas: {moved}")
            places.add(moved)
        expect(len(places) == 2, "all beginnings went to one replica")
        print("12 beginnings: each to one replica, both replicas used")
        # Under load, one is killed.
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            jobs = [pool.submit(ask, front, (beginnings[i % 12], "Why?"), known[beginnings[i % 12]][2], 24) for i in range(120)]
            while sum(job.done() for job in jobs) < 20:
                time.sleep(0.01)
            expect(sum(job.done() for job in jobs) < 100, "the load was over before a replica could be killed")
            second.send_signal(signal.SIGKILL)
            second.wait()
            statuses = [job.result()[0] for job in jobs]
        expect(statuses.count(200) == 120, f"{120 - statuses.count(200)} of 120 requests were lost: {sorted(set(statuses))}")
        print("120 requests of 8 clients while a replica was killed: all answered")
        texts = {begin: ask(front, (begin, "Why?"), known[begin][2])[1] for begin in beginnings}
        expect(all(texts[begin] == known[begin][1] for begin in beginnings), "the other replica answers differently")
    finally:
        proxy.terminate()
        said = proxy.communicate()[1]
print("done")
