#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A pruning policy of one's own, from the idea to the comparison. Read it from top to bottom like a
notebook; each `# %%` is a cell.

    python examples/python/own_policy.py [FOLDER [ITEMS]]

Writes kept.html (which tokens stay, beside two built-in policies) and, with matplotlib,
accuracy.png into FOLDER (the current one). ITEMS: drawn questions a cell (20)."""

# %% The policy: before the decoder, of each picture the tokens that differ most from their neighbours stay.
import sys
from fractions import Fraction
from pathlib import Path

import torch

import espalier


class Sharpest(espalier.Policy):
    def __init__(self, keep_ratio):
        self.keep_ratio = Fraction(keep_ratio)

    def spec(self):
        return f"sharpest:keep_ratio={self.keep_ratio}"

    def steps(self, model, prompt):
        def decide(layout, signals):
            tokens = torch.nn.functional.normalize(signals[0].float(), dim=1)[layout.image_tokens]
            image, crop = layout.image[layout.image_tokens], layout.crop[layout.image_tokens]
            source = layout.source_index[layout.image_tokens]
            row, column = prompt.grid_row[source], prompt.grid_col[source]
            is_near = (
                (image[:, None] == image)
                & (crop[:, None] == crop)
                & ((row[:, None] - row).abs() + (column[:, None] - column).abs() == 1)
            )
            likeness = (tokens @ tokens.T * is_near).sum(1) / is_near.sum(1).clamp(min=1)
            return espalier.Verdict(scores=-likeness)

        return [
            espalier.Step(
                at="projector_output",
                scope="image",
                budget=espalier.Budget(pool="image", keep_ratio=self.keep_ratio),
                needs=[espalier.Tap("hidden")],
                decide=decide,
            )
        ]


# %% What every policy must hold, on made-up prompts and without a model: before anything else is believed.
for name in espalier.conformance.PROPERTIES:
    if wrong := espalier.conformance.check(name, Sharpest):
        print(f"{name}: {wrong}")

# %% One answer, and what was kept for it.
folder, items = Path(sys.argv[1] if len(sys.argv) > 1 else "."), int(sys.argv[2]) if len(sys.argv) > 2 else 20
demo = Path(__file__).parents[1] / "demo" / "shape"
engine = espalier.Engine()
policies = [Sharpest("1/4"), "fastv:keep_ratio=1/4,layer=3", "divprune:keep_ratio=1/4"]
chat = espalier.read_chat(demo / "messages.json")  # four examples, and the question
result = engine.generate(chat, policy=policies[0], greedy=True)
print(f"{result.text!r} from {len(result.kept)} of {sum(result.stats.image_tokens)} image tokens")

# %% Where they are, beside what two built-in policies keep: a page for a browser.
(folder / "kept.html").write_text(espalier.inspect(engine, chat, policies=policies), encoding="utf-8")
print("wrote", folder / "kept.html")

# %% How good the answers are, on the same drawn questions.
options = espalier.EvaluationOptions(suites=["single/shape", "bind/shape-2x1"], items=items, with_controls=False)
cells = espalier.evaluate(engine, policies, options)
for cell in cells:
    interval = f"{cell.low:.0%} to {cell.high:.0%}"
    print(f"{cell.cell:10} {cell.policy:30} {cell.correct} of {cell.n} ({interval}), {cell.tokens_mean:.0f} tokens")

# %% The same as a picture.
try:
    import matplotlib
except ImportError:
    print("no matplotlib, no plot")
else:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = sorted({cell.cell for cell in cells})
    figure, axes = pyplot.subplots(1, len(names), figsize=(5 * len(names), 4), sharey=True, squeeze=False)
    for axis, name in zip(axes[0], names):
        for cell in (cell for cell in cells if cell.cell == name):
            spread = [[cell.accuracy - cell.low], [cell.high - cell.accuracy]]
            axis.errorbar([cell.tokens_mean], [cell.accuracy], yerr=spread, fmt="o", capsize=4, label=cell.policy)
        axis.axhline(cell.chance, linestyle=":", color="grey")
        axis.set(title=name, xlabel="image tokens a layer", ylabel="accuracy")
    axes[0][0].legend()
    figure.savefig(folder / "accuracy.png", bbox_inches="tight")
    print("wrote", folder / "accuracy.png")
