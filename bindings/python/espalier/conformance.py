# SPDX-License-Identifier: Apache-2.0
"""What every pruning policy must hold, on made-up prompts and signals, without a model. With
pytest:

    @pytest.mark.parametrize("name", espalier.conformance.PROPERTIES)
    def test_mine(name):
        assert espalier.conformance.check(name, Mine) == ""

`keeps_the_share`, `keeps_all_at_one`, `keeps_pinned` and `treats_images_alike` are promises that
not every method makes."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from . import _native
from .policies import AnyPolicy, ModelFacts

PROPERTIES: tuple[str, ...] = _native.PROPERTIES
#: A model of 8 layers with 4 heads over 2 KV heads, a vision tower of 4 layers with a class token,
#: and a text tower.
MODEL: ModelFacts = _native.conformance_model()


def check(name: str, make: Callable[[Fraction], AnyPolicy]) -> str:
    """What is wrong with the policies that `make` makes for shares of the image tokens to keep;
    empty if nothing is."""
    return _native.check_property(name, make)
