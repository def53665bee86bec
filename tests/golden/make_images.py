#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes tests/golden/images (small picture files and what Pillow decodes them to) and tests/golden/pixels (what Transformers'
PIL backend makes of pictures under various configurations).

    python make_images.py
"""
import json
import os
import struct
import zlib

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.torch import save_file
from transformers.image_transforms import convert_to_rgb

from make_goldens import HERE, synth_image

IMAGES, PIXELS = os.path.join(HERE, "images"), os.path.join(HERE, "pixels")
REFUSED = ("animated.webp",)  # read by Pillow, refused by Espalier: no expectation


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(samples, bit_depth, color_type, interlaced=False, trns=None):
    """PNG forms that Pillow does not write: 16 bits, interlacing. samples: [h, w, channels], bit_depth 8 or 16."""
    h, w = samples.shape[:2]
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    raw = b""
    for y, x, dy, dx in passes if interlaced else [(0, 0, 1, 1)]:
        part = samples[y::dy, x::dx].astype(">u2" if bit_depth == 16 else "u1")
        raw += b"".join(b"\0" + row.tobytes() for row in part if row.size)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, bit_depth, color_type, 0, 0, interlaced))
            + (chunk(b"tRNS", trns) if trns else b"") + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b""))


def alpha_ramp(h, w):
    return (np.arange(h * w).reshape(h, w) * 255 // (h * w - 1)).astype(np.uint8)


def write_images():
    os.makedirs(IMAGES, exist_ok=True)
    h, w = 21, 34
    rgb = synth_image(h, w, 1)
    alpha = alpha_ramp(h, w)
    picture, gray = Image.fromarray(rgb), Image.fromarray(rgb).convert("L")
    rgba = Image.fromarray(np.dstack([rgb, alpha]))
    palette = picture.quantize(7)

    def save(name, image, **options):
        image.save(os.path.join(IMAGES, name), **options)

    def write(name, data):
        with open(os.path.join(IMAGES, name), "wb") as f:
            f.write(data)

    save("420.jpg", picture, quality=90)
    save("444_progressive.jpg", picture, quality=80, subsampling=0, progressive=True)
    save("gray.jpg", gray, quality=90)
    save("cmyk.jpg", picture.convert("CMYK"), quality=90)
    save("rgb.jpg", picture, quality=90, keep_rgb=True)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        save(f"orientation_{orientation}.jpg", Image.fromarray(synth_image(7, 11, 2, "shapes")), quality=70, exif=exif)
    exif = Image.Exif()
    exif[0x0112] = 6
    save("orientation_6.png", Image.fromarray(synth_image(7, 11, 2)), exif=exif)
    save("orientation_6.webp", Image.fromarray(synth_image(7, 11, 2)), exif=exif, lossless=True)

    save("rgb.png", picture)
    save("gray.png", gray)
    save("gray_1bit.png", gray.point(lambda v: 255 * (v > 100)).convert("1"))
    save("palette.png", palette)
    save("palette_4bit.png", palette, bits=4)
    save("palette_one_transparent.png", palette, transparency=3)
    save("palette_alpha.png", palette, transparency=bytes([255, 0, 128, 7, 200, 255, 31]))
    save("rgba.png", rgba)
    save("gray_alpha.png", Image.merge("LA", (gray, Image.fromarray(alpha))))
    save("gray_key.png", gray, transparency=int(np.asarray(gray)[3, 4]))
    save("rgb_key.png", picture, transparency=tuple(int(v) for v in rgb[3, 4]))
    # every value under every alpha, for the rounding of the composite
    v, a = np.meshgrid(np.arange(256), np.arange(256))
    save("every_alpha.png", Image.fromarray(np.dstack([v, 255 - v, v // 2, a]).astype(np.uint8)))
    wide = rgb.astype(np.uint16) * 257 - 90 * (rgb > 0)
    write("rgb_16bit.png", png(wide, 16, 2))
    write("rgba_16bit.png", png(np.dstack([wide, alpha.astype(np.uint16) * 257]), 16, 6))
    write("gray_alpha_16bit.png", png(np.dstack([wide[..., 0], alpha.astype(np.uint16) * 257]), 16, 4))
    write("interlaced.png", png(rgb, 8, 2, interlaced=True))

    save("lossy.webp", picture, quality=80)
    save("lossless.webp", picture, lossless=True)
    save("lossy_alpha.webp", rgba, quality=80)
    save("lossless_alpha.webp", rgba, lossless=True, exact=True)
    save("animated.webp", picture, save_all=True, append_images=[ImageOps.flip(picture)], lossless=True)

    expected = {}
    for name in sorted(os.listdir(IMAGES)):
        if name.endswith((".jpg", ".png", ".webp")) and name not in REFUSED:
            upright = ImageOps.exif_transpose(Image.open(os.path.join(IMAGES, name)))
            expected[name] = torch.from_numpy(convert_to_rgb(upright, return_numpy=True).copy())
    path = os.path.join(IMAGES, "expected.safetensors")
    save_file(expected, path)
    os.chmod(path, 0o644)


def pattern(h, w):
    """A picture that the tests compute themselves, because it is large."""
    y, x, c = np.mgrid[0:h, 0:w, 0:3]
    return ((3 * x + 5 * y + (x * y) % 97 + 80 * c) % 256).astype(np.uint8)


RESIZES = [  # (height, width, kind) -> (height, width)
    ((1, 1, "mix"), (5, 7)), ((7, 13, "mix"), (56, 30)), ((57, 55, "mix"), (56, 54)), ((100, 76, "mix"), (20, 91)),
    ((64, 64, "mix"), (64, 31)), ((64, 31, "mix"), (20, 31)), ((3, 200, "noise"), (40, 9)), ((120, 36, "extreme"), (56, 50)),
    ((120, 160, "mix"), (24, 32)), ((40, 41, "extreme"), (90, 17)), ((50, 60, "lines"), (50, 60)), ((90, 2, "extreme"), (1, 1)),
]
LARGE = [((100, 20000), (56, 11200)), ((20000, 100), (11200, 56))]  # the middle 56 x 56 of the result is stored
CLIP, LLAVA, NEXT = "CLIPImageProcessor", "LlavaImageProcessor", "LlavaNextImageProcessor"
TILES = {"size": {"shortest_edge": 20}, "crop_size": {"height": 20, "width": 20},
         "image_grid_pinpoints": [[20, 40], [40, 20], [40, 40], [60, 20], [20, 60]]}
PROCESSORS = {  # name: (class, configuration, (height, width, kind) of the picture)
    "shortest_edge": (CLIP, {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}, (61, 40, "mix")),
    "odd_crop": (CLIP, {"size": {"shortest_edge": 31}, "crop_size": {"height": 20, "width": 27}}, (40, 61, "mix")),
    "even_crop_of_odd": (CLIP, {"size": {"shortest_edge": 31}, "crop_size": {"height": 30, "width": 30}}, (40, 61, "mix")),
    "crop_larger": (CLIP, {"size": {"shortest_edge": 20}, "crop_size": {"height": 27, "width": 50}}, (33, 21, "mix")),
    "integers": (CLIP, {"size": 24, "crop_size": 22}, (40, 61, "mix")),
    "height_and_width": (CLIP, {"size": {"height": 20, "width": 33}, "do_center_crop": False}, (40, 61, "mix")),
    "no_resize": (CLIP, {"do_resize": False, "crop_size": 25, "resample": 2}, (40, 61, "mix")),
    "no_crop": (CLIP, {"size": {"shortest_edge": 19}, "do_center_crop": False}, (40, 61, "mix")),
    "no_rescale": (CLIP, {"size": 18, "crop_size": 18, "do_rescale": False}, (40, 61, "mix")),
    "no_normalize": (CLIP, {"size": 18, "crop_size": 18, "do_normalize": False}, (40, 61, "mix")),
    "other_numbers": (CLIP, {"size": 18, "crop_size": 18, "rescale_factor": 0.01, "image_mean": [0.1, 0.2, 0.3],
                             "image_std": [0.5, 2.0, 0.25]}, (40, 61, "mix")),
    "one_pixel": (CLIP, {"size": 16, "crop_size": 16}, (1, 1, "mix")),
    "padded_wide": (LLAVA, {"size": 28, "crop_size": 28, "do_pad": True}, (30, 61, "mix")),
    "padded_tall": (LLAVA, {"size": 28, "crop_size": 28, "do_pad": True}, (44, 33, "extreme")),
    "padded_square": (LLAVA, {"size": 28, "crop_size": 28, "do_pad": True}, (33, 33, "mix")),
    "llava_unpadded": (LLAVA, {"size": 28, "crop_size": 28, "do_pad": False}, (30, 61, "mix")),
    "class_defaults": (CLIP, {"size": 17, "crop_size": 17}, (30, 61, "mix")),
    **{f"tiles_{h}x{w}": (NEXT, TILES, (h, w, kind)) for h, w, kind in [
        (33, 57, "mix"), (57, 32, "mix"), (64, 64, "extreme"), (13, 13, "mix"), (90, 2, "extreme"), (1, 130, "noise"),
        (41, 121, "mix"), (19, 20, "mix"), (7, 5, "mix")]},
    "tiles_height_and_width": (NEXT, {**TILES, "size": {"height": 20, "width": 20}, "do_normalize": False,
                                      "image_grid_pinpoints": [[20, 80], [40, 60]]}, (30, 61, "mix")),
}


def write_pixels():
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
    classes = {CLIP: CLIPImageProcessorPil, LLAVA: LlavaImageProcessorPil, NEXT: LlavaNextImageProcessorPil}
    os.makedirs(PIXELS, exist_ok=True)
    tensors, configs = {}, {}
    for i, ((h, w, kind), (out_h, out_w)) in enumerate(RESIZES):
        image = synth_image(h, w, 100 + i, kind)
        tensors[f"resize.{i}.image"] = image
        tensors[f"resize.{i}.resized"] = np.asarray(Image.fromarray(image).resize((out_w, out_h), Image.BICUBIC))
    for i, ((h, w), (out_h, out_w)) in enumerate(LARGE):
        resized = np.asarray(Image.fromarray(pattern(h, w)).resize((out_w, out_h), Image.BICUBIC))
        top, left = (out_h - 56) // 2, (out_w - 56) // 2
        tensors[f"large.{i}.window"] = resized[top:top + 56, left:left + 56]
    for i, (name, (kind, config, (h, w, picture))) in enumerate(PROCESSORS.items()):
        image = synth_image(h, w, 200 + i, picture)
        tensors[f"processor.{name}.image"] = image
        values = classes[kind](**config)(images=[Image.fromarray(image)], return_tensors="pt")["pixel_values"]
        tensors[f"processor.{name}.pixel_values"] = (values[0] if kind == NEXT else values).float().numpy()
        configs[name] = {"image_processor_type": kind, **config}
    path = os.path.join(PIXELS, "cases.safetensors")
    save_file({k: torch.from_numpy(np.ascontiguousarray(v).copy()) for k, v in tensors.items()}, path)
    os.chmod(path, 0o644)
    with open(os.path.join(PIXELS, "configs.json"), "w", encoding="utf-8") as f:
        json.dump(configs, f, indent=1)
        f.write("\n")


def write_any_resolution():
    """Picture sizes, and what LLaVA-NeXT's processor makes of them with the published tiles of 336 pixels, 24 x 24 patches:
    [height, width, tile rows, tile columns, scaled height, scaled width, rows and columns of the stitched features]."""
    from transformers import LlavaNextProcessor
    from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
    pinpoints = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    g = np.random.Generator(np.random.PCG64(7))
    sizes = [(1, 1), (1, 9), (9, 1), (1, 20000), (20000, 1), (3, 5000), (336, 336), (672, 672), (335, 337), (336, 672),
             (1008, 336), (337, 1009), (24, 24), (47, 49), (640, 480), (480, 640), (1080, 1920), (4000, 3000)]
    sizes += [tuple(int(x) for x in np.exp(g.uniform(0, 8.5, 2))) for _ in range(300)]
    sizes += [tuple(int(x) for x in g.integers(20, 1400, 2)) for _ in range(300)]
    rows = []
    for h, w in sizes:
        best = select_best_resolution((h, w), pinpoints)
        scaled = get_patch_output_size(np.zeros((3, h, w), np.uint8), best, "channels_first")
        tiles = best[0] // 336, best[1] // 336
        features, lines = LlavaNextProcessor._get_unpadded_features(None, h, w, 24, 24, *tiles)
        rows.append([h, w, *tiles, *scaled, lines, features // lines if lines else 0])
    with open(os.path.join(PIXELS, "any_resolution.json"), "w", encoding="utf-8") as f:
        f.write("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


if __name__ == "__main__":
    write_images()
    write_pixels()
    write_any_resolution()
