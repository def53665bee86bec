# SPDX-License-Identifier: Apache-2.0
"""What looks at policies: recordings and replays, the page of `espalier inspect`, accuracy on drawn
questions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from typing_extensions import Unpack

from . import _native
from ._native import Error
from .engine import Engine
from .policies import AnyPolicy
from .prompts import GenerationOptions, PictureLike, PromptLike, RequestOptions, native_prompt
from .results import PointTrace

ProgressFunction = Callable[[str, int, int], None]


def _callbacks(on_progress: ProgressFunction | None) -> dict[str, Any]:
    return {} if on_progress is None else {"on_progress": on_progress}


def _finished(engine: Engine, answer: Any) -> Any:
    # Nothing but a closed engine ends these calls without an answer.
    if answer is None:
        raise Error(f"engine: it was closed while a call ran ({engine.folder})")
    return answer


# ---- record and replay ----


@dataclass(frozen=True, eq=False)
class Recording:
    """The signals of one run, with names and shapes of docs/formats.md. What `espalier record`
    writes is read by Recording(json.load(layout), safetensors.torch.load_file(signals)), and
    written the same way."""

    layout: Mapping[str, Any]  #: layout.json
    signals: Mapping[str, Tensor]  #: float32 on the CPU


@dataclass(frozen=True, eq=False)
class ReplayedPoint:
    trace: PointTrace
    merged: Tensor | None  #: float32 [r, d]: the vectors of all image tokens that leave the point, where some entered
    merged_source: Tensor  #: the source index each stands at; -1: none
    merged_position_from: Tensor  #: the token whose position id each has


@dataclass(frozen=True, eq=False)
class Replay:
    points: tuple[ReplayedPoint, ...]
    kept: Tensor  #: source indices of the image tokens that survive all points


def record(
    engine: Engine,
    prompt: PromptLike,
    images: Sequence[PictureLike] = (),
    *,
    only: Sequence[str] = (),
    generated: int = 0,
    on_progress: ProgressFunction | None = None,
    **options: Unpack[RequestOptions],
) -> Recording:
    """Runs encode and prefill and keeps what policies read. only: names ("attention.5") or families
    ("hidden"); without it everything, whole attention maps of every layer among them. With a
    policy, rows and columns of tokens that are gone are zeros. generated: so many tokens of the
    answer too, which policies read that are asked again while decoding."""
    request = _native.Request(native_prompt(prompt, images), dict(options))
    recorded = _native.record(engine._native, request, list(only), _callbacks(on_progress), generated)
    layout, signals = _finished(engine, recorded)
    return Recording(json.loads(layout), signals)


def replay(policy: AnyPolicy, recording: Recording) -> Replay:
    """What a policy keeps, decided on recorded signals without a model. Raises Error naming a
    signal that was not recorded."""
    points, kept = _native.replay(policy, json.dumps(recording.layout), dict(recording.signals))
    return Replay(tuple(ReplayedPoint(*point) for point in points), kept)


# ---- inspect ----


def inspect(
    engine: Engine,
    prompt: PromptLike,
    images: Sequence[PictureLike] = (),
    *,
    policies: Sequence[AnyPolicy],
    on_progress: ProgressFunction | None = None,
    **generation: Unpack[GenerationOptions],
) -> str:
    """One HTML page that needs nothing else: each picture with the tokens kept and dropped at every
    point of each policy, their scores, budgets and position ids. Answers are greedy and at most 32
    tokens long unless `generation` says otherwise."""
    asked = native_prompt(prompt, images)
    options = {"greedy": True, "max_new_tokens": 32, **generation}
    requests = [_native.Request(asked, {**options, "policy": policy}) for policy in policies]
    return str(_finished(engine, _native.inspect(engine._native, requests, _callbacks(on_progress))))


# ---- evaluate ----


@dataclass(frozen=True)
class EvaluationOptions:
    suites: Sequence[str] = ()  #: "single", "detail", "bind", "define" or cells such as "bind/shape-2x1"; empty: these
    seed: int = 0  #: which list of test items; published numbers use 0
    items: int = 200  #: of each cell
    difficulty: Literal["plain", "clutter", "distractor", "hard"] = "hard"
    side: int | None = None  #: pixels along a side of the pictures; None: what the model takes
    with_controls: bool = True  #: the unpruned model without images, with shuffled words, without examples


@dataclass(frozen=True)
class Cell:
    """One policy on the items of one cell."""

    policy: str
    suite: str
    cell: str
    control: str | None  #: what was taken from the unpruned model's prompts
    chance: float
    n: int
    correct: int
    low: float  #: Wilson interval of correct / n, 95 %
    high: float
    tokens_mean: float  #: image tokens that enter a decoder layer
    flops: float  #: of the decoder's prefill and the policy's signals, mean over items
    flops_unpruned: float
    difference: (
        Mapping[str, float | None] | None
    )  #: to the unpruned model on the same items: mean, low, high, mcnemar_p

    @property
    def accuracy(self) -> float:
        return self.correct / self.n if self.n else 0.0


def evaluate(
    engine: Engine,
    policies: Sequence[AnyPolicy],
    options: EvaluationOptions = EvaluationOptions(),
    *,
    on_progress: ProgressFunction | None = None,
) -> tuple[Cell, ...]:
    """Asks the drawn benchmark's questions under each policy and without any, on the same items;
    greedy answers, exact match. What a policy or the model cannot do is raised before the work."""
    answer = _finished(engine, _native.evaluate(engine._native, list(policies), options, _callbacks(on_progress)))
    return tuple(
        Cell(
            row["policy"],
            row["suite"],
            row["cell"],
            row.get("control_name"),
            row["chance"],
            row["n"],
            row["correct"],
            row["low"],
            row["high"],
            row["tokens_mean"],
            row["flops"],
            row["flops_unpruned"],
            row.get("difference"),
        )
        for row in json.loads(answer)["cells"]
    )
