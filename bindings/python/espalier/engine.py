# SPDX-License-Identifier: Apache-2.0
"""Engines, conversations, and requests that come and go."""

from __future__ import annotations

import asyncio
import atexit
import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from typing_extensions import Self, Unpack

from . import _native
from ._native import ImagePart, Tokenizer
from .policies import AnyPolicy, ModelFacts
from .prompts import (
    CallOptions,
    Callbacks,
    GenerationOptions,
    Message,
    PictureLike,
    PromptLike,
    Request,
    RequestOptions,
    native_picture,
    native_prompt,
    split,
)
from .results import Result, SchedulerLoad, TokenCounts

# What still runs when the interpreter ends is ended before: a thread of the library's that then
# asked for the interpreter's lock would never come back.
_open: weakref.WeakSet[_Closable] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for one in sorted(_open, key=lambda one: isinstance(one, Engine)):  # schedulers first
        one.close()
    _native.leave_interpreter()


class _Closable(ABC):
    """Closed by close(), by the end of a `with` block, or by the end of the program."""

    def __init__(self) -> None:
        _open.add(self)

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def bundled_model() -> Path:
    """The folder of the small model that comes with the package."""
    return Path(__file__).parent / "models" / "demo"


@dataclass(frozen=True)
class EngineOptions:
    dtype: Literal["f32", "bf16", "f16"] | None = None  #: None: the checkpoint's
    #: the decoder's linear layers as int8 with one scale per output; arithmetic stays in `dtype`
    int8_weights: bool = False
    device: Literal["cpu", "cuda"] = "cpu"
    decode_graphs: bool = True  #: on CUDA, decoding is recorded once and replayed
    threads: int = 0  #: 1 to 1024; 0: as many as the library chooses
    #: a file with the template to use in place of the checkpoint's own
    chat_template: str | os.PathLike[str] | None = None
    image_cache_bytes: int = 0  #: for what the vision tower made of recent pictures
    #: for beginnings of prompts, which are then computed once; answers are the same with and
    #: without
    prefix_cache_bytes: int = 0
    on_progress: Callable[[str, int, int], None] | None = None  #: stage "load", done, total


class Engine(_Closable):
    """A loaded checkpoint. Safe for several threads at once; calls give up the interpreter's lock,
    and Ctrl-C ends the one that waits.

    folder: a Hugging Face folder; None: the bundled model. Raises Error when it is not a checkpoint
    that Espalier runs."""

    def __init__(self, folder: str | os.PathLike[str] | None = None, options: EngineOptions = EngineOptions()) -> None:
        self._native = _native.Engine(os.fspath(bundled_model() if folder is None else folder), options)
        super().__init__()

    @property
    def folder(self) -> Path:
        return Path(self._native.folder)

    @property
    def facts(self) -> ModelFacts:
        return self._native.facts

    @property
    def tokenizer(self) -> Tokenizer:
        return self._native.tokenizer

    def generate(self, prompt: PromptLike, images: Sequence[PictureLike] = (), **call: Unpack[CallOptions]) -> Result:
        """Answers one prompt. `images` stand in front of a prompt that is a str; messages may have
        places for them.

        Options are those of RequestOptions (policy, max_new_tokens, greedy, seed, trace, …),
        callbacks those of Callbacks (on_text, …). Raises Error for a request that cannot be served,
        and what a callback or a Python policy raised."""
        options, callbacks = split(call)
        return self._native.generate([_native.Request(native_prompt(prompt, images), options)], callbacks)[0]

    def generate_all(
        self,
        requests: Sequence[Request],
        *,
        on_text: Callable[[int, str], Literal["stop", "cancel"] | None] | None = None,
        on_progress: Callable[[str, int, int], None] | None = None,
        should_cancel: Callable[[], bool] | None = None,
    ) -> tuple[Result, ...]:
        """Answers several prompts together; results are those of each alone. `on_text` is told the
        request's number first. Raises what the first request to fail raised, and gives up the
        others."""
        callbacks = {"on_text": on_text, "on_progress": on_progress, "should_cancel": should_cancel}
        return self._native.generate([request.native() for request in requests], callbacks)

    def look_at(self, picture: PictureLike) -> ImagePart:
        """Runs the vision tower on a picture once, for all prompts of this engine that get what
        comes back as a picture."""
        return self._native.look_at(native_picture(picture))

    def count_tokens(self, prompt: PromptLike, images: Sequence[PictureLike] = ()) -> TokenCounts:
        return self._native.count_tokens(native_prompt(prompt, images))

    def close(self) -> None:
        """Cancels the calls that run, waits for them, and refuses others. Its memory is freed when
        nothing of it is held any more."""
        self._native.close()


class Session:
    """A conversation. What earlier turns came to is used again; under a policy that looks at the
    question, tokens of earlier pictures are chosen again in every turn. One thread at a time.

    system: what stands before the first turn. sticky: tokens of a picture that a turn dropped stay
    away in later turns."""

    def __init__(
        self,
        engine: Engine,
        policy: AnyPolicy = "none",
        *,
        system: str = "",
        sticky: bool = False,
        **generation: Unpack[GenerationOptions],
    ) -> None:
        self._native = _native.Session(engine._native, policy, system, sticky, dict(generation))

    def ask(
        self,
        turn: str | Sequence[str | PictureLike],
        images: Sequence[PictureLike] = (),
        **callbacks: Unpack[Callbacks],
    ) -> Result:
        """The user's next turn: text with `images` in front of it, or texts ({"type": "text"}) and
        pictures in order. A turn that is cancelled or raises leaves the conversation as it was."""
        content: Any = turn if isinstance(turn, str) else list(turn)
        if isinstance(content, str):
            content = [*({"type": "image", "image": image} for image in images), content]
        return self._native.ask(native_prompt([{"role": "user", "content": content}], ()), split(callbacks)[1])

    @property
    def messages(self) -> list[Message]:
        """All turns so far. The pictures in it may be given to prompts."""
        return self._native.chat().messages()


class Ticket:
    """One submitted request. Iterating yields the pieces of its text as they come, `await` and
    result() give the result; both ways work from any thread and, with `async for` and `await`, in
    any event loop."""

    def __init__(self, native: _native.Ticket, scheduler: Scheduler) -> None:
        self._native = native
        self._scheduler = scheduler  # dropped, it would cancel what runs

    @property
    def is_done(self) -> bool:
        return self._native.is_done

    def cancel(self) -> None:
        """Takes effect within a layer. What text there is stays; the result's finish_reason is
        "cancelled"."""
        self._native.cancel()

    def result(self, timeout: float | None = None) -> Result:
        """Waits for the end. Raises what ended the request in place of an answer, TimeoutError
        after `timeout` seconds. May be asked again."""
        return self._native.result(timeout)

    def __iter__(self) -> Iterator[str]:
        while (piece := self._native.next(None)) is not None:
            yield piece

    async def __aiter__(self) -> AsyncIterator[str]:
        while True:
            seen = self._native.rings
            try:
                piece = self._native.next(0)
            except TimeoutError:
                await self._news(seen)
                continue
            if piece is None:
                return
            yield piece

    def __await__(self) -> Generator[Any, None, Result]:
        return self._wait().__await__()

    async def _wait(self) -> Result:
        try:
            while True:
                seen = self._native.rings
                if self.is_done:
                    break
                await self._news(seen)
        except asyncio.CancelledError:
            self.cancel()
            raise
        return self.result()

    async def _news(self, seen: int) -> None:
        """Waits until a piece or the end has come since it had rung `seen` times."""
        loop, news = asyncio.get_running_loop(), asyncio.Event()
        if self._native.listen(seen, lambda: loop.call_soon_threadsafe(news.set)):
            await news.wait()


class Scheduler(_Closable):
    """Requests that come and go: each is submitted from any thread, joins those that run at the
    next layer, and leaves when its answer ends. What it answers is what it would answer alone.

    kv_bytes: what keys and values of all running requests may take; 0: no limit. max_waiting:
    requests that may wait, one more is refused with QueueFull; 0: no limit."""

    def __init__(self, engine: Engine, *, kv_bytes: int = 0, prefix_cache_bytes: int = 0, max_waiting: int = 0) -> None:
        self._native = _native.Scheduler(engine._native, kv_bytes, prefix_cache_bytes, max_waiting)
        super().__init__()

    def submit(self, prompt: PromptLike, images: Sequence[PictureLike] = (), **call: Unpack[CallOptions]) -> Ticket:
        """Packs the prompt on the calling thread and refuses there what cannot be served: raises
        Error with the reason."""
        return self._submit(prompt, images, 1, call)[0]

    def submit_samples(
        self, prompt: PromptLike, images: Sequence[PictureLike] = (), *, samples: int, **options: Unpack[RequestOptions]
    ) -> list[Ticket]:
        """Several answers to one prompt, with the seeds seed, seed + 1, …; the prompt is computed
        once."""
        return self._submit(prompt, images, samples, options)

    def _submit(
        self, prompt: PromptLike, images: Sequence[PictureLike], samples: int, call: Mapping[str, object]
    ) -> list[Ticket]:
        options, callbacks = split(call)
        tickets = self._native.submit(_native.Request(native_prompt(prompt, images), options), samples, callbacks)
        return [Ticket(ticket, self) for ticket in tickets]

    def load(self) -> SchedulerLoad:
        return self._native.load()

    def close(self) -> None:
        """Cancels what runs and waits for it."""
        self._native.close()
