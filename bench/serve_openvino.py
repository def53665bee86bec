#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""OpenVINO GenAI's continuous batching behind as much of OpenAI's chat completions as serve_load.py asks for.

    optimum-cli export openvino --model /tmp/150m --task image-text-to-text --weight-format fp32 /tmp/150m_openvino
    python bench/serve_openvino.py --model /tmp/150m_openvino --port 8097 --threads 2

For compare_servers.py: the same client then measures all servers. Needs Python packages openvino-genai and pillow; the
export optimum-intel. One thread owns the pipeline: it adds what has come (which encodes the pictures, as the pipeline does
it), steps, and hands each token on as an event. Only streams, greedy, that ignore the end token.
"""
import argparse
import base64
import http.server
import io
import json
import queue
import threading

import numpy
import openvino
import openvino_genai
from PIL import Image


def prompt_of(messages):
    """LLaVA-1.5's template with OpenVINO's image tags, behind which it sets the newline itself; and the pictures."""
    text, pictures = "", []
    for message in messages:
        parts = message["content"] if isinstance(message["content"], list) else [{"type": "text", "text": message["content"]}]
        text += message["role"].upper() + ": "
        for part in parts:
            if part["type"] == "image_url":
                data = base64.b64decode(part["image_url"]["url"].partition(",")[2])
                pixels = numpy.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
                text += f"<ov_genai_image_{len(pictures)}>"
                pictures.append(openvino.Tensor(pixels[None].copy()))
        text += " ".join(part["text"] for part in parts if part["type"] == "text")
        text += "</s>" if message["role"] == "assistant" else " "
    return text + "ASSISTANT:", pictures


class Pipeline:
    """What has come waits in `arrived`; run() never returns."""

    def __init__(self, args):
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = args.cache_gb
        scheduler.max_num_seqs = args.max_running
        scheduler.enable_prefix_caching = False
        # Otherwise a step may hold no more prompt tokens than this; a prompt is prefilled in such slices between tokens.
        scheduler.max_num_batched_tokens = args.batched_tokens
        properties = {"INFERENCE_NUM_THREADS": args.threads, "INFERENCE_PRECISION_HINT": args.precision,
                      "KV_CACHE_PRECISION": args.kv_precision}
        vision = {"INFERENCE_NUM_THREADS": args.threads, "INFERENCE_PRECISION_HINT": args.precision}
        self.pipeline = openvino_genai.ContinuousBatchingPipeline(
            args.model, scheduler, "CPU", properties, vision_encoder_properties=vision)
        self.tokenizer = self.pipeline.get_tokenizer()
        self.arrived, self.running, self.count = queue.SimpleQueue(), [], 0

    def admit(self, prompt, pictures, max_tokens, events):
        config = openvino_genai.GenerationConfig(max_new_tokens=max_tokens, ignore_eos=True, do_sample=False)
        config.apply_chat_template = False
        self.count += 1
        self.running.append((self.pipeline.add_request(self.count, prompt, pictures, config), events))

    def run(self):
        while True:
            if not self.running:
                self.admit(*self.arrived.get())
            while not self.arrived.empty():
                self.admit(*self.arrived.get())
            self.pipeline.step()
            still = []
            for handle, events in self.running:
                done = handle.get_status() != openvino_genai.GenerationStatus.RUNNING
                while handle.can_read():
                    for output in handle.read().values():
                        for token in output.generated_ids:
                            events.put(token)
                if done:
                    events.put(None)
                else:
                    still.append((handle, events))
            self.running = still


class Handler(http.server.BaseHTTPRequestHandler):
    pipeline = None

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        events = queue.SimpleQueue()
        prompt, pictures = prompt_of(body["messages"])
        self.pipeline.arrived.put((prompt, pictures, body["max_tokens"], events))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        count = 0
        while (token := events.get()) is not None:
            count += 1
            self.event({"choices": [{"delta": {"content": self.pipeline.tokenizer.decode([token])}}]})
        self.event({"choices": [], "usage": {"completion_tokens": count}})
        self.wfile.write(b"data: [DONE]\n\n")

    def event(self, value):
        self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")
        self.wfile.flush()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, default=8097)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="bf16", help="of the arithmetic: bf16, f16 or f32")
    parser.add_argument("--kv-precision", default="bf16", help="of cached keys and values; OpenVINO's own default is u8")
    parser.add_argument("--cache-gb", type=int, default=4)
    parser.add_argument("--max-running", type=int, default=32)
    parser.add_argument("--batched-tokens", type=int, default=4096)
    args = parser.parse_args()
    Handler.pipeline = Pipeline(args)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", args.port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"ready at http://127.0.0.1:{args.port}", flush=True)
    Handler.pipeline.run()


if __name__ == "__main__":
    main()
