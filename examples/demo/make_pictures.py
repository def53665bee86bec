#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws the demo's pictures: one object each on a textured ground, with a small spot. Needs numpy and pillow; the PNGs are in the
repository, so nobody has to run it."""
import os

import numpy as np
from PIL import Image, ImageDraw

SCENES = [("dax_1", "circle", (200, 40, 40), (30, 34)), ("wug_1", "square", (50, 90, 210), (70, 60)),
          ("dax_2", "circle", (60, 170, 70), (64, 44)), ("wug_2", "square", (225, 190, 40), (40, 66)),
          ("query", "circle", (150, 60, 180), (58, 58))]
HERE = os.path.dirname(os.path.abspath(__file__))

for seed, (name, shape, colour, (cx, cy)) in enumerate(SCENES):
    g = np.random.Generator(np.random.PCG64(seed))
    y, x = np.mgrid[0:112, 0:112]
    wave = 12 * np.sin(0.17 * x * np.cos(seed) + 0.23 * y * np.sin(seed + 1))
    ground = 120 + wave[..., None] + g.normal(0, 6, (112, 112, 3)) + g.normal(0, 15, 3)
    picture = Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    box = [cx - 17, cy - 17, cx + 17, cy + 17]
    (draw.ellipse if shape == "circle" else draw.rectangle)(box, fill=colour)
    draw.rectangle([92, 12 + 14 * seed, 99, 19 + 14 * seed], fill=(250, 250, 250))
    picture.save(os.path.join(HERE, name + ".png"), optimize=True)
