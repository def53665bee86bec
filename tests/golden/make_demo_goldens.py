#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes tests/golden/demo and tests/golden/crowded: what Transformers computes on the bundled models for the prompts of
examples/demo and examples/crowded.

    python make_demo_goldens.py

The weights are those of models/demo and models/crowded, so it must run again after each new model; `weights_sha256` says
of which they are.
"""
import hashlib
import json
import os

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from PIL import Image
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
BUNDLED = ["demo", "crowded"]
NEW_TOKENS = 2  # the answer and the end of the turn
PLAIN = [("count", "how many objects?"), ("place", "where is the star?"), ("colour_of", "what colour is the star?")]


def cases(bundled):
    """name -> messages and picture files. The model's examples, and for demo plain questions about a picture of theirs."""
    examples = os.path.join(ROOT, "examples", bundled)
    for name in sorted(os.listdir(examples)):
        file = os.path.join(examples, name, "messages.json")
        if not os.path.exists(file):
            continue
        with open(file, encoding="utf-8") as f:
            messages = json.load(f)
        parts = [part for message in messages for part in message["content"] if part["type"] == "image"]
        yield name, messages, [os.path.join(examples, name, part.pop("path")) for part in parts]
    for name, question in PLAIN if bundled == "demo" else []:
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
        yield name, [message], [os.path.join(examples, "define", "2.png")]


@torch.no_grad()
def run(model, processor, messages, files):
    images = [Image.open(file).convert("RGB") for file in files]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = dict(processor(text=[prompt], images=images, return_tensors="pt"))
    ids = inputs["input_ids"][0]
    logits = model(**inputs).logits[0, -1:]
    greedy = model.generate(**inputs, max_new_tokens=NEW_TOKENS)[0, len(ids):]
    fields = {"prompt": prompt, "messages": messages, "greedy_tokens": greedy.tolist(),
              "text": processor.tokenizer.decode(greedy, skip_special_tokens=True)}
    return fields, {"input_ids": ids, "logits": logits.contiguous()}


def main():
    import transformers
    transformers.logging.set_verbosity_error()
    for bundled in BUNDLED:
        make(bundled)


def make(bundled):
    from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig
    folder = os.path.join(ROOT, "models", bundled)
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)
    with open(os.path.join(folder, "model.safetensors"), "rb") as f:
        weights = hashlib.sha256(f.read()).hexdigest()
    out = os.path.join(HERE, bundled, "cases")
    os.makedirs(out, exist_ok=True)
    for name, messages, files in cases(bundled):
        fields, tensors = run(model, processor, messages, files)
        fields["image_files"] = [os.path.relpath(file, out) for file in files]
        fields["weights_sha256"] = weights
        path = os.path.join(out, name + ".safetensors")
        save_file(tensors, path)
        os.chmod(path, 0o644)
        with open(os.path.join(out, name + ".json"), "w", encoding="utf-8") as f:
            json.dump(fields, f, indent=1)
            f.write("\n")
        print(f"{bundled:8s} {name:10s} {len(tensors['input_ids']):4d} tokens, {fields['text']}")


if __name__ == "__main__":
    main()
