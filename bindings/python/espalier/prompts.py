# SPDX-License-Identifier: Apache-2.0
"""What is asked: text and pictures, as one user turn, as messages in Hugging Face's form, or as one
exact text."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Union

import torch
from typing_extensions import Unpack

from . import _native
from ._native import Chat, Error, ImagePart
from .results import PointTrace, PromptTrace, TokenLogprobs

if TYPE_CHECKING:
    from .policies import AnyPolicy

#: A file, an encoded file's bytes, a PIL picture, a NumPy array [h, w], [h, w, 1], [h, w, 3] or [h,
#: w, 4] of uint8 as Pillow and OpenCV's RGB have it, or a torch tensor [h, w] or [1, 3 or 4, h, w
#: without the batch] as torchvision has it: uint8, or floats in [0, 1].
PictureLike = Any
Message = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture with parts that no policy of the library may drop."""

    image: PictureLike
    pin: bool = False  #: all of it
    pins: Sequence[tuple[int, int, int, int]] = ()  #: x0, y0, x1, y1 in its pixels, x1 and y1 exclusive


@dataclass(frozen=True, eq=False)
class RawPrompt:
    """The exact text, with the model's placeholder (`<image>` for LLaVA) where pictures go, in
    order."""

    text: str
    images: Sequence[PictureLike] = ()
    example_begins: Sequence[
        int
    ] = ()  #: where in-context examples begin: ascending offsets into the text's UTF-8, the last the query's


#: A user's turn, messages ({"role", "content": text or [{"type": "text", "text"} | {"type":
#: "image", "image"}]}), a raw prompt, or what `read_chat` read.
PromptLike = Union[str, Sequence[Message], RawPrompt, Chat]


class GenerationOptions(TypedDict, total=False):
    """How to generate. What is left out comes from the checkpoint's generation_config.json."""

    max_new_tokens: int  # 128
    greedy: bool  # plain argmax: no sampling, no penalty
    do_sample: bool | None
    temperature: float | None  # > 0
    top_k: int | None  # 0: off
    top_p: float | None  # in (0, 1]
    repetition_penalty: float | None  # > 0; counts every id of the prompt too
    seed: int  # same seed, same tokens, whatever else is in the batch
    stop: list[str]  # generation ends before the first of these
    ignore_eos: bool
    top_logprobs: int | None  # set: how likely each new token was, and so many alternatives, 0 to 20


class RequestOptions(GenerationOptions, total=False):
    policy: AnyPolicy  # "none"
    salt: str  # beginnings are used again only among requests of equal salt
    trace: bool  # fill all of Result.points


class Callbacks(TypedDict, total=False):
    """Called on the engine's own thread. What one raises ends the request and is raised again by
    the call."""

    on_text: Callable[[str], Literal["stop", "cancel"] | None]  # each piece of text as it becomes certain
    on_token: Callable[[int, TokenLogprobs | None], None]  # each new token, before the text that it makes certain
    on_prompt: Callable[[PromptTrace], None]  # the prompt before anything leaves it
    on_point: Callable[[PointTrace], None]  # each point as soon as its verdict has been applied
    on_progress: Callable[[str, int, int], None]  # stage ("encode", "prefill", "decode"), done, total
    should_cancel: Callable[[], bool]  # asked at least once a layer


class CallOptions(RequestOptions, Callbacks, total=False):
    """Options and callbacks of one call."""


class Request:
    """One of several requests of a call; the arguments of `Engine.generate` without callbacks."""

    def __init__(
        self, prompt: PromptLike, images: Sequence[PictureLike] = (), **options: Unpack[RequestOptions]
    ) -> None:
        self.prompt = prompt
        self.images = images
        self.options = options

    def native(self) -> _native.Request:
        return _native.Request(native_prompt(self.prompt, self.images), dict(self.options))


def split(call: Mapping[str, object]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of the request, and its callbacks with the request's number in front, which the
    library gives them."""
    options = {name: value for name, value in call.items() if name not in Callbacks.__annotations__}
    callbacks: dict[str, Any] = {name: value for name, value in call.items() if name in Callbacks.__annotations__}
    for name in ("on_text", "on_token", "on_prompt", "on_point"):
        if callable(function := callbacks.get(name)):
            callbacks[name] = lambda _, *told, function=function: function(*told)
    return options, callbacks


def read_chat(file: str | os.PathLike[str]) -> Chat:
    """messages.json: a list of {"role", "content"}; a picture is {"type": "image", "path"}, its
    path relative to the file."""
    return _native.read_chat(os.fspath(file))


def native_prompt(prompt: PromptLike, images: Sequence[PictureLike]) -> Chat | _native.RawPrompt:
    if isinstance(prompt, str):
        return Chat([("user", [*map(native_picture, images), prompt])])
    if isinstance(prompt, Chat):
        _expect_none(images, "the chat has its own")
        return prompt
    if isinstance(prompt, RawPrompt):
        _expect_none(images, "the raw prompt has its own")
        return _native.RawPrompt(
            prompt.text, [native_picture(image) for image in prompt.images], list(prompt.example_begins)
        )
    placed = iter(images)
    chat = Chat(
        [
            (_key(message, "role", number), list(_parts(message, number, placed)))
            for number, message in enumerate(prompt)
        ]
    )
    _expect_none(list(placed), "the messages have fewer places for them")
    return chat


def _expect_none(images: Sequence[PictureLike], why: str) -> None:
    if len(images) > 0:
        raise Error(f"images: {len(images)} were given, and {why}")


def _key(message: Message, name: str, number: int) -> Any:
    try:
        return message[name]
    except (KeyError, TypeError):
        raise Error(f"messages[{number}]: expected {{'role', 'content'}}, got {message!r:.80}") from None


def _parts(message: Message, number: int, placed: Iterator[PictureLike]) -> Iterator[str | ImagePart]:
    content = _key(message, "content", number)
    for part in [content] if isinstance(content, str) else content:
        if isinstance(part, str):
            yield part
        elif part.get("type") == "text":
            yield part["text"]
        elif part.get("type") == "image":
            yield native_picture(_picture_of(part, number, placed))
        else:
            raise Error(f"messages[{number}]: expected parts of type 'text' or 'image', got {part!r:.80}")


def _picture_of(part: Message, number: int, placed: Iterator[PictureLike]) -> PictureLike:
    source = next((part[name] for name in ("image", "path") if name in part), None)
    if source is None:  # a place for one of `images`, as Transformers' processors have it
        source = next(placed, None)
    if source is None:
        raise Error(f"messages[{number}]: a picture without 'image' or 'path', and none of `images` is left for it")
    pin = part.get("pin", False)
    if pin is False:
        return source
    if pin is True:
        return Picture(source, pin=True)
    return Picture(source, pins=[tuple(pin)] if isinstance(pin[0], int) else [tuple(box) for box in pin])


# ---- pictures ----


def native_picture(picture: PictureLike) -> ImagePart:
    if isinstance(picture, ImagePart):  # one that Engine.look_at has seen
        return picture
    if isinstance(picture, Picture):
        return ImagePart(_image(picture.image), picture.pin, [list(box) for box in picture.pins])
    return ImagePart(_image(picture))


def _image(source: PictureLike) -> _native.Image:
    if isinstance(source, _native.Image):
        return source
    if isinstance(source, (str, os.PathLike)):
        return _native.Image.read(os.fspath(source))
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _native.Image.decode(bytes(source))
    if isinstance(source, torch.Tensor):
        return _from_tensor(source)
    if hasattr(source, "getbands"):
        return _from_pillow(source)
    if hasattr(source, "__array_interface__"):
        return _from_rows(torch.from_numpy(source.copy()))  # torch takes neither reversed nor read-only arrays
    raise Error(
        f"picture: expected a file, bytes, a PIL picture, a NumPy array or a torch tensor, got {type(source).__name__}"
    )


def _from_pillow(picture: Any) -> _native.Image:
    from PIL import ImageOps

    picture = ImageOps.exif_transpose(picture)
    picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    width, height = picture.size
    return _native.Image(picture.tobytes(), width, height, len(picture.getbands()))


def _from_tensor(tensor: torch.Tensor) -> _native.Image:
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        if tensor.numel() and not (0 <= tensor.min() and tensor.max() <= 1):
            raise Error(f"picture: expected floats in [0, 1], got {tensor.min():.3g} to {tensor.max():.3g}")
        tensor = (tensor.float() * 255).round().to(torch.uint8)
    return _from_rows(tensor.movedim(0, -1) if tensor.dim() == 3 else tensor)


def _from_rows(pixels: torch.Tensor) -> _native.Image:
    if pixels.dim() == 2:
        pixels = pixels.unsqueeze(-1)
    if pixels.dtype != torch.uint8 or pixels.dim() != 3 or pixels.size(-1) not in (1, 3, 4):
        came = f"{str(pixels.dtype).removeprefix('torch.')} {list(pixels.shape)}"
        raise Error(
            f"picture: expected uint8 [h, w, 1, 3 or 4], in torch channels first or floats in [0, 1], got {came}"
        )
    return _native.Image(pixels)
