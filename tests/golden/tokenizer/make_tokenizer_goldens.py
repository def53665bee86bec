# SPDX-License-Identifier: Apache-2.0
"""Makes what tokenizer_test.cpp compares with, by the `tokenizers` library.

    python make_tokenizer_goldens.py [FOLDER-OF-TINY-CHECKPOINTS [FOLDER-OF-GOLDENS]]

For each pipeline NAME: NAME.json with hard texts (the oracle's tokenizer_cases.json and random ones), their ids without special
tokens, the ids' decodings, and random id sequences with theirs. NAME/tokenizer.json for pipelines that no other test folder
holds. variants.json: JSON patches of these files, with cases, for options that the tiny checkpoints do not use.
"""
import copy
import json
import random
import shutil
import sys
import unicodedata
from pathlib import Path

from tokenizers import Tokenizer

HERE = Path(__file__).parent
HARD = [  # marks newer than Unicode 9, white space that regex engines disagree on, case folding, Hangul, marks out of order
    "a\u0345\u1df6\u0301 o\u0345\u08ca", "\U00011935\U00011930", "e\u0345\u0301\u0323x", "x\u180ey \u180e z\u0085\u200b\n",
    "  \u180ethe", "  \u180e  \n\u180e\n x", "'\u017f 'LL 'Re '\u212a", "\u1112\u1161\u11ab\u1100\u1173\u11af \u212b\u2126", "\u0915\u093c\u09c7\u09be\u0cc6\u0cd5",
    "tail   ", "   \n  \n x", "12345 \u0661\u0662 \u2167\u00bd", "a\u0000b", "</s</s>><s><<image>image>"]
COUNT = 220  # random texts a pipeline

SPECIAL = {'llama':['<image>','</s>','<s>','<unk>','<pad>','<0x0A>','<0xE4>','▁','▁▁','<image','image>','<<image>>','\\s'],
 'qwen':['<|im_start|>','<|im_end|>','<|image_pad|>','<|endoftext|>','<tool_call>','</tool_call>','<|fim_prefix|>','<|vision_start|>','<|im_','start|>','<|','Ġ','Ċ','▁']}
WORDS="the dog is running and a picture of what's HERE'S I'll we've don't it'd hello world sheep plate bus image show Describe USER: ASSISTANT: 12 345 2024-01 3.14 foo_bar http://x.y/z?q=1&b=2 #tag @me $9.99 (a) [b] {c} !!! ... -- == :) ;-( caf\u00e9 na\u00efve stra\u00dfe \u01c5 \u0130stanbul \u017f 'S 'ST '\u017f ' LL".split(' ')
SCRIPTS=[(0x20,0x7e),(0xa0,0x24f),(0x250,0x2af),(0x300,0x36f),(0x370,0x3ff),(0x400,0x4ff),(0x530,0x58f),(0x590,0x5ff),(0x600,0x6ff),(0x700,0x74f),(0x900,0x97f),(0x980,0x9ff),(0xb00,0xb7f),(0xb80,0xbff),(0xc80,0xcff),(0xd00,0xd7f),(0xd80,0xdff),(0xe00,0xe7f),(0xe80,0xeff),(0xf00,0xfff),(0x1000,0x109f),(0x10a0,0x10ff),(0x1100,0x11ff),(0x1200,0x137f),(0x1680,0x169f),(0x1780,0x17ff),(0x1800,0x18af),(0x1b00,0x1b7f),(0x1ab0,0x1aff),(0x1dc0,0x1dff),(0x1e00,0x1fff),(0x2000,0x206f),(0x2070,0x20ff),(0x2100,0x218f),(0x2190,0x23ff),(0x2460,0x24ff),(0x2600,0x27bf),(0x2e80,0x2fff),(0x3000,0x30ff),(0x3130,0x318f),(0x4e00,0x4fff),(0xac00,0xaeff),(0xa000,0xa48f),(0xf900,0xfaff),(0xfb00,0xfdff),(0xfe00,0xfe0f),(0xfe20,0xfe2f),(0xff00,0xffef),(0x10000,0x100ff),(0x11000,0x1107f),(0x11100,0x1114f),(0x11300,0x1137f),(0x114b0,0x114cf),(0x1d15e,0x1d1ff),(0x1d400,0x1d7ff),(0x1f300,0x1f6ff),(0x1f900,0x1f9ff),(0x20000,0x200ff),(0x2f800,0x2fa1f),(0xe0100,0xe01ef),(0x10fff0,0x10ffff),(0xe000,0xe0ff)]
SPACES=[' ','  ','   ',' '*7,' '*40,'\n','\n\n','\r\n','\r','\t','\t\t',' \n','\n ',' \n ','\u00a0','\u1680','\u180e','\u2003','\u2028','\u2029','\u200b','\u3000','\u0085','\x0b','\x0c','\x1c','\x1f','\ufeff','\u205f','\u202f']
EMOJI=['😀','👍🏽','👩‍👩‍👧','🇩🇪','❤️','🏴\U000e0067\U000e0062\U000e007f']
def ch(r,assigned=True):
    while True:
        a,b=r.choice(SCRIPTS); c=chr(r.randint(a,b))
        if 0xd800<=ord(c)<=0xdfff: continue
        if assigned and unicodedata.category(c)=='Cn': continue
        return c
def random_text(r, kind, assigned=True):
    out=[]
    for _ in range(r.choice([1,2,3,5,8,13,30])):
        k=r.random()
        if k<.3: out.append(r.choice(WORDS)); 
        elif k<.5: out.append(r.choice(SPACES) if r.random()<.6 else ' ')
        elif k<.62: out.append(r.choice(SPECIAL[kind]))
        elif k<.8:
            a,b=r.choice(SCRIPTS)
            for _ in range(r.randint(1,8)):
                c=chr(r.randint(a,b))
                if not assigned or unicodedata.category(c)!='Cn': out.append(c)
        elif k<.86: out.append(r.choice('aeiouAEOUnscz가각ᄀقক')+''.join(chr(r.choice([r.randint(0x300,0x345),r.randint(0x1161,0x1175),r.randint(0x11a8,0x11c2),0x9be,0x9d7])) for _ in range(r.randint(1,5))))
        elif k<.9: out.append(chr(r.randint(0,0x1f))+r.choice(['','\x7f','\x80','\x9f']))
        elif k<.93: out.append(r.choice(EMOJI))
        elif k<.96: out.append(unicodedata.normalize(r.choice(['NFD','NFC','NFKD']),''.join(ch(r,assigned) for _ in range(4))))
        elif k<.98: out.append(''.join(r.choice("0123456789.,'\"- \n") for _ in range(r.randint(1,12))))
        else: out.append(r.choice('ab <\n▁')*r.randint(1,60))
    return ''.join(out)


def entry(tokenizer, text):
    encoding = tokenizer.encode(text, add_special_tokens=False)
    out = {"text": text, "ids": encoding.ids, "decoded": tokenizer.decode(encoding.ids, skip_special_tokens=False),
           "decoded_skip_special": tokenizer.decode(encoding.ids, skip_special_tokens=True)}
    if text.isascii():  # so that the library's character offsets are bytes
        # A prepended ▁ stands for nothing, yet the library says that it spans the character behind it.
        o = encoding.offsets
        out["ends"] = [o[i][0] if i + 1 < len(o) and o[i + 1][0] == o[i][0] else o[i][1] for i in range(len(o))]
    return out


def decoding(tokenizer, ids):
    return {"ids": ids, "decoded": tokenizer.decode(ids, skip_special_tokens=False),
            "decoded_skip_special": tokenizer.decode(ids, skip_special_tokens=True)}


def cases(file, kind, fixed, seed, count=COUNT):
    tokenizer, r = Tokenizer.from_file(str(file)), random.Random(seed)
    texts = fixed + [random_text(r, kind) for _ in range(count)]
    sequences = [[r.randrange(tokenizer.get_vocab_size()) if r.random() < .5 else r.randrange(3, 262)
                  for _ in range(r.randint(0, 20))] for _ in range(count // 4)]
    return {"prefix": tokenizer.encode("").ids, "texts": [entry(tokenizer, t) for t in texts],
            "sequences": [decoding(tokenizer, s) for s in sequences]}


def write(path, content):
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n")


def patched(base, patch):
    """JSON merge patch (RFC 7386), as nlohmann's merge_patch applies it in the test."""
    if not isinstance(patch, dict):
        return patch
    out = dict(base) if isinstance(base, dict) else {}
    for key, value in patch.items():
        if value is None:
            out.pop(key, None)
        else:
            out[key] = patched(out.get(key), value)
    return out


def variants(llama, metaspace):
    scheme = {f"metaspace {s} {split}": ("llava_next_vicuna", {"pre_tokenizer": {"prepend_scheme": s, "split": split}})
              for s in ("first", "always", "never") for split in (False, True)}
    normalized = copy.deepcopy(metaspace["added_tokens"])
    for token in normalized:
        token["normalized"] = token["content"] in ("</s>", "<image>")
    processor = copy.deepcopy(llama["post_processor"])
    processor["single"].append({"SpecialToken": {"id": "</s>", "type_id": 0}})
    processor["special_tokens"]["</s>"] = {"id": "</s>", "ids": [2], "tokens": ["</s>"]}
    return scheme | {
        "metaspace of 2023": ("llava_next_vicuna", {"pre_tokenizer": {"prepend_scheme": None, "split": None, "add_prefix_space": True}}),
        "normalized added tokens": ("llava_next_vicuna", {"added_tokens": normalized}),
        "unknown fused": ("llava15", {"model": {"byte_fallback": False}}),
        "unknown one by one": ("llava15", {"model": {"byte_fallback": False, "fuse_unk": False}}),
        "eos behind": ("llava15", {"post_processor": processor}),
        "no post-processor": ("llava15", {"post_processor": None}),
        "merges as strings": ("llava15", {"model": {"merges": [" ".join(m) for m in llama["model"]["merges"]][:60]}}),
    }


def main():
    if len(sys.argv) != 3:
        sys.exit("usage: make_tokenizer_goldens.py CHECKPOINTS GOLDENS (folders of make_tiny_checkpoints.py and make_goldens.py)")
    checkpoints, goldens = Path(sys.argv[1]), Path(sys.argv[2])
    raw = {}
    for seed, (name, kind) in enumerate([("llava15", "llama"), ("llava_next_vicuna", "llama"), ("qwen25vl", "qwen")]):
        file = checkpoints / name / "tokenizer.json"
        raw[name] = json.loads(file.read_text())
        if name != "llava15":  # that one is in tests/golden/llava15
            (HERE / name).mkdir(exist_ok=True)
            shutil.copy(file, HERE / name / "tokenizer.json")
        fixed = [c["text"] for c in json.loads((goldens / name / "tokenizer_cases.json").read_text())] + HARD
        write(HERE / f"{name}.json", cases(file, kind, fixed, seed))
    out, scratch = {}, HERE / "variant.tmp"
    for name, (base, patch) in variants(raw["llava15"], raw["llava_next_vicuna"]).items():
        scratch.write_text(json.dumps(patched(raw[base], patch)))
        out[name] = {"base": base, "patch": patch} | cases(scratch, "llama", ["", " ", "a<image> b </s> c", "  two  spaces "], 9, 24)
    scratch.unlink()
    write(HERE / "variants.json", out)


if __name__ == "__main__":
    main()
