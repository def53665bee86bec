# SPDX-License-Identifier: Apache-2.0
"""Makes tokens.json: what Transformers makes of the demo model's wording.

    make_checkpoint --size demo --out FOLDER; python make_synth_goldens.py FOLDER

"texts": ids of every question template and of whole conversations. "chats": the chat template on in-context turns, and
the ids of what it renders (image placeholders not expanded).
"""
import json
import sys
from pathlib import Path

from transformers import AutoProcessor, AutoTokenizer

HERE = Path(__file__).parent
NAMES = ["circle", "triangle", "ring", "red", "orange", "dax", "zek", "wug"]
QUESTIONS = (["what shape?", "what colour?", "what spot?", "name the shape", "name the colour", "name the spot",
              "how many objects?"] +
             [f"what colour is the {n}?" for n in NAMES] + [f"what shape is {n}?" for n in NAMES] +
             [f"where is the {n}?" for n in NAMES])
ANSWERS = ["star", "square", "yellow", "purple", "four", "top-left", "bottom-right", "yim", "dir"]


def turn(question, answer=None):
    text = f"USER: <image>\n{question} ASSISTANT:"
    return text if answer is None else f"{text} {answer}</s>"


def message(role, text, images=0):
    return {"role": role, "content": [{"type": "image"}] * images + [{"type": "text", "text": text}]}


def main():
    folder = sys.argv[1]
    tokenizer, processor = AutoTokenizer.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    texts = [turn(q) for q in QUESTIONS]
    texts += [turn(q, a) + turn("name the shape") for q, a in zip(QUESTIONS, ANSWERS)]
    texts += ["USER: what colour is the star? ASSISTANT:", "Zebra, 42 \u00e9!\nfoo  bar", "dax daxes", ""]
    chats = [
        [message("user", "what shape?", 1)],
        [message("user", "name the spot", 1), message("assistant", "dax"), message("user", "name the spot", 1)],
        [message("system", "look"), message("user", "what spot?", 2), message("assistant", "red"),
         message("user", "where is the dax?")],
    ]
    rendered = [processor.apply_chat_template(c, add_generation_prompt=True) for c in chats]
    golden = {
        "texts": [{"text": t, "ids": tokenizer(t)["input_ids"]} for t in texts],
        "chats": [{"messages": c, "text": r, "ids": tokenizer(r)["input_ids"]} for c, r in zip(chats, rendered)],
    }
    (HERE / "tokens.json").write_text(json.dumps(golden, indent=1) + "\n")


main()
