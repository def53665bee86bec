#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes tests/golden/qwen25vl: a tiny Qwen2.5-VL checkpoint with random weights, and what Transformers computes on it.

    python make_qwen_goldens.py [--out qwen25vl] [--seed 0]

Reads tokenizer/qwen25vl/tokenizer.json and the pinned wheels (README.md). The same seed gives the same files.
"""
import argparse
import json
import os
import random
import shutil

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from PIL import Image
from safetensors.torch import save_file

from make_goldens import CLIP_MEAN, CLIP_STD, HERE, assistant, dump, random_weight, synth_image, user

TOKENIZER = os.path.join(HERE, "tokenizer", "qwen25vl", "tokenizer.json")
TEMPLATE = (  # renders as the published one does for pictures and text
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% elif 'text' in c %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
MOST_PIXELS = 112 * 112


# ----------------------------------------------------------------------------- checkpoint
def make_config(ids):
    """As published: the decoder at the top level, keys in the old style."""
    vision = {"depth": 5, "hidden_act": "silu", "hidden_size": 40, "intermediate_size": 60, "num_heads": 2, "in_chans": 3,
              "out_hidden_size": 64, "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14,
              "window_size": 56, "fullatt_block_indexes": [1, 4], "tokens_per_second": 2, "temporal_patch_size": 2}
    return {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "attention_dropout": 0.0,
            "bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"],
            "vision_start_token_id": ids["<|vision_start|>"], "vision_end_token_id": ids["<|vision_end|>"],
            "vision_token_id": ids["<|vision_pad|>"], "image_token_id": ids["<|image_pad|>"],
            "video_token_id": ids["<|video_pad|>"], "hidden_act": "silu", "hidden_size": 64, "initializer_range": 0.02,
            "intermediate_size": 128, "max_position_embeddings": 2048, "max_window_layers": 8,
            "model_type": "qwen2_5_vl", "num_attention_heads": 4, "num_hidden_layers": 8, "num_key_value_heads": 2,
            "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": False,
            "torch_dtype": "bfloat16", "transformers_version": "4.41.2", "use_cache": True, "use_sliding_window": False,
            "vision_config": vision, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}, "vocab_size": 1088}


def published_name(name):
    """Name in the library -> name in the published repositories."""
    if name.startswith("model.language_model."):
        return "model." + name.removeprefix("model.language_model.")
    return name.removeprefix("model.") if name.startswith("model.visual.") else name


def weight(name, shape, seed):
    norm_like = name.replace("norm1.", "layer_norm1.").replace("norm2.", "layer_norm2.").replace("ln_q", "layer_norm_q")
    return random_weight(norm_like, shape, seed).to(torch.bfloat16).contiguous()


def make_checkpoint(folder, seed, make_config=make_config, **processor):
    """`processor`: settings of the image processor other than Qwen2.5-VL's."""
    os.makedirs(folder, exist_ok=True)
    shutil.copyfile(TOKENIZER, os.path.join(folder, "tokenizer.json"))
    with open(TOKENIZER, encoding="utf-8") as f:
        added = json.load(f)["added_tokens"]
    ids = {t["content"]: t["id"] for t in added}
    dump(folder, "tokenizer_config.json", {
        "add_bos_token": False, "add_prefix_space": False, "bos_token": None, "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>", "errors": "replace", "model_max_length": 131072, "pad_token": "<|endoftext|>",
        "split_special_tokens": False, "tokenizer_class": "Qwen2Tokenizer", "unk_token": None,
        "added_tokens_decoder": {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in added}})
    dump(folder, "preprocessor_config.json", {
        "min_pixels": 3136, "max_pixels": MOST_PIXELS, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
        "image_mean": CLIP_MEAN, "image_std": CLIP_STD, "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor", **processor})
    dump(folder, "generation_config.json", {
        "bos_token_id": ids["<|endoftext|>"], "pad_token_id": ids["<|endoftext|>"], "do_sample": True,
        "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]], "repetition_penalty": 1.3, "temperature": 1e-06,
        "transformers_version": "4.49.0"})
    dump(folder, "chat_template.json", {"chat_template": TEMPLATE})
    dump(folder, "config.json", make_config(ids))

    from transformers import AutoConfig, AutoModelForImageTextToText
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    path = os.path.join(folder, "model.safetensors")
    save_file({published_name(n): weight(published_name(n), tuple(p.shape), seed) for n, p in model.named_parameters()},
              path, metadata={"format": "pt"})
    os.chmod(path, 0o644)


# ----------------------------------------------------------------------------- cases
def cases():
    """name -> images as (height, width, seed, kind), and messages (None is a picture) or the exact prompt."""
    shots = []
    for question, answer in [("What is the red cat doing?", "sitting"), ("How many dogs are in the image?", "3"),
                             ("Where's the small boat?", "near the wall"), ("Is there a clock?", "yes")]:
        shots += [user(None, question), assistant(answer)]
    place = "<|vision_start|><|image_pad|><|vision_end|>"
    return {
        "single": dict(images=[(100, 76, 11, "mix")], messages=[user(None, "What is shown in this image?")]),
        "pair": dict(images=[(90, 120, 21, "mix"), (64, 61, 22, "lines")],
                     messages=[user("First picture:", None, "second picture:", None, "What changed?")]),
        "pair_raw": dict(images=[(30, 30, 12, "shapes"), (70, 98, 23, "mix")],
                         prompt=f"{place}Compare it with {place}, please.\n"),
        "icl4": dict(images=[(70, 90, 31, "mix"), (90, 70, 32, "mix"), (56, 56, 33, "shapes"), (120, 50, 34, "lines"),
                             (84, 112, 35, "mix")], messages=shots + [user(None, "What colour is the kite?")]),
        "eight": dict(images=[(60 + 7 * i, 110 - 5 * i, 50 + i, "shapes") for i in range(8)],
                      messages=[user(*[None] * 8, "Which of them shows a clock?")]),
        "wide": dict(images=[(9, 700, 41, "mix")], messages=[user(None, "What does the wide street show?")]),
        "tall": dict(images=[(610, 6, 42, "extreme")], messages=[user(None, "How many windows?")]),
        "scripts": dict(images=[(60, 60, 43, "mix")], messages=[user(
            "Où est la fenêtre ? Кошка сидит на столе. ", None, "猫坐在桌子上。图片里有什么? 고양이가 잔다. "
            "γάτα στο τραπέζι, e\u0301 と犬 هنا 😀")]),
        "text_only": dict(images=[], messages=[user("How are you? Count: 1, 2, 3.")]),
    }


WITH_PIXELS = {"single", "pair_raw", "wide"}  # elsewhere the features stand for them: they are large


# ----------------------------------------------------------------------------- reference run
class Reference:
    """Eager attention in float32 on the stored weights, pixels of the PIL backend."""

    def __init__(self, checkpoint):
        from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor
        self.processor = AutoProcessor.from_pretrained(checkpoint)
        self.processor.image_processor = AutoImageProcessor.from_pretrained(checkpoint, backend="pil")
        self.model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32,
                                                                 attn_implementation="eager")
        self.model.eval()
        self.generation_config = self.model.generation_config

    def generate(self, inputs, config, **options):
        self.model.generation_config = config
        self.model.model.rope_deltas = None
        out = self.model.generate(**inputs, max_new_tokens=16, return_dict_in_generate=True, **options)
        return out, out.sequences[0, inputs["input_ids"].shape[1]:]

    @torch.no_grad()
    def run(self, name, case, with_pixels):
        """Returns tensors, JSON fields, pictures."""
        from transformers import GenerationConfig
        model = self.model
        images = [Image.fromarray(synth_image(*spec)) for spec in case["images"]]
        prompt = case.get("prompt") or self.processor.apply_chat_template(case["messages"], add_generation_prompt=True)
        inputs = dict(self.processor(text=[prompt], images=images or None, return_tensors="pt"))
        ids = inputs["input_ids"][0]
        out = {"input_ids": ids}
        if images:
            if name in with_pixels:
                out["pixel_values"] = inputs["pixel_values"].float()
            grid = inputs["image_grid_thw"]
            out["image_grid_thw"] = grid
            features = model.model.get_image_features(inputs["pixel_values"], image_grid_thw=grid, return_dict=True)
            out["image_features"] = torch.cat(list(features.pooler_output))
            positions, delta = model.model.get_rope_index(
                inputs["input_ids"], mm_token_type_ids=inputs["mm_token_type_ids"], image_grid_thw=grid,
                attention_mask=inputs["attention_mask"])
            out["position_ids"], out["rope_delta"] = positions[:, 0], delta[0]
        else:
            out["position_ids"] = torch.arange(len(ids)).expand(3, -1)
            out["rope_delta"] = torch.zeros(1, dtype=torch.long)

        states = {}
        hooks = [layer.register_forward_hook(
            lambda _m, _a, o, i=i: states.__setitem__(i + 1, (o[0] if isinstance(o, tuple) else o)[0].clone()))
            for i, layer in enumerate(model.model.language_model.layers)]
        model.model.rope_deltas = None
        res = model(**inputs, output_hidden_states=True)
        for hook in hooks:
            hook.remove()
        out["hidden.0"] = res.hidden_states[0][0]
        out.update({f"hidden.{i}": states[i] for i in sorted(states)})  # before the final norm, the last one too
        out["final_norm"] = res.hidden_states[-1][0]
        out["logits_tail"] = res.logits[0, -4:]

        plain = GenerationConfig(do_sample=False, pad_token_id=0)  # argmax, no end of sequence
        generated, out["greedy_tokens"] = self.generate(inputs, plain, output_logits=True)
        top = torch.cat(generated.logits).float().topk(2, -1).values
        out["greedy_margin"] = top[:, 0] - top[:, 1]
        # With the checkpoint's repetition penalty; its temperature of 1e-6 is an argmax too.
        penalised = GenerationConfig(do_sample=False, pad_token_id=0,
                                     repetition_penalty=self.generation_config.repetition_penalty)
        generated, out["penalised_tokens"] = self.generate(inputs, penalised, output_scores=True)
        top = torch.cat(generated.scores).float().topk(2, -1).values
        out["penalised_margin"] = top[:, 0] - top[:, 1]
        tokenizer = self.processor.tokenizer
        fields = {"prompt": prompt, "messages": case.get("messages"), "input_ids": ids.tolist(),
                  "greedy_tokens": out["greedy_tokens"].tolist(),
                  "text": tokenizer.decode(out["greedy_tokens"], skip_special_tokens=True)}
        return {k: v.detach().contiguous().clone() for k, v in out.items()}, fields, images


def write_cases(checkpoint, out, cases, with_pixels):
    os.makedirs(os.path.join(out, "images"), exist_ok=True)
    reference = Reference(checkpoint)
    for name, case in cases.items():
        tensors, fields, images = reference.run(name, case, with_pixels)
        fields["image_files"] = []
        for (h, w, seed, kind), image in zip(case["images"], images):
            file = f"images/{h}x{w}_{kind}_{seed}.png"
            image.save(os.path.join(out, file))
            fields["image_files"].append(file)
        path = os.path.join(out, name + ".safetensors")
        save_file(tensors, path)
        os.chmod(path, 0o644)
        dump(out, name + ".json", fields)
        print(f"{name:10s} {len(fields['input_ids']):4d} tokens, {tensors.get('image_grid_thw', torch.zeros(0)).tolist()}, "
              f"smallest margins {float(tensors['greedy_margin'].min()):.4f} {float(tensors['penalised_margin'].min()):.4f}")


# ----------------------------------------------------------------------------- image processor
SMALL = {"patch_size": 4, "min_pixels": 256, "max_pixels": 4096}
PROCESSORS = {  # name: (configuration, (height, width, kind) of the picture)
    "published": ({"min_pixels": 3136, "max_pixels": 6272, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2},
                  (75, 110, "mix")),
    "small": (SMALL, (33, 61, "mix")),
    "enlarged": (SMALL, (5, 9, "mix")),
    "one_pixel": (SMALL, (1, 1, "mix")),
    "shrunk": (SMALL, (190, 120, "extreme")),
    "wide": (SMALL, (2, 390, "noise")),
    "tall": (SMALL, (400, 2, "noise")),
    "size": ({"patch_size": 4, "size": {"shortest_edge": 1024, "longest_edge": 2048}}, (20, 31, "mix")),
    "size_and_pixels": ({"patch_size": 4, "size": {"shortest_edge": 64, "longest_edge": 128}, "min_pixels": 512,
                         "max_pixels": 1024}, (20, 31, "mix")),
    "merge_3": ({**SMALL, "merge_size": 3, "temporal_patch_size": 1}, (40, 61, "mix")),
    "three_frames": ({**SMALL, "temporal_patch_size": 3}, (21, 30, "mix")),
    "no_resize": ({**SMALL, "do_resize": False}, (24, 40, "mix")),
    "no_rescale": ({**SMALL, "do_rescale": False}, (20, 31, "mix")),
    "no_normalize": ({**SMALL, "do_normalize": False}, (20, 31, "mix")),
    "other_numbers": ({**SMALL, "rescale_factor": 0.01, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 2.0, 0.25]},
                      (20, 31, "mix")),
}


def write_pixels(folder):
    """Pictures and what the PIL backend makes of them; and sizes of pictures with the grids they get."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize
    os.makedirs(folder, exist_ok=True)
    tensors, configs = {}, {}
    for i, (name, (config, (h, w, kind))) in enumerate(PROCESSORS.items()):
        image = synth_image(h, w, 300 + i, kind)
        out = Qwen2VLImageProcessorPil(**config)(images=[Image.fromarray(image)], return_tensors="pt")
        tensors[f"{name}.image"] = torch.from_numpy(image)
        tensors[f"{name}.pixel_values"] = out["pixel_values"].float().contiguous()
        tensors[f"{name}.grid"] = out["image_grid_thw"][0].clone()
        configs[name] = {"image_processor_type": "Qwen2VLImageProcessor", **config}
    rows, r = [], random.Random(5)
    halves = [(h, w) for h in (14, 28, 42, 70, 98, 126) for w in (14, 42, 56, 70, 1400)]
    for i in range(2000):
        h, w = halves[i] if i < len(halves) else (int(10 ** r.uniform(0, 3.8)), int(10 ** r.uniform(0, 3.8)))
        if max(h, w) > 200 * min(h, w):
            continue
        low, high = r.choice([(3136, 12845056), (3136, 1003520), (784, 784), (50176, 50177), (3136, 200704)])
        rows.append((h, w, low, high) + smart_resize(h, w, 28, low, high))
    tensors["resized"] = torch.tensor(rows)  # int64 [sizes, 6]: height, width, min_pixels, max_pixels, and the result
    path = os.path.join(folder, "cases.safetensors")
    save_file(tensors, path)
    os.chmod(path, 0o644)
    dump(folder, "configs.json", configs)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=os.path.join(HERE, "qwen25vl"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    import transformers
    transformers.logging.set_verbosity_error()
    make_checkpoint(args.out, args.seed)
    write_cases(args.out, os.path.join(args.out, "cases"), cases(), WITH_PIXELS)
    write_pixels(os.path.join(args.out, "pixels"))


if __name__ == "__main__":
    main()
