# SPDX-License-Identifier: Apache-2.0
"""greedy.json: what Transformers answers on the folder that make_smollm.sh makes, 48 greedy tokens on ten prompts.

    python make_smollm_goldens.py ../../../.deps/smollm2

Each entry: "text", a raw prompt; "ids" of the prompt by the `tokenizers` library; "tokens", the argmax in float32 without stopping;
"margin", the smallest distance between the two best logits on the way. Needs torch, transformers 5.23.0 and tokenizers 0.23.3.
"""
import json
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import LlavaForConditionalGeneration

TURN = "<|im_start|>{}\n{}<|im_end|>\n"
QUESTIONS = ["What is the capital of France?", "Write a haiku about an old apple tree that grows along a wall.",
             "Add 127 and 385, step by step.", "Translate 'good morning, my friend' into Spanish and German.",
             "List five colours, one per line."]
RAW = ["Once upon a time, in 1987, there was a gardener who", "def fibonacci(n):\n    ", "The three most common metals are:\n1.",
       "Café, naïve, Straße — these words have", TURN.format("system", "Answer in one word.") + TURN.format("user", "dax is red. kib is blue. What is kib?")
       + "<|im_start|>assistant\n"]


def main():
    folder, steps = Path(sys.argv[1]), 48
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    out = []
    for text in [TURN.format("user", q) + "<|im_start|>assistant\n" for q in QUESTIONS] + RAW:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        tokens, margin, cache, fed = [], float("inf"), None, torch.tensor([ids])
        with torch.no_grad():
            for _ in range(steps):
                result = model(input_ids=fed, past_key_values=cache, use_cache=True)
                cache, best = result.past_key_values, result.logits[0, -1].topk(2)
                margin = min(margin, (best.values[0] - best.values[1]).item())
                tokens.append(best.indices[0].item())
                fed = torch.tensor([[tokens[-1]]])
        out.append({"text": text, "ids": ids, "tokens": tokens, "margin": round(margin, 6)})
        print(round(margin, 6), repr(tokenizer.decode(tokens)), flush=True)
    (Path(__file__).parent / "greedy.json").write_text(json.dumps(out, separators=(",", ":"), ensure_ascii=False) + "\n", encoding="utf-8")


main()
