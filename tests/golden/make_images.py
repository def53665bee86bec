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
REFUSED = ("animated.webp", "gray_16bit.png")  # read by Pillow, refused by Espalier: no expectation


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
    write("gray_16bit.png", png(wide[..., :1] // 2, 16, 0))
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


if __name__ == "__main__":
    write_images()
