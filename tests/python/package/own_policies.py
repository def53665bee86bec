# SPDX-License-Identifier: Apache-2.0
"""Policies written in Python: copies of built-in ones, and others that show one thing each."""

from fractions import Fraction

import torch

import espalier


class Fastv(espalier.Policy):
    """fastv of docs/specs/fastv.md: the attention of the last row in the layer before, averaged
    over heads."""

    def __init__(self, keep_ratio="1/4", layer=2):
        self.keep_ratio, self.layer = Fraction(keep_ratio), layer

    def spec(self):
        return f"own_fastv:keep_ratio={self.keep_ratio},layer={self.layer}"

    def row_breaks_compete(self):
        return True

    def steps(self, model, prompt):
        return [
            espalier.Step(
                at="before_layer",
                layer=self.layer,
                budget=espalier.Budget(keep_ratio=self.keep_ratio),
                needs=[espalier.AttentionProbe(layer=self.layer - 1)],
                decide=lambda layout, signals: espalier.Verdict(scores=signals[0]),
            )
        ]


class Norms(espalier.Policy):
    """Of each picture the tokens with the largest norm. Its scope lets beginnings be used again
    under every question."""

    def __init__(self, keep_ratio="1/4", choose=False):
        self.keep_ratio, self.choose = Fraction(keep_ratio), choose

    def steps(self, model, prompt):
        def decide(layout, signals):
            norms = torch.linalg.vector_norm(signals[0].float(), dim=1)[layout.image_tokens]
            if self.choose:
                return espalier.Verdict(choose=lambda pools: espalier.Choice(kept=pools.best(norms)))
            return espalier.Verdict(scores=norms)

        return [
            espalier.Step(
                at="projector_output",
                scope="image",
                budget=espalier.Budget(pool="image", keep_ratio=self.keep_ratio),
                needs=lambda layout: [espalier.Tap("hidden")],
                decide=decide,
            )
        ]


class MergePairs(espalier.Policy):
    """Before the decoder each pair of image tokens becomes its mean, at the first."""

    def steps(self, model, prompt):
        def decide(layout, signals):
            m = layout.num_image_tokens
            pairs = m // 2
            tokens = signals[0][layout.image_tokens[: 2 * pairs]]
            first = torch.arange(pairs) * 2
            means = espalier.NewTokens(tokens.view(pairs, 2, -1).mean(1), first, first)
            return espalier.Verdict(kept=torch.arange(2 * pairs, m), added=[means])

        return [espalier.Step(at="projector_output", needs=[espalier.Tap("hidden")], decide=decide)]


class Raising(espalier.Policy):
    """Raises `error` in one of its functions."""

    def __init__(self, where, error):
        self.where, self.error = where, error

    def raise_in(self, where):
        if where == self.where:
            raise self.error

    def steps(self, model, prompt):
        self.raise_in("steps")

        def needs(layout):
            self.raise_in("needs")
            return [espalier.Tap("hidden")]

        def choose(pools):
            self.raise_in("choose")
            return espalier.Choice(kept=pools.tokens)

        def decide(layout, signals):
            self.raise_in("decide")
            return espalier.Verdict(choose=choose)

        return [
            espalier.Step(
                at="before_layer", layer=3, budget=espalier.Budget(keep_ratio="1/2"), needs=needs, decide=decide
            )
        ]
