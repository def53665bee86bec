#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes tests/golden/llava15: a tiny LLaVA-1.5 checkpoint with random weights, and what Transformers computes on it.

    python make_goldens.py [--out llava15] [--seed 0]

Nothing is read but the pinned wheels (README.md). The same seed gives the same files.
"""
import argparse
import hashlib
import json
import os
import random

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = os.path.dirname(os.path.abspath(__file__))
SPECIAL = ["<unk>", "<s>", "</s>", "<image>", "<pad>"]
CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
IMAGE_SIDE, PATCH = 56, 14
TEMPLATE = (  # renders as the published one: the pictures of a message come before its text
    "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['role'].upper() + ': ' }}{% endif %}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}")

# ----------------------------------------------------------------------------- tokenizer
NOUNS = """cat dog street sign bus train boat horse sheep cow bear zebra clock vase book kite ball
player child woman man person kitchen table chair sofa bed plate fork knife spoon bowl pizza cake apple
orange carrot laptop phone keyboard mouse window door wall floor road river mountain beach sky cloud tree
flower grass light shadow corner picture image photo question answer colour number line""".split()
ADJECTIVES = """red blue green yellow white black small large tall short old young bright dark wooden metal
round square empty full left right first second third open closed striped quiet busy""".split()
VERBS = """shows holds contains carries watches crosses rides eats reads throws catches covers faces
stands beside sits under leans against looks towards walks past runs along hangs above""".split()
QUESTIONS = ["What is the {a} {n} doing?", "How many {n}s are in the image?", "What colour is the {n}?",
             "Is there a {n} next to the {m}?", "Describe the {n} in detail.", "Where's the {a} {n}?",
             "Isn't the {n} {a}? I'd say it's {b}.", "Answer with a single word: which {n} is {a}?"]
STATEMENTS = ["The {a} {n} {v} the {b} {m}.", "A {n} {v} a {a} {m}, and they're {b}.",
              "There are {d} {n}s; the {m} is {a}.", "USER: {n} ASSISTANT: {m}", "It's {d}:{e} and the {n} {v} {d}%.",
              "Picture {d} shows a {a} {n}."]
OTHER = ["def area(w, h):\n    return w * h\n", "for i in range(10):\n\tprint(i)\r\n", "{\"key\": [1, 2, 3]}",
         "Die Katze sitzt auf dem Tisch, schön!", "Où est la fenêtre ? Près du café.", "El niño está aquí.",
         "Кошка сидит на столе.", "猫坐在桌子上。图片里有什么?", "犬は庭にいます。", "고양이가 잔다.",
         "γάτα στο τραπέζι", "naïve façade — “quoted” … 3½", "price: $12.50 (−4°C) @ 7pm #tag",
         "multiple   spaces\n\n\nand newlines", "A chat between a curious user and an assistant."]


def training_text(seed, count=6000):
    r = random.Random(1234 + seed)
    for i in range(count):
        sentence = r.choice(QUESTIONS if i % 3 == 0 else STATEMENTS)
        yield sentence.format(a=r.choice(ADJECTIVES), b=r.choice(ADJECTIVES), n=r.choice(NOUNS), m=r.choice(NOUNS),
                              v=r.choice(VERBS), d=r.randint(0, 99), e=r.randint(10, 59))
        if i % 5 == 0:
            yield r.choice(OTHER)


def make_tokenizer(vocab_size, seed):
    """BPE with byte fallback in the legacy form of converted Llama-2 files: Prepend and Replace, no pre-tokenizer."""
    base = SPECIAL[:3] + [f"<0x{i:02X}>" for i in range(256)]
    trained = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always", split=True)
    trained.train_from_iterator(  # no newline or tab pieces: they go to bytes
        (t.translate({9: 32, 10: 32, 13: 32}) for t in training_text(seed)),
        trainers.BpeTrainer(vocab_size=vocab_size - len(base), show_progress=False, special_tokens=[],
                            limit_alphabet=150, max_token_length=16))
    got = json.loads(trained.to_str())["model"]
    merges = [tuple(m) if not isinstance(m, str) else tuple(m.split(" ")) for m in got["merges"]]
    merged = list(dict.fromkeys(a + b for a, b in merges))
    chars = sorted((t for t in got["vocab"] if t not in set(merged) and len(t) == 1), key=lambda t: got["vocab"][t])
    vocab = {t: i for i, t in enumerate(base)}
    for token in merged + chars:  # as in Llama: pieces by rank, then single characters
        vocab.setdefault(token, len(vocab))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(content=" ", left=1, right=0)])
    for tokens in (SPECIAL[:3], SPECIAL[3:]):
        tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in tokens])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)])
    return tokenizer


# ----------------------------------------------------------------------------- checkpoint
def make_config(ids, vocab_size):
    """As published configs are: keys that equal the class default are left out."""
    text = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128, "intermediate_size": 256,
            "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 4,
            "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "torch_dtype": "float16", "vocab_size": vocab_size}
    vision = {"model_type": "clip_vision_model", "hidden_size": 64, "image_size": IMAGE_SIDE, "intermediate_size": 128,
              "num_attention_heads": 4, "num_hidden_layers": 4, "patch_size": PATCH, "projection_dim": 64,
              "vocab_size": 32000}
    return {"ignore_index": -100, "image_token_index": ids["<image>"], "pad_token_id": ids["<pad>"],
            "projector_hidden_act": "gelu", "text_config": text, "tie_word_embeddings": False,
            "torch_dtype": "float16", "transformers_version": "4.36.0.dev0", "vision_config": vision,
            "vision_feature_layer": -2, "vision_feature_select_strategy": "default", "vocab_size": vocab_size,
            "architectures": ["LlavaForConditionalGeneration"], "model_type": "llava"}


def published_name(name):
    """Name in the library (model.language_model.…) -> name in the published repositories."""
    if name == "lm_head.weight":
        return "language_model.lm_head.weight"
    name = name.removeprefix("model.")
    if name.startswith("language_model."):
        return "language_model.model." + name.removeprefix("language_model.")
    if name.startswith("vision_tower.") and not name.startswith("vision_tower.vision_model."):
        return "vision_tower.vision_model." + name.removeprefix("vision_tower.")
    return name


def random_weight(name, shape, seed):
    """Depends on (seed, name) only; scaled so that each block moves the states and logits have clear winners."""
    digest = hashlib.sha256(f"{seed}|{name}".encode()).digest()
    w = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8], "little"))).standard_normal(
        shape, dtype=np.float32)
    norm = any(k in name for k in ("layernorm", "layer_norm", "layrnorm", "model.norm."))
    if name.endswith(".bias"):
        w *= np.float32(0.2 if norm else 0.1)
    elif norm:
        w = np.float32(1.0) + np.float32(0.2) * w
    elif "embed_tokens" in name:
        w *= np.float32(0.6)
    elif "class_embedding" in name or "position_embedding" in name:
        w *= np.float32(0.5)
    else:
        gain = 1.0
        if "q_proj" in name or "k_proj" in name:
            gain = 1.6
        elif "lm_head" in name:
            gain = 2.0
        elif any(k in name.rsplit(".", 2) for k in ("o_proj", "out_proj", "down_proj", "fc2", "proj")):
            gain = 0.7
        w *= np.float32(gain / np.sqrt(int(np.prod(shape[1:]))))
    return torch.from_numpy(w)


def dump(folder, name, value):
    with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
        json.dump(value, f, indent=2, ensure_ascii=False)
        f.write("\n")


def make_checkpoint(folder, seed):
    os.makedirs(folder, exist_ok=True)
    tokenizer = make_tokenizer(1600, seed)
    ids = {t: tokenizer.token_to_id(t) for t in SPECIAL}
    tokenizer.save(os.path.join(folder, "tokenizer.json"))
    vocab_size = (tokenizer.get_vocab_size(with_added_tokens=True) + 63) // 64 * 64  # more rows than tokens
    added = {str(ids[t]): {"content": t, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
                           "special": True} for t in SPECIAL}
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    dump(folder, "added_tokens.json", {t: ids[t] for t in SPECIAL[3:]})
    dump(folder, "special_tokens_map.json", named)
    dump(folder, "tokenizer_config.json", {
        "add_bos_token": True, "add_eos_token": False, "added_tokens_decoder": added, "bos_token": "<s>",
        "clean_up_tokenization_spaces": False, "eos_token": "</s>", "extra_special_tokens": {"image_token": "<image>"},
        "image_token": "<image>", "legacy": True, "model_max_length": 1000000000000000019884624838656,
        "pad_token": "<pad>", "padding_side": "left", "processor_class": "LlavaProcessor", "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer", "unk_token": "<unk>", "use_default_system_prompt": False})
    dump(folder, "preprocessor_config.json", {
        "crop_size": {"height": IMAGE_SIDE, "width": IMAGE_SIDE}, "do_center_crop": True, "do_convert_rgb": True,
        "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": CLIP_MEAN, "image_std": CLIP_STD,
        "processor_class": "LlavaProcessor", "resample": 3, "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": IMAGE_SIDE}, "image_processor_type": "CLIPImageProcessor"})
    dump(folder, "processor_config.json", {
        "image_token": "<image>", "num_additional_image_tokens": 1, "patch_size": PATCH,
        "processor_class": "LlavaProcessor", "vision_feature_select_strategy": "default"})
    dump(folder, "generation_config.json", {
        "_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": ids["<pad>"],
        "transformers_version": "4.36.0.dev0"})
    dump(folder, "chat_template.json", {"chat_template": TEMPLATE})
    dump(folder, "config.json", make_config(ids, vocab_size))

    from transformers import AutoConfig, AutoModelForImageTextToText
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    shapes = {published_name(n): tuple(p.shape) for n, p in model.named_parameters()}
    path = os.path.join(folder, "model.safetensors")
    save_file({n: random_weight(n, s, seed).to(torch.float16).contiguous() for n, s in shapes.items()}, path,
              metadata={"format": "pt"})
    os.chmod(path, 0o644)


# ----------------------------------------------------------------------------- cases
def synth_image(h, w, seed, kind="mix"):
    """Deterministic uint8 RGB picture [h, w, 3]; float64 arithmetic and floor, no platform-dependent calls."""
    g = np.random.Generator(np.random.PCG64(seed))
    y, x = np.mgrid[0:h, 0:w].astype(np.float64)
    base = g.random(3) * 160
    img = np.stack([base[c] + 60 * ((x * (c + 1) + y * (3 - c)) / (w * (c + 1) + h * (3 - c))) for c in range(3)], -1)
    if kind in ("mix", "shapes"):
        for _ in range(6):
            cy, cx, r = g.random() * h, g.random() * w, (0.08 + 0.22 * g.random()) * min(h, w) + 1
            col = g.random(3) * 255
            mask = (y - cy) ** 2 + (x - cx) ** 2 <= r * r if g.random() < 0.5 else \
                (np.abs(y - cy) <= r) & (np.abs(x - cx) <= r * 0.7)
            img[mask] = col
    if kind in ("mix", "lines"):
        step = max(3, min(h, w) // 7)
        img[(x.astype(int) % step == 0)] = g.random(3) * 255
    if kind in ("mix", "noise"):
        img += g.random((h, w, 3)) * 24
    if kind == "extreme":  # black and white checks: shows clamping after the bicubic overshoot
        img = np.where(((x.astype(int) // 2 + y.astype(int) // 3) % 2 == 0)[..., None], 0.0, 255.0) + np.zeros(3)
    return np.clip(np.floor(img), 0, 255).astype(np.uint8)


def user(*parts):
    return {"role": "user", "content": [{"type": "image"} if p is None else {"type": "text", "text": p} for p in parts]}


def assistant(text):
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def cases():
    """name -> images as (height, width, seed, kind), and messages (None is a picture) or the exact prompt."""
    shots = []
    for question, answer in [("What is the red cat doing?", "sitting"), ("How many dogs are in the image?", "3"),
                             ("Where's the small boat?", "near the wall"), ("Is there a clock?", "yes")]:
        shots += [user(None, question), assistant(answer)]
    return {
        "single": dict(images=[(100, 76, 11, "mix")], messages=[user(None, "What is shown in this image?")]),
        "small_square": dict(images=[(30, 30, 12, "shapes")], messages=[user(None, "Describe the image.")]),
        "pair_raw": dict(images=[(90, 120, 21, "mix"), (64, 61, 22, "lines")],
                         prompt="USER: Compare the dog in <image> with the cat in <image>, please. ASSISTANT:"),
        "icl4": dict(images=[(70, 90, 31, "mix"), (90, 70, 32, "mix"), (56, 56, 33, "shapes"), (120, 50, 34, "lines"),
                             (84, 112, 35, "mix")], messages=shots + [user(None, "What colour is the kite?")]),
        "wide": dict(images=[(40, 330, 41, "mix")], messages=[user(None, "What does the wide street show?")]),
        "tall": dict(images=[(310, 36, 42, "extreme")], messages=[user(None, "How many windows?")]),
        "text_only": dict(images=[], messages=[user("How are you? Count: 1, 2, 3.")]),
    }


# ----------------------------------------------------------------------------- reference run
@torch.no_grad()
def run(model, processor, case, new_tokens=16):
    """Eager attention in float32 on the stored weights. Returns tensors, JSON fields, pictures."""
    images = [Image.fromarray(synth_image(*spec)) for spec in case["images"]]
    prompt = case.get("prompt") or processor.apply_chat_template(case["messages"], add_generation_prompt=True)
    inputs = dict(processor(text=[prompt], images=images or None, return_tensors="pt"))
    ids = inputs["input_ids"][0]
    out = {"input_ids": ids}
    spans = []
    if images:
        out["pixel_values"] = inputs["pixel_values"].float()
        pictures = {k: inputs[k] for k in ("pixel_values", "image_sizes", "image_grid_thw") if k in inputs}
        features = list(model.model.get_image_features(**pictures, return_dict=True).pooler_output)
        out["image_features"] = torch.cat(features)
        columns = (ids == model.config.image_token_id).nonzero()[:, 0]
        at = 0
        for f in features:
            spans.append([int(columns[at]), len(f)])
            at += len(f)

    states = {}
    hooks = [layer.register_forward_hook(
        lambda _m, _a, o, i=i: states.__setitem__(i + 1, (o[0] if isinstance(o, tuple) else o)[0].clone()))
        for i, layer in enumerate(model.model.language_model.layers)]
    res = model(**inputs, output_hidden_states=True, output_attentions=True)
    for hook in hooks:
        hook.remove()
    out["hidden.0"] = res.hidden_states[0][0]
    out.update({f"hidden.{i}": states[i] for i in sorted(states)})  # before the final norm, the last one too
    out["final_norm"] = res.hidden_states[-1][0]
    out["logits_tail"] = res.logits[0, -4:]
    out.update({f"attn.{i}.last_row": a[0, :, -1] for i, a in enumerate(res.attentions)})

    generated = model.generate(**inputs, max_new_tokens=new_tokens, output_logits=True, return_dict_in_generate=True)
    out["greedy_tokens"] = generated.sequences[0, len(ids):]
    top = torch.cat(generated.logits).float().topk(2, -1).values
    out["greedy_margin"] = top[:, 0] - top[:, 1]
    fields = {"prompt": prompt, "messages": case.get("messages"), "image_spans": spans, "input_ids": ids.tolist(),
              "greedy_tokens": out["greedy_tokens"].tolist(),
              "text": processor.tokenizer.decode(out["greedy_tokens"], skip_special_tokens=True)}
    return {k: v.detach().contiguous().clone() for k, v in out.items()}, fields, images


def write_cases(checkpoint, out, chosen):
    from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig
    os.makedirs(os.path.join(out, "images"), exist_ok=True)
    processor = AutoProcessor.from_pretrained(checkpoint)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager")
    model.eval()
    model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)  # plain argmax, no end of sequence
    for name, case in chosen.items():
        tensors, fields, images = run(model, processor, case)
        fields["image_files"] = []
        for (h, w, seed, kind), image in zip(case["images"], images):
            file = f"images/{h}x{w}_{kind}_{seed}.png"
            image.save(os.path.join(out, file))
            fields["image_files"].append(file)
        path = os.path.join(out, name + ".safetensors")
        save_file(tensors, path)
        os.chmod(path, 0o644)
        dump(out, name + ".json", fields)
        print(f"{name:14s} {len(fields['input_ids']):4d} tokens, smallest margin {float(tensors['greedy_margin'].min()):.4f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=os.path.join(HERE, "llava15"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    import transformers
    transformers.logging.set_verbosity_error()
    make_checkpoint(args.out, args.seed)
    write_cases(args.out, os.path.join(args.out, "cases"), cases())


if __name__ == "__main__":
    main()
