# SPDX-License-Identifier: Apache-2.0
"""Rotary frequencies as Transformers computes them, for tests/model/config_test.cpp.

Writes frequencies.json beside itself: a list of {"text_config": what config.json would say, "inverse_frequencies": [head_dim / 2]}.
"""
import json
import os

from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

BASE = {"model_type": "llama", "hidden_size": 256, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
        "max_position_embeddings": 4096, "vocab_size": 64}
CASES = [
    {},
    {"rope_theta": 1e6},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    {"rope_scaling": {"type": "linear", "factor": 2.0}},
    {"rope_theta": 50000.0, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    {"rope_scaling": {"type": "dynamic", "factor": 3.0}},
    {"rope_theta": 500000.0, "max_position_embeddings": 131072,
     "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                      "original_max_position_embeddings": 8192}},
    {"rope_parameters": {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 32.0, "low_freq_factor": 1.5, "high_freq_factor": 5.0,
                         "original_max_position_embeddings": 2048}},
    {"head_dim": 64, "rope_scaling": {"type": "linear", "factor": 1.5}},
]


def frequencies(text_config):
    config = LlamaConfig(**{k: v for k, v in text_config.items() if k != "model_type"})
    kind = config.rope_parameters["rope_type"]
    if kind == "default":
        rotary = LlamaRotaryEmbedding(config)
        inverse, scale = rotary.inv_freq, rotary.attention_scaling
    else:
        inverse, scale = ROPE_INIT_FUNCTIONS[kind](config, "cpu", seq_len=config.max_position_embeddings)
    assert scale == 1.0, scale
    return [float(x) for x in inverse]


def main():
    cases = []
    for case in CASES:
        text_config = {**BASE, **case}
        cases.append({"text_config": text_config, "inverse_frequencies": frequencies(json.loads(json.dumps(text_config)))})
    out = os.path.join(os.path.dirname(os.path.abspath(__file__)), "frequencies.json")
    with open(out, "w", encoding="utf-8") as f:
        f.write("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")


if __name__ == "__main__":
    main()
