#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the seeds of the fuzz targets: make_seeds.py [FOLDER], by default the folder `seeds` beside this file.

Small inputs that are right, so that a fuzzer begins behind the first checks: the project's own files where they are small,
else the smallest ones of their form. Inputs that broke something once lie beside them under names with `was_`; those were
found and are not made here."""

import base64
import json
import pathlib
import random
import shutil
import struct
import sys

here = pathlib.Path(__file__).resolve().parent
source = here.parents[1]
out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else here / "seeds"


def write(target, name, content):
    file = out / target / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)


def text_of(path):
    return (source / path).read_text()


def small_json(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def safetensors(tensors, metadata=None):
    """tensors: name -> (dtype, shape, bytes)."""
    header, data = {}, b""
    if metadata:
        header["__metadata__"] = metadata
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = small_json(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def floats(*shape):
    count = 1
    for size in shape:
        count *= size
    numbers = random.Random(str(shape))
    return "F32", list(shape), struct.pack(f"<{count}f", *(numbers.random() for _ in range(count)))


# ---- checkpoints ----
write("safetensors", "two", safetensors({"a": floats(2, 3), "b": ("I8", [0], b"")}, {"format": "pt"}))
write("safetensors", "dtypes", safetensors({d: (d, [1], b"\0" * n) for d, n in
                                            {"F64": 8, "I64": 8, "I32": 4, "F16": 2, "BF16": 2, "U8": 1, "BOOL": 1}.items()}))

names = ["config.json", "preprocessor_config.json", "processor_config.json", "generation_config.json"]
index = small_json({"metadata": {}, "weight_map": {"a": "model-1.safetensors"}})
for family in ["models/demo", "tests/golden/llava15", "tests/golden/llava_next_mistral", "tests/golden/qwen2vl",
               "tests/golden/qwen25vl"]:
    parts = [small_json(json.loads(text_of(f"{family}/{name}"))) if (source / family / name).exists() else ""
             for name in names]
    special = small_json({"bos_token": "<s>", "eos_token": {"content": "</s>"},
                          "chat_template": json.loads(text_of("models/demo/chat_template.json"))["chat_template"]})
    write("config", pathlib.Path(family).name, "\0".join(parts + [special, index]))

# ---- tokenizers ----
def tokenizer(alphabet, **parts):
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", "<image>"] + alphabet)}
    added = [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": True} for t, i in list(vocabulary.items())[:4]]
    merges = [[a, b] for a, b in [("t", "h"), ("th", "e")] if a + b in vocabulary]
    model = {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": False, "vocab": vocabulary,
             "merges": merges} | parts.pop("model", {})
    return small_json({"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
                       "pre_tokenizer": None, "post_processor": None, "decoder": None, "model": model} | parts)


letters = list("abcdefghijklmnopqrstuvwxyz:.0123456789") + ["th", "the"]
byte_tokens = [f"<0x{i:02X}>" for i in range(256)]
template = {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}}
space = "\u2581"
write("tokenizer", "prepend", tokenizer(
    letters + [space], post_processor=template,
    normalizer={"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": space},
                                                    {"type": "Replace", "pattern": {"String": " "}, "content": space}]},
    decoder={"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": space}, "content": " "},
                                              {"type": "ByteFallback"}, {"type": "Fuse"},
                                              {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}))
write("tokenizer", "metaspace", tokenizer(
    letters + [space] + byte_tokens, model={"byte_fallback": True},
    pre_tokenizer={"type": "Metaspace", "replacement": space, "prepend_scheme": "first", "split": False},
    decoder={"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": space}, "content": " "},
                                              {"type": "ByteFallback"}, {"type": "Fuse"},
                                              {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}))
printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
alphabet = [chr(i) for i in printable] + [chr(256 + i) for i in range(256 - len(printable))]
write("tokenizer", "byte_level", tokenizer(
    alphabet + ["th", "the"], model={"unk_token": None, "fuse_unk": False}, normalizer={"type": "NFC"},
    pre_tokenizer={"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": r"'s|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|\s+(?!\S)|\s+"}, "behavior": "Isolated",
         "invert": False}, {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}]},
    post_processor={"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
    decoder={"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}))
write("encode", "words", "name the shape: it's 12345  blue\n\t<image></s> USER")
write("encode", "unicode", "\u00e9 e\u0301 \u4e2d\u6587 \U0001f600\u200d <|im_start|>\u2581")

# ---- chats ----
write("chat_template", "demo", json.loads(text_of("models/demo/chat_template.json"))["chat_template"])
for family in ["tests/golden/llava15", "tests/golden/qwen2vl"]:
    write("chat_template", pathlib.Path(family).name, json.loads(text_of(f"{family}/chat_template.json"))["chat_template"])
write("chat_template", "constructs",
      "{% set ns = namespace(n=0) %}{%- for m in messages if m.role != 'x' -%}{% set ns.n = ns.n + loop.index0 %}"
      "{{ m['content'][0:2:1] if m.content is string else (m.content | length) }}{% else %}none{% endfor %}"
      "{{ [1, 'a', {'b': none}] | tojson }}{{ 'x'.split(',') | join('-') | upper }}{{ range(3) | list | last }}"
      "{% if not ns.n is defined or 3 // 2 > 1 and 'a' in 'abc' %}{{ raise_exception('no') }}{% endif %}")
picture = {"type": "image", "path": "0.png"}
write("messages", "shots", small_json([
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [picture | {"pin": [0, 0, 4, 4]}, {"type": "text", "text": "What is this?"}]},
    {"role": "assistant", "content": "a cat"},
    {"role": "user", "content": [picture | {"pin": True}, picture | {"pin": [[0, 0, 1, 1]]}, {"type": "text", "text": "?"}]}]))

# ---- pictures ----
for kind, files in {"jpeg": ["gray.jpg", "444_progressive.jpg", "orientation_6.jpg"],
                    "png": ["gray_1bit.png", "palette_one_transparent.png", "gray_key.png", "orientation_6.png"],
                    "webp": ["lossy.webp", "lossy_alpha.webp", "orientation_6.webp"]}.items():
    for file in files:
        (out / kind).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / "tests/golden/images" / file, out / kind / file)

# ---- recordings: n = 16 tokens, m = 8 patches, six layers, of which signals tell the first four ----
def patches(begin, image, example):
    return {"kind": "patches", "begin": begin, "end": begin + 4, "image": image, "crop": 0, "example": example, "grid": [2, 2]}


def words(begin, end, example):
    return {"kind": "text", "begin": begin, "end": end, "example": example}


write("layout", "two_examples.json", small_json({
    "num_tokens": 16, "query_example": 1, "model": {"num_layers": 6, "vision_layers": 2, "vision_feature_layer": 1},
    "images": [{"grid": [2, 2]}, {"grid": [2, 2]}],
    "segments": [words(0, 2, -1), patches(2, 0, 0), words(6, 8, 0), patches(8, 1, 1),
                 {"kind": "row_break", "begin": 12, "end": 13, "image": 1, "example": 1}, words(13, 16, 1)]}))
write("layout", "tiles.json", small_json({
    "num_tokens": 12, "query_example": 0, "model": {"num_layers": 2, "vision_layers": 2, "vision_feature_layer": 1},
    "images": [{"grid": [2, 2], "tiling": [1, 2]}],
    "segments": [patches(0, 0, 0)] + [
        {"kind": "patches", "begin": begin, "end": begin + 2, "image": 0, "crop": crop, "example": 0, "grid": [1, 2],
         "origin": [0, 0]} for begin, crop in [(4, 1), (6, 2)]] + [
        {"kind": "row_break", "begin": 8, "end": 9, "image": 0, "example": 0}, words(9, 12, 0)]}))
n, m, d = 16, 8, 4
decoder = {f"{family}.{i}": floats(n, d) for family in ["hidden", "final_norm"] for i in range(4)}
decoder |= {f"attention.{i}": floats(1, n, n) for i in range(4)} | {f"key.{i}": floats(1, n, d) for i in range(4)}
tower = {"vision.output": floats(m, d), "vision.cls_output": floats(2, d), "clip.image": floats(m, d),
         "clip.text": floats(2, d)}
tower |= {f"vision.cls_attention.{i}": floats(1, m) for i in range(2)}
tower |= {f"vision.cls_attention_joint.{i}": floats(m) for i in range(2)} | {f"vision.key.{i}": floats(m, d) for i in range(2)}
write("signals", "decoder", bytes([0]) + safetensors(decoder))
write("signals", "tower", bytes([4]) + safetensors(tower))
for name, spec in {"catp": "catp:keep_ratio=2/9", "pipeline": "random:keep_ratio=1/2,seed=3 + fastv:keep_ratio=1/4,layer=1",
                   "stages": "pyramiddrop", "many": "uniform:num_kept=5,min_per_image=1,row_breaks=follow,positions=compact",
                   "lists": "sparsevlm:layers=1:2:4,keep_ratio=25/48:25/72:55/288"}.items():
    write("policy_spec", name, spec)
write("recipe", "fitprune", small_json({"method": "fitprune", "layers": 6, "n_visual": 8, "delete": [0, 3, 2, 0, 1, 0]}))
write("recipe", "vtw", small_json({"method": "vtw", "layers": 6, "layer": 2}))
settings = {"format": 1, "layers": [1], "grid": [2, 2], "hidden_size": 2, "strides": [2], "lambda_sample": 3.0,
            "norm": "minmax", "head_input": "scatter", "activation": "none", "min_keep": 1, "strategy": "both",
            "scores": "both"}
modules = {"mix.weight": floats(2, 8), "mix.bias": floats(2), "redundancy.weight": floats(1, 2),
           "redundancy.bias": floats(1), "spatial.weight": floats(1, 2), "spatial.bias": floats(1)}
write("atp_weights", "one", small_json(settings).encode() + b"\0" +
      safetensors({f"modules.0.{name}": tensor for name, tensor in modules.items()}))
points = [{"site": "projector_output", "kept": [2, 3, 8, 9, 10]}, {"site": "before_layer", "layer": 1, "kept": [3, 8]}]
write("keepmask", "kept", small_json({"policy": "x", "points": points, "kept": [3, 8]}))
merged = {"site": "projector_output", "kept": [2], "merged": "merged.0", "merged_source": [2, 9, -1],
          "merged_position_from": [2, 9, 10]}
write("keepmask", "merged", small_json({"points": [merged]}).encode() + b"\0" + safetensors({"merged.0": floats(3, d)}))

# ---- bodies of requests ----
turns = [{"role": "system", "content": "Be brief."},
         {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:gray_1bit.png", "detail": "low"}},
                                      {"type": "text", "text": "What is this?"}]}]
write("http_body", "chat", small_json({
    "model": "demo", "messages": turns, "temperature": 0.5, "top_p": 0.9, "max_tokens": 7, "n": 2, "seed": 3, "stop": ["\n"],
    "stream": True, "stream_options": {"include_usage": True}, "logprobs": True, "top_logprobs": 2, "user": "a",
    "pruning": "divprune:keep_ratio=1/4"}))
data = (source / "tests/golden/images/gray_1bit.png").read_bytes()
uri = "data:image/png;base64," + base64.b64encode(data).decode()
write("http_body", "completion", small_json({
    "prompt": "<image>\nWhat is this?", "images": [{"image_url": {"url": uri}, "uuid": "a"}], "logprobs": 1, "echo": False}))
write("http_body", "tokenize", small_json({"prompt": "a b", "add_special_tokens": False}))
