# SPDX-License-Identifier: Apache-2.0
"""What comes back: frozen dataclasses. Tensors are int64 on the CPU unless said otherwise; source
indices are places in the prompt before any token left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

FinishReason = Literal["eos", "length", "stop_string", "stopped", "cancelled"]
Site = Literal["vision_output", "projector_output", "before_layer", "after_attention", "cache"]


@dataclass(frozen=True)
class SolvedAmount:
    """How much stayed where the policy has a target (ttft=, kv=), and what that was expected to
    cost."""

    policy: str  #: that ran: with its amount, or "none" where nothing had to leave or leaving would not have paid
    fits: bool  #: False: the least amount, or none, is expected to take longer than allowed
    predicted_ms: float | None  #: encode, select and prefill; with a target of time
    allowed_ms: float | None  #: for the same: what is left of the target
    waited_ms: float  #: from submission to its start
    kv_bytes: int  #: of the prompt and the longest answer, at most


@dataclass(frozen=True)
class Stats:
    """Counts, times and sizes of one request. Times are milliseconds of wall clock and do not
    overlap; the first three add up to the time to the first token."""

    prompt_tokens: int  #: with pictures expanded, before pruning
    image_tokens: tuple[int, ...]  #: at entry, of each picture
    image_tokens_per_layer: tuple[tuple[int, ...], ...]  #: [layer][picture] entering each decoder layer
    tokens_per_layer: tuple[int, ...]  #: entering each decoder layer in prefill, text included
    kv_tokens_per_layer: tuple[int, ...]  #: cached after prefill, held-back ones among them
    reused_tokens: int  #: of the prompt, found in the prefix cache
    new_tokens: int
    encode_ms: float  #: bytes to decoder input: pictures, tokenizer, vision tower, projector
    select_ms: float  #: deciding and applying, at every site
    prefill_ms: float  #: decoder up to the first token, without select
    decode_ms: float  #: all later tokens
    prefill_flops: float  #: of the decoder layers, attention counted causally
    prefill_flops_unpruned: float
    probe_flops: float  #: what the policy's signals cost
    kv_bytes: int  #: after prefill
    kv_bytes_unpruned: int
    kv_bytes_most: int  #: behind prefill and behind each generated token, the most
    peak_memory_bytes: int  #: of the process, or of the device's allocator
    threads: int
    kernels: dict[str, str]  #: op -> kernel that was chosen
    solved: SolvedAmount | None  #: of a policy with a target


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural logarithms of softmax(logits), before penalty, temperature and the cuts of
    sampling."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]  #: (id, logprob), the likeliest first


@dataclass(frozen=True, eq=False)
class PointTrace:
    """One point where the policy acted. Text is never listed, row breaks only where they compete.
    What is behind `kept_per_head` is there with trace=True and in `on_point` only, else empty."""

    site: Site
    layer: int | None  #: None where the site has none
    generated: int  #: with which generated token, 1, 2, …; 0: in prefill
    kept: Tensor  #: image tokens alive behind it, as they were; ascending
    kept_per_head: tuple[Tensor, ...]  #: at "cache", in place of `kept`
    dropped: Tensor  #: alive before it and not in `kept`
    candidates: Tensor  #: what the point judged
    scores: Tensor  #: float32, one a candidate; empty where the method has none
    notes: dict[str, Tensor]  #: float32, other numbers of the decision
    tokens_per_image: tuple[int, ...]  #: behind the point, merged tokens among them
    source: Tensor  #: the sequence behind the point, text too; -1: a new token without a place of its own
    position_id: Tensor  #: [1 or 3, tokens] as RoPE sees them from here on


@dataclass(frozen=True)
class PictureTrace:
    """How a picture became tokens."""

    grid: tuple[int, int]  #: rows and columns of one whole crop
    tiling: tuple[int, int] | None  #: rows and columns of tiles, of an any-resolution picture


@dataclass(frozen=True, eq=False)
class PromptTrace:
    """A whole prompt before anything leaves it. One entry a token."""

    query_example: int
    pictures: tuple[PictureTrace, ...]
    kind: Tensor  #: 0 text, 1 patch, 2 row break
    image: Tensor  #: -1 for text
    crop: Tensor  #: of a patch: 0 the full view, 1, 2, … the tiles
    example: Tensor  #: -1: `<s>` and the system prompt
    row: Tensor  #: of a patch, in its crop; else -1
    column: Tensor
    box: Tensor  #: float64 [tokens, 4]: x0, y0, x1, y1 in pixels of the picture; NaN where there is none
    position_id: Tensor  #: [1 or 3, tokens]


@dataclass(frozen=True, eq=False)
class Result:
    text: str
    token_ids: tuple[int, ...]  #: new tokens; the end token, if one came, is the last
    prompt_token_ids: tuple[int, ...]  #: each picture's placeholder expanded to its tokens
    logprobs: tuple[TokenLogprobs, ...]  #: one a new token, with top_logprobs
    prompt: str  #: before expansion
    policy: str  #: that ran: with what the model's folder sets, and a solved amount
    finish_reason: FinishReason
    points: tuple[PointTrace, ...]
    kept: Tensor  #: source indices of the image tokens that survive all points
    stats: Stats


@dataclass(frozen=True)
class TokenCounts:
    """How long a prompt is before anything runs."""

    prompt_tokens: int
    tokens_per_image: tuple[int, ...]  #: row breaks included
    max_positions: int  #: of the model


@dataclass(frozen=True)
class SchedulerLoad:
    waiting: int  #: submitted, not begun
    running: int
    kv_bytes_promised: int  #: to those that run, answers included
    kv_bytes_in_use: int
    prefix_hits: int
    prefix_misses: int
    reused_tokens: int
    prefix_bytes: int
    image_hits: int
    image_misses: int
    image_bytes: int
