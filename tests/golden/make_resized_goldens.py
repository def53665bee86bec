#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes tests/golden/llava15/resized: image features of the tiny checkpoint for pictures of other sizes than its tower was
made for, with position embeddings interpolated by Transformers (interpolate_pos_encoding=True).

    python make_resized_goldens.py
"""
import os

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from safetensors.torch import save_file
from transformers import LlavaForConditionalGeneration

HERE = os.path.dirname(os.path.abspath(__file__))
MODEL = os.path.join(HERE, "llava15")


def main():
    model = LlavaForConditionalGeneration.from_pretrained(MODEL, dtype=torch.float32, attn_implementation="eager").eval()
    folder = os.path.join(MODEL, "resized")
    os.makedirs(folder, exist_ok=True)
    for height, width in [(28, 28), (42, 42), (14, 14), (28, 42)]:
        pixels = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(100 * height + width))
        with torch.no_grad():
            states = model.model.vision_tower(pixels, output_hidden_states=True, interpolate_pos_encoding=True).hidden_states
            features = model.model.multi_modal_projector(states[model.config.vision_feature_layer][:, 1:])
        save_file({"pixel_values": pixels, "image_features": features.contiguous()},
                  os.path.join(folder, f"{height}x{width}.safetensors"))


if __name__ == "__main__":
    main()
