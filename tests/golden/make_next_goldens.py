#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes tests/golden/llava_next_mistral and llava_next_vicuna: tiny LLaVA-NeXT checkpoints with random weights, and what
Transformers computes on them.

    python make_next_goldens.py [--out .] [--seed 0]

The first lies on disk as published ones do (old names and config, shards); the second as Transformers 5 saves one (new
names, every key written out, one processor_config.json, chat_template.jinja). Nothing is read but the pinned wheels.
"""
import argparse
import json
import os

import make_goldens as base  # sets the environment before the wheels are imported

import torch
from safetensors.torch import save_file
from tokenizers import pre_tokenizers

user, assistant = base.user, base.assistant
MISTRAL_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' }}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] }}{% endfor %}{{ ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'][0]['text'] + '</s> ' }}{% endif %}{% endfor %}")


def pinpoints(tile):
    return [[tile, 2 * tile], [2 * tile, tile], [2 * tile, 2 * tile], [3 * tile, tile], [tile, 3 * tile]]


def vision_config(tile):
    return {"model_type": "clip_vision_model", "hidden_size": 64, "image_size": tile, "intermediate_size": 128,
            "num_attention_heads": 4, "num_hidden_layers": 4, "patch_size": 14, "projection_dim": 64, "vocab_size": 32000}


def next_config(ids, vocab_size, tile, text, dtype):
    return {"ignore_index": -100, "image_token_index": ids["<image>"], "pad_token_id": ids["<pad>"],
            "projector_hidden_act": "gelu", "text_config": dict(text, torch_dtype=dtype, vocab_size=vocab_size),
            "tie_word_embeddings": False, "torch_dtype": dtype, "transformers_version": "4.36.0.dev0",
            "vision_config": vision_config(tile), "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
            "vocab_size": vocab_size, "architectures": ["LlavaNextForConditionalGeneration"], "model_type": "llava_next",
            "image_grid_pinpoints": pinpoints(tile), "use_image_newline_parameter": True}


def image_processor_config(tile):
    return {"crop_size": {"height": tile, "width": tile}, "do_center_crop": True, "do_convert_rgb": True,
            "do_normalize": True, "do_pad": True, "do_rescale": True, "do_resize": True,
            "image_grid_pinpoints": pinpoints(tile), "image_mean": base.CLIP_MEAN, "image_std": base.CLIP_STD,
            "image_processor_type": "LlavaNextImageProcessor", "processor_class": "LlavaNextProcessor", "resample": 3,
            "rescale_factor": 0.00392156862745098, "size": {"shortest_edge": tile}}


def write_tokenizer(folder, tokenizer, legacy):
    ids = {t: tokenizer.token_to_id(t) for t in base.SPECIAL}
    tokenizer.save(os.path.join(folder, "tokenizer.json"))
    added = {str(ids[t]): {"content": t, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
                           "special": True} for t in base.SPECIAL}
    base.dump(folder, "special_tokens_map.json", {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>",
                                                  "unk_token": "<unk>"})
    base.dump(folder, "tokenizer_config.json", {
        "add_bos_token": True, "add_eos_token": False, "added_tokens_decoder": added, "bos_token": "<s>",
        "clean_up_tokenization_spaces": False, "eos_token": "</s>", "extra_special_tokens": {"image_token": "<image>"},
        "image_token": "<image>", "legacy": legacy, "model_max_length": 1000000000000000019884624838656,
        "pad_token": "<pad>", "padding_side": "left", "processor_class": "LlavaNextProcessor",
        "tokenizer_class": "LlamaTokenizer", "unk_token": "<unk>"})
    base.dump(folder, "generation_config.json", {
        "_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": ids["<pad>"],
        "transformers_version": "4.36.0.dev0"})
    return ids, (tokenizer.get_vocab_size(with_added_tokens=True) + 63) // 64 * 64


def weights_of(folder, seed, dtype):
    """Published name -> tensor."""
    from transformers import AutoConfig, AutoModelForImageTextToText
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    shapes = {base.published_name(n): tuple(p.shape) for n, p in model.named_parameters()}
    return {n: base.random_weight(n, s, seed).to(dtype).contiguous() for n, s in shapes.items()}


def write_shards(folder, weights, count):
    parts = [dict(list(weights.items())[i::count]) for i in range(count)]
    index = {"metadata": {"total_size": sum(t.numel() * t.element_size() for t in weights.values())}, "weight_map": {}}
    for i, part in enumerate(parts):
        file = f"model-{i + 1:05d}-of-{count:05d}.safetensors"
        save_file(part, os.path.join(folder, file), metadata={"format": "pt"})
        os.chmod(os.path.join(folder, file), 0o644)
        index["weight_map"].update({n: file for n in part})
    index["weight_map"] = dict(sorted(index["weight_map"].items()))
    base.dump(folder, "model.safetensors.index.json", index)


def new_name(name):
    """Name in the published repositories -> name in saves of 4.52 and later."""
    if name == "language_model.lm_head.weight":
        return "lm_head.weight"
    return "model." + name.replace("language_model.model.", "language_model.", 1)


def make_mistral(folder, seed):
    os.makedirs(folder, exist_ok=True)
    ids, vocab_size = write_tokenizer(folder, base.make_tokenizer(1600, seed), legacy=True)
    text = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_size": 128, "intermediate_size": 224,
            "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-5, "rope_theta": 1000000.0, "sliding_window": 96}
    base.dump(folder, "config.json", next_config(ids, vocab_size, 56, text, "bfloat16"))
    base.dump(folder, "preprocessor_config.json", image_processor_config(56))
    base.dump(folder, "processor_config.json", {
        "image_token": "<image>", "num_additional_image_tokens": 1, "patch_size": 14,
        "processor_class": "LlavaNextProcessor", "vision_feature_select_strategy": "default"})
    base.dump(folder, "chat_template.json", {"chat_template": MISTRAL_TEMPLATE})
    write_shards(folder, weights_of(folder, seed + 4, torch.bfloat16), 3)


def make_vicuna(folder, seed):
    from transformers import AutoConfig, AutoProcessor
    os.makedirs(folder, exist_ok=True)
    tokenizer = base.make_tokenizer(1500, seed)
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="first", split=False)
    ids, vocab_size = write_tokenizer(folder, tokenizer, legacy=False)
    text = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 96, "intermediate_size": 192,
            "num_hidden_layers": 8, "num_attention_heads": 6, "num_key_value_heads": 6, "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5}
    base.dump(folder, "config.json", next_config(ids, vocab_size, 84, text, "float16"))
    base.dump(folder, "preprocessor_config.json", image_processor_config(84))
    base.dump(folder, "processor_config.json", {
        "image_token": "<image>", "num_additional_image_tokens": 1, "patch_size": 14,
        "processor_class": "LlavaNextProcessor", "vision_feature_select_strategy": "default"})
    with open(os.path.join(folder, "chat_template.jinja"), "w", encoding="utf-8") as f:
        f.write(base.TEMPLATE)
    weights = {new_name(n): t for n, t in weights_of(folder, seed + 1, torch.float16).items()}
    save_file(weights, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
    os.chmod(os.path.join(folder, "model.safetensors"), 0o644)
    # What the library itself makes of these files when it saves them.
    processor, config = AutoProcessor.from_pretrained(folder), AutoConfig.from_pretrained(folder)
    with open(os.path.join(folder, "tokenizer.json"), encoding="utf-8") as f:
        tokenizer_json = f.read()
    os.remove(os.path.join(folder, "preprocessor_config.json"))
    os.remove(os.path.join(folder, "special_tokens_map.json"))
    processor.save_pretrained(folder)
    config.save_pretrained(folder)
    with open(os.path.join(folder, "tokenizer.json"), "w", encoding="utf-8") as f:
        f.write(tokenizer_json)  # 5.x rewrites the pipeline of LlamaTokenizer: the file stays the one tested here


SCRIPTS = ["Où est la fenêtre ? Près du café, 3½ naïve façade.", "Кошка сидит на столе. Где книга?",
           "猫坐在桌子上。图片里有什么?", "犬は庭にいます。고양이가 잔다.", "أين القطة؟ القطة على الطاولة. 😀"]


def mistral_cases():
    chosen = dict(base.cases())
    chosen["pair_raw"] = dict(images=chosen["pair_raw"]["images"],
                              prompt="[INST] Compare the dog in <image> with the cat in <image>, please. [/INST]")
    chosen["eight"] = dict(images=[(30 + 3 * i, 30 - i, 50 + i, "shapes") for i in range(8)],
                           messages=[user(*[None] * 8, "Which picture shows the boat?")])
    chosen["sliver"] = dict(images=[(1, 700, 43, "mix"), (2, 57, 44, "noise")],
                            messages=[user(None, None, "Which line is longer?")])
    return chosen


def vicuna_cases():
    chosen = base.cases()
    scripts = []
    for i, text in enumerate(SCRIPTS):
        scripts += [user(*([None] if i == 1 else []), text), assistant(SCRIPTS[-1 - i])]
    return {
        "single": chosen["single"],
        "tall": chosen["tall"],
        "icl2": dict(images=[(90, 70, 32, "mix"), (120, 50, 34, "lines"), (84, 112, 35, "mix")],
                     messages=chosen["icl4"]["messages"][2:6] + [user(None, "What colour is the kite?")]),
        "five_scripts": dict(images=[(64, 61, 22, "lines")], messages=scripts[:-1]),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=base.HERE)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    import transformers
    transformers.logging.set_verbosity_error()
    for name, make, chosen in (("llava_next_mistral", make_mistral, mistral_cases()),
                               ("llava_next_vicuna", make_vicuna, vicuna_cases())):
        folder = os.path.join(args.out, name)
        make(folder, args.seed)
        base.write_cases(folder, os.path.join(folder, "cases"), chosen)


if __name__ == "__main__":
    main()
