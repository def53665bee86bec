#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""espalier serve beside llama-server and OpenVINO GenAI on one checkpoint: unpruned against unpruned, then ours pruned.

    python bench/compare_servers.py --model /tmp/150m --gguf /tmp/150m_gguf --openvino /tmp/150m_openvino \\
        --llama-server /tmp/llama/bin/llama-server --openvino-python /tmp/openvino/bin/python --out servers.jsonl

All servers are started, each is asked once, and then each number of clients is measured on one after the other with
serve_load.py's closed loop (what its lines say stands there), while the others wait. All get the same prompts (demonstrations
of their own, nothing seen before, so that no cache of prompts helps anybody) and the same threads; weights are bfloat16 in
all, cached keys and values too, but float16 in llama-server, its default. How to make what it compares with:

    build/release/bin/make_checkpoint --size 150m --out /tmp/150m

    # llama-server, for this processor, from llama-cpp-python's sources
    pip download --no-deps --no-binary llama-cpp-python llama-cpp-python && tar xf llama_cpp_python-*.tar.gz
    cmake -S llama_cpp_python-*/vendor/llama.cpp -B /tmp/llama -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON \\
        -DLLAMA_USE_PREBUILT_UI=OFF && ninja -C /tmp/llama llama-server
    PYTHONPATH=llama_cpp_python-*/vendor/llama.cpp/gguf-py python bench/llava_to_gguf.py --model /tmp/150m --out /tmp/150m_gguf

    # OpenVINO GenAI: the newest versions that optimum-intel takes together
    python -m venv /tmp/openvino && /tmp/openvino/bin/pip install optimum-intel openvino-genai pillow
    /tmp/openvino/bin/optimum-cli export openvino --model /tmp/150m --task image-text-to-text --weight-format fp32 /tmp/150m_openvino

One JSON line of serve_load.py per measurement, labelled with the server. `--under COMMAND` (numactl, a queue for a quiet
machine) is put before all measurements, as one command.
"""
import argparse
import contextlib
import pathlib
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request

HERE = pathlib.Path(__file__).parent
PRUNED = ["catp:keep_ratio=2/9", "divprune:keep_ratio=2/9"]


def servers(args):
    """label -> (port, command)."""
    threads, slots = str(args.threads), max(args.clients)
    found = {"espalier": (8101, [args.espalier, "serve", "--model", args.model, "--port", "8101", "--threads", threads])}
    if args.llama_server:
        # -c is divided among the slots; --cache-ram 0: no store of earlier prompts.
        found["llama-server"] = (8102, [args.llama_server, "-m", f"{args.gguf}/decoder.gguf", "--mmproj", f"{args.gguf}/mmproj.gguf",
                                        "--port", "8102", "-t", threads, "-tb", threads, "-np", str(slots),
                                        "-c", str(4096 * slots), "--cache-ram", "0", "--jinja"])
    if args.openvino:
        found["openvino"] = (8103, [args.openvino_python, str(HERE / "serve_openvino.py"), "--model", args.openvino,
                                    "--port", "8103", "--threads", threads])
    return found


def wait_until_ready(process, label, port):
    for _ in range(600):
        if process.poll() is not None:
            raise SystemExit(f"{label} ended with {process.returncode} before it was ready; its output is in {label}.log")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise SystemExit(f"{label} is not ready after five minutes")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--espalier", default="build/release/bin/espalier")
    parser.add_argument("--model", required=True)
    parser.add_argument("--llama-server", metavar="FILE", help="left out where it is not given, and with it --gguf")
    parser.add_argument("--gguf", metavar="DIR")
    parser.add_argument("--openvino", metavar="DIR", help="left out where it is not given")
    parser.add_argument("--openvino-python", default=sys.executable, metavar="FILE")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clients", type=lambda text: [int(n) for n in text.split(",")], default=[1, 4, 8])
    parser.add_argument("--requests", type=int, default=8, help="per cell, and at least one per client")
    parser.add_argument("--seed", type=int, default=0, help="of the first requests; each measurement takes the next")
    parser.add_argument("--under", type=shlex.split, default=[], metavar="COMMAND")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    if args.llama_server and not args.gguf:
        parser.error("--llama-server needs --gguf, the folder that llava_to_gguf.py wrote")
    seed = args.seed

    def command_of(label, port, policy, clients, requests, out):
        nonlocal seed
        seed += 1
        command = [sys.executable, str(HERE / "serve_load.py"), "--url", f"http://127.0.0.1:{port}", "--label", label,
                   "--policy", policy, "--clients", str(clients), "--requests", str(requests), "--warm-up", "0", "--seed", str(seed),
                   "--out", out]
        if label != "espalier":
            command += ["--plain", "--fields", '{"ignore_eos": true, "cache_prompt": false}']
        return shlex.join(command)

    with contextlib.ExitStack() as stack:
        ports = {}
        for label, (port, command) in servers(args).items():
            log = stack.enter_context(open(f"{args.out}.{label}.log", "w", encoding="utf-8"))
            process = subprocess.Popen(command, stdout=log, stderr=log)
            stack.callback(lambda p=process: (p.terminate(), p.wait()))
            wait_until_ready(process, label, port)
            ports[label] = port
        contenders = [(label, port, "none") for label, port in ports.items()]
        contenders += [("espalier", ports["espalier"], policy) for policy in PRUNED]
        commands = [command_of(*contender, 1, 1, "/dev/null") for contender in contenders]  # first touches
        commands += [command_of(*contender, clients, args.requests, args.out) for clients in args.clients for contender in contenders]
        return subprocess.run([*args.under, "sh", "-c", " && ".join(commands)], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
