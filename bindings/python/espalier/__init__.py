# SPDX-License-Identifier: Apache-2.0
"""LLaVA-style vision-language models in which removing visual tokens is a first-class operation.

    import espalier

    with espalier.Engine() as engine:                       # the bundled model; or a Hugging Face folder
        result = engine.generate("What is this?", ["cat.jpg"], policy="fastv:keep_ratio=1/4")
        print(result.text, len(result.kept))

`Engine` answers, `Session` holds a conversation, `Scheduler` serves many requests at once (`async`
too), `Policy` is what a pruning policy of your own derives from. Everything stands on one C++
library; tensors are torch's."""

import torch as _torch

from ._built_for import TORCH_VERSION as _wanted

# Before the compiled module is touched: libtorch keeps no binary interface between versions.
if _torch.__version__.split("+")[0] != _wanted:
    raise ImportError(
        f"espalier was built for torch {_wanted}, and {_torch.__file__} is torch {_torch.__version__}: "
        f"pip install torch=={_wanted}, or build espalier against this torch's Espalier"
    )

from . import conformance
from ._native import (
    Chat,
    Error,
    ImagePart,
    ImageTooLarge,
    NativePolicy,
    Pools,
    PromptLayout,
    QueueFull,
    TokenLayout,
    Tokenizer,
)
from .engine import Engine, EngineOptions, Scheduler, Session, Ticket, bundled_model
from .policies import (
    AttentionGrowth,
    AttentionProbe,
    Budget,
    Choice,
    CommonOptions,
    Group,
    ImageShape,
    ModelFacts,
    NewTokens,
    Policy,
    PolicyDefault,
    PolicyEntry,
    Segment,
    Step,
    Tap,
    Verdict,
    chain,
    make_policy,
    policy_table,
)
from .prompts import Picture, RawPrompt, Request, read_chat
from .results import (
    PictureTrace,
    PointTrace,
    PromptTrace,
    Result,
    SchedulerLoad,
    SolvedAmount,
    Stats,
    TokenCounts,
    TokenLogprobs,
)
from .tools import Cell, EvaluationOptions, Recording, Replay, ReplayedPoint, evaluate, inspect, record, replay

__all__ = [
    "AttentionGrowth",
    "AttentionProbe",
    "Budget",
    "Cell",
    "Chat",
    "Choice",
    "CommonOptions",
    "Engine",
    "EngineOptions",
    "Error",
    "EvaluationOptions",
    "Group",
    "ImagePart",
    "ImageShape",
    "ImageTooLarge",
    "ModelFacts",
    "NativePolicy",
    "NewTokens",
    "Picture",
    "PictureTrace",
    "PointTrace",
    "Policy",
    "PolicyDefault",
    "PolicyEntry",
    "Pools",
    "PromptLayout",
    "PromptTrace",
    "QueueFull",
    "RawPrompt",
    "Recording",
    "Replay",
    "ReplayedPoint",
    "Request",
    "Result",
    "Scheduler",
    "SchedulerLoad",
    "Segment",
    "Session",
    "SolvedAmount",
    "Stats",
    "Step",
    "Tap",
    "Ticket",
    "TokenCounts",
    "TokenLayout",
    "TokenLogprobs",
    "Tokenizer",
    "Verdict",
    "bundled_model",
    "chain",
    "conformance",
    "evaluate",
    "inspect",
    "make_policy",
    "policy_table",
    "read_chat",
    "record",
    "replay",
]
