# SPDX-License-Identifier: Apache-2.0
"""tokenizer.json files in the styles that published models use, and what the `tokenizers` library makes of them.

    python make_style_goldens.py                        # styles/NAME.json, which tokenizer_test.cpp reads
    python make_style_goldens.py fuzz ESPALIER [COUNT]  # COUNT (20000) random texts per style through the binary, nothing is kept

Each style has the parts of a published file (normalizer, pre-tokenizer, model flags, post-processor, decoder, kinds of added
tokens) around a small vocabulary that is trained here, with the style's own pre-tokenizer, on random texts. styles/NAME.json:
the file as "tokenizer", and cases as make_tokenizer_goldens.py describes them ("loses_text": not all text becomes tokens). Needs: pip install tokenizers==0.23.3
"""
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from make_tokenizer_goldens import HARD, WORDS, cases, random_text, write
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

HERE = Path(__file__).parent
GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
          r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|"
          r"\s*[\r\n]+|\s+(?!\S)|\s+")
DEEPSEEK = ["[\r\n]", r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-Ֆ]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$",
            "[一-龥ࠀ-一가-퟿]+"]
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"


def split(pattern, behavior="Isolated", invert=False, kind="Regex"):
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}


def byte_level(use_regex=False, add_prefix_space=False):
    return {"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": True, "use_regex": use_regex}


def sequence(kind, *steps):
    return {"type": "Sequence", {"post": "processors", "pre": "pretokenizers"}.get(kind, kind + "s"): list(steps)}


def metaspace(scheme, split_words=False):
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split_words}


def bos(token, ids):
    return {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {token: {"id": token, "ids": ids, "tokens": [token]}}}


PREPEND = {"type": "Prepend", "prepend": "▁"}
SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
LLAMA_DECODER = sequence("decoder", {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
                         {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0})
BYTES = {"byte_level": True, "decoder": byte_level(True, True)}
CHARACTERS = {"byte_level": False, "decoder": LLAMA_DECODER}
QWEN_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>"]

# name -> parts. "tokens": content -> flags that differ from {special: true}.
STYLES = {
    "llama3": BYTES | {"pre": sequence("pre", split(LLAMA3), byte_level()), "ignore_merges": True,
                       "post": sequence("post", byte_level(True, True), bos("<|begin_of_text|>", [0])),
                       "tokens": {"<|begin_of_text|>": {}, "<|eot_id|>": {}, "<image>": {}}},
    "mistral": CHARACTERS | {"normalizer": sequence("normalizer", PREPEND, SPACES), "pre": None, "post": bos("<s>", [1]),
                             "tokens": {"<unk>": {}, "<s>": {}, "</s>": {}, "<image>": {}}},
    "mistral_metaspace": CHARACTERS | {"pre": metaspace("first"), "post": bos("<s>", [1]),
                                       "tokens": {"<unk>": {}, "<s>": {}, "</s>": {}, "[IMG]": {}}},
    "mistral_tekken": BYTES | {"pre": sequence("pre", split(TEKKEN), byte_level()), "ignore_merges": True, "post": bos("<s>", [1]),
                               "tokens": {"<unk>": {}, "<s>": {}, "</s>": {}, "[IMG]": {}}},
    "qwen": BYTES | {"normalizer": {"type": "NFC"}, "pre": sequence("pre", split(QWEN2), byte_level()), "post": byte_level(),
                     "tokens": {t: {} for t in QWEN_TOKENS}},
    "gpt2": BYTES | {"pre": byte_level(True), "post": byte_level(True), "tokens": {"<|endoftext|>": {"normalized": True}}},
    "roberta": BYTES | {"pre": byte_level(True, True),
                        "post": {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0], "trim_offsets": True,
                                 "add_prefix_space": True},
                        "tokens": {"<s>": {"normalized": True}, "<pad>": {"normalized": True}, "</s>": {"normalized": True},
                                   "<image>": {"lstrip": True}}},
    "gpt_neox": BYTES | {"normalizer": {"type": "NFC"}, "pre": byte_level(True),
                         "tokens": {"<|endoftext|>": {}, "   ": {"special": False, "normalized": True}, "  ": {"special": False}}},
    "smollm": BYTES | {"pre": sequence("pre", {"type": "Digits", "individual_digits": True}, byte_level(True)),
                       "tokens": {t: {} for t in QWEN_TOKENS}},
    "falcon": BYTES | {"pre": sequence("pre", {"type": "Punctuation", "behavior": "Contiguous"}, byte_level(True),
                                       {"type": "Digits", "individual_digits": False}, split("[0-9][0-9][0-9]")),
                       "post": byte_level(True), "tokens": {"<|endoftext|>": {}, "<image>": {"single_word": True}}},
    "deepseek": BYTES | {"normalizer": sequence("normalizer"),
                         "pre": sequence("pre", *[split(p) for p in DEEPSEEK], {"type": "Digits", "individual_digits": True}, byte_level()),
                         "post": bos("<|begin▁of▁sentence|>", [0]),
                         "tokens": {"<|begin▁of▁sentence|>": {"normalized": True}, "<image>": {"special": False}}},
    "bloom": BYTES | {"pre": sequence("pre", split(BLOOM, "Isolated"), byte_level()), "tokens": {"<s>": {}, "</s>": {}}},
    "words_only": BYTES | {"pre": sequence("pre", split(r"\w+", "Removed", True), byte_level()), "tokens": {"</s>": {}}},
    "gemma": CHARACTERS | {"normalizer": SPACES, "pre": split(" ", "MergedWithPrevious", kind="String"), "post": bos("<s>", [1]),
                           "decoder": sequence("decoder", LLAMA_DECODER["decoders"][0], {"type": "ByteFallback"}, {"type": "Fuse"}),
                           "tokens": {"<unk>": {}, "<s>": {}, "</s>": {}, "\n\n": {"special": False}}},
    "phi3": CHARACTERS | {"normalizer": sequence("normalizer", PREPEND, SPACES), "pre": None,
                          "tokens": {"<unk>": {}, "<s>": {}, "</s>": {"rstrip": True, "special": False}, "<image>": {"rstrip": True}}},
    "metaspace": CHARACTERS | {"pre": sequence("pre", split(r"[.,!?]", "MergedWithNext"), metaspace("always", True)),
                               "decoder": metaspace("always", True), "tokens": {"<unk>": {}, "<image>": {"single_word": True, "lstrip": True}}},
}


def texts(seed, count):
    r = random.Random(seed)
    return [random_text(r, r.choice(["llama", "qwen"])) for _ in range(count)]


def tokenizer_json(style):
    """The style's file around a vocabulary that is trained with its pre-tokenizer."""
    added = [{"id": 0, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True} | flags
             for content, flags in style["tokens"].items()]
    byte_tokens = [] if style["byte_level"] else [f"<0x{b:02X}>" for b in range(256)]
    content = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": style.get("normalizer"),
               "pre_tokenizer": style["pre"], "post_processor": None, "decoder": style["decoder"],
               "model": {"type": "BPE", "vocab": {}, "merges": []}}
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.train_from_iterator(texts(0, 1500) + WORDS * 40, trainers.BpeTrainer(
        vocab_size=len(byte_tokens) + 600, show_progress=False, special_tokens=list(style["tokens"]) + byte_tokens,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()) if style["byte_level"] else [],
        limit_alphabet=400 if style["byte_level"] else 120))
    model = json.loads(tokenizer.to_str())["model"]
    vocab, merges = model["vocab"], model["merges"]
    for word in WORDS[::3]:  # tokens that no merges lead to, which ignore_merges finds
        if style["byte_level"] and word.isascii() and "Ġ" + word not in vocab:
            vocab["Ġ" + word] = len(vocab)
    for token in added:
        token["id"] = vocab[token["content"]]
    unknown = "<unk>" if "<unk>" in style["tokens"] and not style["byte_level"] else None
    content["model"] = {"type": "BPE", "dropout": None, "unk_token": unknown, "continuing_subword_prefix": "" if style["byte_level"] else None,
                        "end_of_word_suffix": "" if style["byte_level"] else None, "fuse_unk": not style["byte_level"],
                        "byte_fallback": not style["byte_level"], "ignore_merges": style.get("ignore_merges", False),
                        "vocab": vocab, "merges": merges}
    content["added_tokens"], content["post_processor"] = sorted(added, key=lambda token: token["id"]), style.get("post")
    return content


def goldens():
    (HERE / "styles").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokenizer.json"
        for seed, (name, style) in enumerate(STYLES.items()):
            file.write_text(json.dumps(tokenizer_json(style)))
            kind = "llama" if seed % 2 else "qwen"
            fixed = ["", " ", "a<image> b </s> c", "x<image>y _<image>", "  two  spaces ", "don't 12345 abc.def, x", "\u1b7da \u2e43 a\u166da, \u00bd"] + HARD
            content = json.loads(file.read_text())
            golden = {"tokenizer": content, "loses_text": '"Removed"' in json.dumps(content["pre_tokenizer"])} | cases(file, kind, fixed, seed, 24)
            for case in golden["texts"] if '"trim_offsets": true' in json.dumps(content["post_processor"]) or golden["loses_text"] else []:
                case.pop("ends", None)  # that takes white space off a token's offsets, which say where it ends here
            write(HERE / "styles" / f"{name}.json", golden)


def fuzz(espalier, count):
    failed = 0
    for seed, (name, style) in enumerate(STYLES.items()):
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(style)))
            (folder / "in.json").write_text(json.dumps([{"text": t} for t in texts(1000 + seed, count)]))
            subprocess.run([espalier, "tokenize", "--model", folder, "--in", folder / "in.json", "--out", folder / "out.json"], check=True)
            reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
            ours = json.loads((folder / "out.json").read_text())
            encoded = reference.encode_batch([c["text"] for c in ours])
            plain = reference.encode_batch([c["text"] for c in ours], add_special_tokens=False)
            decoded = reference.decode_batch([e.ids for e in plain], skip_special_tokens=False)
            short = reference.decode_batch([e.ids for e in plain], skip_special_tokens=True)
        wrong = [c["text"] for c, e, p, d, s in zip(ours, encoded, plain, decoded, short)
                 if (c["ids"], c["ids_no_special"], c["decoded"], c["decoded_skip_special"]) != (e.ids, p.ids, d, s)]
        print(f"{name}: {len(wrong)} of {count} differ", *[ascii(t) for t in wrong[:3]], flush=True)
        failed += bool(wrong)
    sys.exit(failed > 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["fuzz"]:
        fuzz(sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 20000)
    goldens()
