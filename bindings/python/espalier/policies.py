# SPDX-License-Identifier: Apache-2.0
"""Pruning policies, yours among them.

A policy says in steps where it acts, what it reads and how much stays; it ranks tokens, and the
engine makes the cut: amounts, pools, pins, floors, rounding, ties and row breaks are the engine's.
A policy never runs the model and never touches a cache.

    class KeepNorms(espalier.Policy):
        def steps(self, model, prompt):
            return [espalier.Step(
                at="projector_output", scope="image", budget=espalier.Budget(pool="image", keep_ratio="1/4"),
                needs=[espalier.Tap("hidden")],
                decide=lambda layout, signals: espalier.Verdict(
                    scores=signals[0].float().norm(dim=1)[layout.image_tokens]))]

The functions of a step run on the engine's own thread, without gradients (torch.inference_mode),
with the interpreter's lock; what they raise ends their request and is raised again where its answer
was awaited. Names and meanings are those of include/espalier/pruning.h."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal, Union

from torch import Tensor

from . import _native
from ._native import NativePolicy, Pools, PromptLayout, TokenLayout
from .results import Site

Pool = Literal["crop", "image", "request"]
Scope = Literal["crop", "image", "example", "prefix", "request"]


# ---- what a policy is told ----


@dataclass(frozen=True)
class PolicyDefault:
    """An option of a policy that has another default on this model than the published one."""

    policy: str
    option: str
    value: str  #: as it would be written in a spec


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model before it answers. Names are for people: nothing is decided by them."""

    num_layers: int = 0
    hidden_size: int = 0
    num_heads: int = 0
    num_kv_heads: int = 0
    head_dim: int = 0
    intermediate_size: int = 0
    sliding_window: int = 0  #: 0: none
    has_mrope: bool = False
    vision_layers: int = 0
    vision_feature_layer: int = 0  #: 0-based layer whose output the projector reads
    vision_heads: int = 0
    vision_hidden_size: int = 0
    has_class_token: bool = False  #: class row in the vision tower
    has_text_tower: bool = False  #: a CLIP text tower paired with it
    name: str = ""  #: of its folder
    family: str = ""  #: "LLaVA-1.5", "LLaVA-NeXT", "Qwen2-VL", "Qwen2.5-VL"
    dtype: str = ""  #: "float32", "bfloat16" or "float16"
    policy_defaults: tuple[PolicyDefault, ...] = ()  #: of the folder's policy_defaults.json


@dataclass(frozen=True)
class ImageShape:
    grid: tuple[int, int]  #: rows and columns of one whole crop
    tiling: tuple[int, int] | None = None  #: rows and columns of tiles, of an any-resolution picture


@dataclass(frozen=True)
class Segment:
    """A run of tokens of one kind, [begin, end) in the unpruned sequence."""

    kind: Literal["text", "patches", "row_break"]
    begin: int
    end: int
    image: int
    crop: int
    example: int
    grid: tuple[int, int]
    origin: tuple[int, int]


# ---- signals: what a step reads ----


@dataclass(frozen=True, eq=False)
class Group:
    """Rows of an attention probe, and the columns that they look at."""

    rows: Tensor  #: int64 [r], places in the current sequence
    columns: Tensor | None = None  #: int64 [c]; None: all image tokens


@dataclass(frozen=True)
class AttentionProbe:
    """Softmax probabilities that rows give to image tokens, float32 [m] ([heads, m] for "each").
    Heads are reduced first, then the mean over rows is taken. The score matrix is never stored."""

    #: Decoder layer, for rows="class" a vision layer. Before layer L, L itself is a look-ahead: it
    #: costs extra.
    layer: int = 0
    #: "generated": while decoding all tokens since the step was asked before (Step.every).
    rows: Literal["last_token", "generated", "given", "class"] = "last_token"
    heads: Literal["mean", "max", "each", "joint"] = "mean"
    reduce_rows: bool = True
    #: Of "last_token" and "generated": behind the image tokens' columns those of all other tokens.
    with_others: bool = False
    groups: Sequence[Group] = ()  #: for rows="given"


@dataclass(frozen=True, eq=False)
class AttentionGrowth:
    """max(0, A_upper - A_lower) of the last prompt row, with an optional cosine term computed in
    the same pass; float32 [m]."""

    lower: int
    upper: int
    relu_per_head: bool = False
    pool: Tensor | None = None  #: int64; None: no cosine term
    cosine_weight: float = 0.0


@dataclass(frozen=True)
class Tap:
    """A tensor that the model makes anyway. n tokens, m patches in sequence order, c crops:
    "hidden" [n, d] and "final_norm" [n, d] at the point of the step; "key" [n, g, d_h] of decoder
    `layer` after RoPE; "vision_output" [m, d_v], "vision_class" [c, d_v], "vision_key" [m, d_v] of
    vision `layer`; "clip_image" [m, d_c], "clip_text" [t, d_c]."""

    what: Literal[
        "hidden", "final_norm", "key", "vision_output", "vision_class", "vision_key", "clip_image", "clip_text"
    ] = "hidden"
    layer: int = 0


Signal = Union[AttentionProbe, AttentionGrowth, Tap]


# ---- what a step answers ----


@dataclass(frozen=True, eq=False)
class NewTokens:
    """Vectors that enter the sequence in place of what the policy took out."""

    vectors: Tensor  #: [r, d]
    stands_at: Tensor  #: int64 [r], ordinals of image_tokens; -1: without a place
    position_from: Tensor  #: int64 [r]: the token whose position id, picture and crop it takes
    where: Literal["in_place", "front", "behind", "behind_image"] = "in_place"


@dataclass(frozen=True, eq=False)
class Choice:
    """What is made of pools."""

    kept: Tensor  #: int64 [k] ordinals of image_tokens, in any order
    added: Sequence[NewTokens] = ()
    crop_by_crop: bool = False


@dataclass(frozen=True, eq=False)
class Verdict:
    """A ranking (`scores`, or `choose`), which the engine cuts; or a kept set, which it takes as it
    is."""

    #: float32 [m], the larger the longer it stays, ties to the lower ordinal; at "cache" also [KV
    #: heads, m]
    scores: Tensor | None = None
    kept: Tensor | None = None  #: int64 [k] ordinals of image_tokens, ascending; at "cache" [k] or [KV heads, k]
    added: Sequence[NewTokens] = ()  #: with `kept`
    crop_by_crop: bool = False
    judged: Tensor | None = None  #: bool [m], beside `kept`: what `scores` are about
    choose: Callable[[Pools], Choice] | None = None  #: a choice that needs to know how many stay
    always: Tensor | None = None  #: bool [m]: these stay and count, whatever their rank
    num_kept: Sequence[int] = ()  #: with an adaptive budget, one for each pool
    notes: Mapping[str, Tensor] = field(default_factory=dict)  #: numbers for traces and `inspect`


# ---- steps ----


@dataclass(frozen=True)
class Budget:
    """How much stays of each pool: keep_ratio or num_kept of the unpruned pool, or counts, or what
    the data decide."""

    pool: Pool = "request"  #: no wider than the step's scope
    keep_ratio: Fraction | str | float | None = None  #: in (0, 1]; exact: "2/9", 0.1 is 1/10
    num_kept: int | None = None
    counts: Sequence[int] = ()  #: of each pool of the unpruned request
    is_adaptive: bool = False
    rounding: Literal["nearest_even", "floor", "ceil"] = "nearest_even"
    at_least_one: bool = False
    images: Sequence[int] = ()  #: only tokens of these are judged; empty: of all
    is_interim: bool = False  #: a later step of the policy comes to its amount


@dataclass(frozen=True)
class Step:
    at: Site
    layer: int = 0  #: for "before_layer", "after_attention" and "cache"; 0-based
    scope: Scope = "request"  #: what the verdict about a token may depend on, beside the token itself; caches trust it
    budget: Budget = Budget()
    needs: Sequence[Signal] | Callable[[TokenLayout], Sequence[Signal]] = ()
    decide: Callable[[TokenLayout, list[Tensor]], Verdict] | None = None  #: signals in the order of `needs`
    is_nested: bool = True  #: what a smaller budget keeps is part of what a larger one keeps
    always_acts: bool = False  #: it changes tokens even where its budget lets all of them stay
    adds_on_top: bool = False  #: new tokens come beside the budget
    only_reads: bool = False  #: for a later step of the policy; drops nothing
    #: At "cache": asked again with each `every`-th generated token, before it attends there; 0: once.
    every: int = 0
    revives: bool = False  #: with `every`: rows that leave are held in memory and may come back; else freed
    makes_room: bool = False  #: with `every`, freed rows and a number: the answer's tokens count too


@dataclass(frozen=True)
class CommonOptions:
    """Rules that hold for every policy."""

    positions: Literal["keep", "compact"] = "keep"
    min_per_image: int = 0
    min_tokens: int = 0


# ---- policies ----


class Policy(ABC):
    """Derive from it and say what happens in `steps`. One object serves requests of all threads:
    what the steps of one request share is what their functions hold, as `steps` makes them anew for
    each request."""

    @abstractmethod
    def steps(self, model: ModelFacts, prompt: PromptLayout) -> Sequence[Step]:
        """What the policy does for this request, in the order of the data. Raise espalier.Error
        when it cannot serve it."""

    def spec(self) -> str:
        """What it is called in results, messages and pages: `name` or `name:option=value,…`."""
        return type(self).__name__

    def common(self) -> CommonOptions:
        return CommonOptions()

    def row_breaks_compete(self) -> bool:
        """True: newline tokens of any-resolution pictures are image tokens like the rest. False:
        one stays while a patch of its row does."""
        return False

    def wanted_shape(self, model: ModelFacts, shape: ImageShape) -> ImageShape:
        """Asked for each picture before its pixels are prepared: as many rows, columns and tiles or
        fewer."""
        return shape

    def __getstate__(self) -> dict[str, Any]:
        # What the engine knows this very object by does not go with copies.
        return {name: value for name, value in self.__dict__.items() if name != "_identity"}


AnyPolicy = Union[str, Policy, NativePolicy, "Sequence[AnyPolicy]"]


def make_policy(spec: str) -> NativePolicy:
    """A policy of the library from its spec string, `name` or `name:option=value,…`; pipelines as
    "a + b". Raises Error for what is wrong with it."""
    return NativePolicy(spec)


def chain(policies: Sequence[AnyPolicy]) -> NativePolicy:
    """Policies in sequence, each seeing what the one before left. Every amount refers to the
    unpruned pool."""
    return NativePolicy(list(policies))


@dataclass(frozen=True)
class PolicyEntry:
    """A policy of the library."""

    name: str
    paper: str
    summary: str
    sites: tuple[Site, ...]
    needs: str  #: of the model, in words
    options: dict[str, tuple[str, str]]  #: name -> (default, meaning)


def policy_table() -> tuple[PolicyEntry, ...]:
    """What `espalier policies` prints."""
    return _native.policy_table()
