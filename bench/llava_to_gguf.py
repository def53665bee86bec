#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes a LLaVA-1.5 folder of make_checkpoint as the two bf16 files that llama.cpp reads: decoder.gguf and mmproj.gguf.

    python bench/llava_to_gguf.py --model /tmp/150m --out /tmp/150m_gguf

For compare_servers.py. llama.cpp's own scripts convert the decoder of LLaVA-1.5 only beside a SentencePiece file and its
tower only from the original repositories. Needs Python packages numpy and gguf (the one of the llama.cpp that will read
the files, in its gguf-py). The decoder's one chat template is that of the folder, for contents that are plain texts; pictures
are llama.cpp's media markers in them.
"""
import argparse
import json
import pathlib

import gguf
import numpy

# The folder's template gets pictures and texts apart, llama.cpp's one text: markers first, then what was asked.
TEMPLATE = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}{{ m['content'] | replace('__>', '__>\n') }}"
    "{{ '</s>' if m['role'] == 'assistant' else ' ' }}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}")


def rope_pairs(weight, heads):
    """Rows of a query or key projection in the order of ggml's rotation, which pairs neighbours and not halves."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def reader(path):
    """A function from a tensor's name to its values; numpy has no bfloat16, so as float32, which holds all of its values."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    data = numpy.memmap(path, numpy.uint8, "r", offset=8 + length)

    def tensor(name):
        entry = header[name]
        if entry["dtype"] != "BF16":
            raise SystemExit(f"{path}: {name}: expected BF16, got {entry['dtype']}")
        bits = data[slice(*entry["data_offsets"])].view(numpy.uint16).astype(numpy.uint32) << 16
        return bits.view(numpy.float32).reshape(entry["shape"])

    return tensor


def add(writer, name, weight):
    kind = gguf.GGMLQuantizationType.BF16 if weight.ndim > 1 else gguf.GGMLQuantizationType.F32
    writer.add_tensor(name, gguf.quants.quantize(numpy.ascontiguousarray(weight), kind), raw_dtype=kind)


def add_vocabulary(writer, tokenizer, size):
    model = tokenizer["model"]
    special = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    pieces = {**{index: piece for piece, index in model["vocab"].items()}, **special}
    kinds = []
    for index in range(size):
        piece = pieces[index]
        kinds.append(gguf.TokenType.UNKNOWN if piece == model["unk_token"] else gguf.TokenType.CONTROL if index in special
                     else gguf.TokenType.BYTE if piece.startswith("<0x") else gguf.TokenType.NORMAL)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([pieces[index].encode() for index in range(size)])
    writer.add_token_scores([-float(index) for index in range(size)])  # ids are in the order of the merges' ranks
    writer.add_token_types(kinds)


def write_decoder(weights, config, folder, path):
    text = config["text_config"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_context_length(text["max_position_embeddings"])
    writer.add_embedding_length(text["hidden_size"])
    writer.add_block_count(text["num_hidden_layers"])
    writer.add_feed_forward_length(text["intermediate_size"])
    writer.add_head_count(text["num_attention_heads"])
    writer.add_head_count_kv(text["num_key_value_heads"])
    writer.add_rope_dimension_count(text["hidden_size"] // text["num_attention_heads"])
    writer.add_rope_freq_base(text["rope_theta"])
    writer.add_layer_norm_rms_eps(text["rms_norm_eps"])
    writer.add_vocab_size(text["vocab_size"])
    add_vocabulary(writer, json.loads((folder / "tokenizer.json").read_text()), text["vocab_size"])
    generation = json.loads((folder / "generation_config.json").read_text())
    writer.add_bos_token_id(generation["bos_token_id"])
    writer.add_eos_token_id(generation["eos_token_id"])
    writer.add_pad_token_id(generation["pad_token_id"])
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(True)
    writer.add_chat_template(TEMPLATE)
    add(writer, "token_embd.weight", weights("language_model.model.embed_tokens.weight"))
    add(writer, "output_norm.weight", weights("language_model.model.norm.weight"))
    add(writer, "output.weight", weights("language_model.lm_head.weight"))
    for layer in range(text["num_hidden_layers"]):
        for to, name in (("attn_norm", "input_layernorm"), ("attn_q", "self_attn.q_proj"), ("attn_k", "self_attn.k_proj"),
                         ("attn_v", "self_attn.v_proj"), ("attn_output", "self_attn.o_proj"), ("ffn_norm", "post_attention_layernorm"),
                         ("ffn_gate", "mlp.gate_proj"), ("ffn_up", "mlp.up_proj"), ("ffn_down", "mlp.down_proj")):
            weight = weights(f"language_model.model.layers.{layer}.{name}.weight")
            if to in ("attn_q", "attn_k"):
                weight = rope_pairs(weight, text["num_attention_heads" if to == "attn_q" else "num_key_value_heads"])
            add(writer, f"blk.{layer}.{to}.weight", weight)
    finish(writer)


def write_tower(weights, config, folder, path):
    vision = config["vision_config"]
    images = json.loads((folder / "preprocessor_config.json").read_text())
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_clip_has_vision_encoder(True)
    writer.add_bool("clip.has_llava_projector", True)
    writer.add_clip_projector_type("mlp")
    writer.add_vision_image_size(vision["image_size"])
    writer.add_vision_patch_size(vision["patch_size"])
    writer.add_vision_embedding_length(vision["hidden_size"])
    writer.add_vision_feed_forward_length(vision["intermediate_size"])
    writer.add_vision_head_count(vision["num_attention_heads"])
    writer.add_vision_attention_layernorm_eps(1e-5)
    writer.add_vision_projection_dim(config["text_config"]["hidden_size"])
    writer.add_vision_block_count(vision["num_hidden_layers"])  # llama.cpp leaves the last one out, as LLaVA does
    writer.add_vision_image_mean(images["image_mean"])
    writer.add_vision_image_std(images["image_std"])
    writer.add_vision_use_gelu(False)  # CLIP's is the quick one
    tower = "vision_tower.vision_model."
    add(writer, "v.class_embd", weights(tower + "embeddings.class_embedding"))
    add(writer, "v.patch_embd.weight", weights(tower + "embeddings.patch_embedding.weight"))
    add(writer, "v.position_embd.weight", weights(tower + "embeddings.position_embedding.weight"))
    for part in ("weight", "bias"):
        add(writer, f"v.pre_ln.{part}", weights(f"{tower}pre_layrnorm.{part}"))
        for layer in range(vision["num_hidden_layers"]):
            for to, name in (("ln1", "layer_norm1"), ("attn_q", "self_attn.q_proj"), ("attn_k", "self_attn.k_proj"),
                             ("attn_v", "self_attn.v_proj"), ("attn_out", "self_attn.out_proj"), ("ln2", "layer_norm2"),
                             ("ffn_up", "mlp.fc1"), ("ffn_down", "mlp.fc2")):
                add(writer, f"v.blk.{layer}.{to}.{part}", weights(f"{tower}encoder.layers.{layer}.{name}.{part}"))
        add(writer, f"mm.0.{part}", weights(f"multi_modal_projector.linear_1.{part}"))
        add(writer, f"mm.2.{part}", weights(f"multi_modal_projector.linear_2.{part}"))
    finish(writer)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    config = json.loads((args.model / "config.json").read_text())
    weights = reader(args.model / "model.safetensors")
    write_decoder(weights, config, args.model, args.out / "decoder.gguf")
    write_tower(weights, config, args.model, args.out / "mmproj.gguf")


if __name__ == "__main__":
    main()
