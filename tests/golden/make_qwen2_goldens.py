#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes tests/golden/qwen2vl: a tiny Qwen2-VL checkpoint with random weights, and what Transformers computes on it.

    python make_qwen2_goldens.py [--out qwen2vl] [--seed 0]

Tokenizer, template and the reference run are those of make_qwen_goldens.py. The same seed gives the same files.
"""
import argparse
import os

from make_goldens import HERE, assistant, user
from make_qwen_goldens import make_checkpoint, write_cases


def make_config(ids):
    """As published: the decoder at the top level, the tower's width as embed_dim, its hidden_size the decoder's."""
    vision = {"depth": 3, "embed_dim": 32, "mlp_ratio": 2, "num_heads": 2, "in_chans": 3, "hidden_size": 32,
              "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14, "temporal_patch_size": 2}
    return {"architectures": ["Qwen2VLForConditionalGeneration"], "attention_dropout": 0.0,
            "bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"],
            "vision_start_token_id": ids["<|vision_start|>"], "vision_end_token_id": ids["<|vision_end|>"],
            "vision_token_id": ids["<|vision_pad|>"], "image_token_id": ids["<|image_pad|>"],
            "video_token_id": ids["<|video_pad|>"], "hidden_act": "silu", "hidden_size": 32, "initializer_range": 0.02,
            "intermediate_size": 48, "max_position_embeddings": 2048, "max_window_layers": 8,
            "model_type": "qwen2_vl", "num_attention_heads": 4, "num_hidden_layers": 8, "num_key_value_heads": 2,
            "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": True,
            "torch_dtype": "bfloat16", "transformers_version": "4.41.2", "use_cache": True, "use_sliding_window": False,
            "vision_config": vision, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}, "vocab_size": 1088}


def cases():
    """As in make_qwen_goldens.py: images as (height, width, seed, kind). Features stand for pixels, which are large."""
    return {
        "single": dict(images=[(60, 44, 11, "mix")], messages=[user(None, "What is shown in this image?")]),
        "turns": dict(images=[(90, 100, 21, "mix"), (33, 140, 22, "lines"), (56, 56, 33, "shapes")],
                      messages=[user("First:", None, "second:", None, "What changed?"), assistant("yes"),
                                user(None, "How many dogs?")]),
        "text_only": dict(images=[], prompt="How are you?"),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=os.path.join(HERE, "qwen2vl"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    import transformers
    transformers.logging.set_verbosity_error()
    make_checkpoint(args.out, args.seed, make_config, processor_class="Qwen2VLProcessor")
    write_cases(args.out, os.path.join(args.out, "cases"), cases(), with_pixels=set())


if __name__ == "__main__":
    main()
