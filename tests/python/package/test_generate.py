# SPDX-License-Identifier: Apache-2.0
"""Answers, prompts, pictures and callbacks. The command line is the oracle: same prompt, policy and
seed, same answer."""

import io
import json
import os
import signal
import threading
import time

import numpy
import PIL.Image
import pytest
import torch

import espalier

POLICIES = [
    "none",
    "fastv:keep_ratio=2/9,layer=3",
    "catp:keep_ratio=2/9,k=3",
    "m3:keep_ratio=1/4",
    "plphp:keep_ratio=2/9",
]


@pytest.mark.parametrize("policy", POLICIES)
def test_answers_as_the_command_line(engine, chat, demo, generated, policy):
    expected = generated("--chat", demo / "messages.json", "--policy", policy, "--greedy")
    result = engine.generate(chat, policy=policy, greedy=True, trace=True)
    assert result.text == expected["text"]
    assert list(result.token_ids) == expected["token_ids"]
    assert list(result.prompt_token_ids) == expected["prompt_token_ids"]
    assert result.prompt == expected["prompt"]
    assert result.policy == expected["policy"]
    assert [point.site for point in result.points] == [point["site"] for point in expected["points"]]
    for point, stated in zip(result.points, expected["points"]):
        kept = [head.tolist() for head in point.kept_per_head] or point.kept.tolist()
        assert kept == stated["kept"]
        assert point.layer == stated.get("layer")
        if "scores" in stated:
            assert torch.allclose(point.scores, torch.tensor(stated["scores"]))
    for name in ("prompt_tokens", "new_tokens", "kv_bytes"):
        assert getattr(result.stats, name) == expected["stats"][name]
    assert result.stats.prefill_flops == expected["stats"]["flops"]["prefill"]
    assert list(result.stats.tokens_per_layer) == expected["stats"]["tokens_per_layer"]


def test_samples_as_the_command_line(engine, picture, generated):
    options = dict(
        do_sample=True,
        temperature=1.5,
        top_k=20,
        top_p=0.9,
        repetition_penalty=1.1,
        seed=7,
        max_new_tokens=20,
        ignore_eos=True,
    )
    expected = generated(
        "--image",
        picture,
        "--prompt",
        "What is this?",
        "--temperature",
        1.5,
        "--top-k",
        20,
        "--top-p",
        0.9,
        "--repetition-penalty",
        1.1,
        "--seed",
        7,
        "--max-new-tokens",
        20,
        "--ignore-eos",
    )
    result = engine.generate("What is this?", [picture], **options)
    assert list(result.token_ids) == expected["token_ids"]
    assert list(engine.generate("What is this?", [picture], **options | {"seed": 8}).token_ids) != expected["token_ids"]


def test_raw_prompt(engine, picture, generated):
    text = "USER: <image> what shape? ASSISTANT:"
    expected = generated("--image", picture, "--raw-prompt", text, "--greedy")
    assert engine.generate(espalier.RawPrompt(text, [picture]), greedy=True).text == expected["text"]


def test_several_at_once(engine, chat, picture):
    requests = [
        espalier.Request(chat, policy=POLICIES[1], greedy=True),
        espalier.Request("what shape?", [picture], greedy=True),
    ]
    pieces = {0: "", 1: ""}

    def on_text(number, piece):
        pieces[number] += piece

    together = engine.generate_all(requests, on_text=on_text)
    for number, request in enumerate(requests):
        alone = engine.generate(request.prompt, request.images, **request.options)
        assert together[number].text == alone.text == pieces[number]


# ---- prompts ----


def test_messages(engine, chat, demo):
    expected = engine.generate(chat, greedy=True)
    messages = json.loads((demo / "messages.json").read_text())
    with_paths, with_pictures, with_places, images = [], [], [], []
    for message in messages:
        parts = [message["content"]] if isinstance(message["content"], str) else message["content"]
        for how, to in ((0, with_paths), (1, with_pictures), (2, with_places)):
            content = []
            for part in parts:
                if isinstance(part, dict) and part["type"] == "image":
                    file = demo / part["path"]
                    content.append(
                        [
                            {"type": "image", "path": str(file)},
                            {"type": "image", "image": PIL.Image.open(file)},
                            {"type": "image"},
                        ][how]
                    )
                    if how == 2:
                        images.append(file)
                else:
                    content.append(part if isinstance(part, dict) else {"type": "text", "text": part})
            to.append({"role": message["role"], "content": content})
    assert len(images) == 5
    for prompt, pictures in ((with_paths, ()), (with_pictures, ()), (with_places, images)):
        result = engine.generate(prompt, pictures, greedy=True)
        assert (result.prompt, result.token_ids) == (expected.prompt, expected.token_ids)
    with pytest.raises(espalier.Error, match="none of `images` is left"):
        engine.generate(with_places, images[:4])
    with pytest.raises(espalier.Error, match="images: 1 were given"):
        engine.generate(with_paths, images[:1])
    assert espalier.Chat([("user", ["a"])]).messages() == [{"role": "user", "content": [{"type": "text", "text": "a"}]}]


def test_pinned_tokens_stay(engine, picture):
    pinned = espalier.Picture(picture, pins=[(0, 0, 15, 15)])
    told = []
    result = engine.generate("what shape?", [pinned], policy="uniform:keep_ratio=1/4", on_prompt=told.append)
    prompt = told[0]
    box = prompt.box.nan_to_num(1e9)
    inside = ((prompt.kind == 1) & (box[:, 0] < 15) & (box[:, 1] < 15)).nonzero().squeeze(1)
    assert 0 < len(inside) < len(result.kept)
    assert set(inside.tolist()) <= set(result.kept.tolist())
    plain = engine.generate("what shape?", [picture], policy="uniform:keep_ratio=1/4")
    assert not set(inside.tolist()) <= set(plain.kept.tolist())


def test_look_at(engine, picture):
    seen = engine.look_at(picture)
    assert (
        engine.generate("what shape?", [seen], greedy=True).token_ids
        == engine.generate("what shape?", [picture], greedy=True).token_ids
    )


def test_counts_and_tokenizer(engine, chat):
    counts = engine.count_tokens(chat)
    result = engine.generate(chat, max_new_tokens=1)
    assert counts.prompt_tokens == result.stats.prompt_tokens == len(result.prompt_token_ids)
    assert counts.tokens_per_image == result.stats.image_tokens
    ids = engine.tokenizer.encode("what shape?", add_special=False)
    assert engine.tokenizer.decode(ids) == "what shape?"


def test_facts(engine):
    """The files of the bundled model say the same."""
    model = espalier.bundled_model()
    config = json.loads((model / "config.json").read_text())
    decoder, tower = config["text_config"], config["vision_config"]
    facts = engine.facts
    assert (facts.name, facts.family, facts.dtype) == ("demo", "LLaVA-1.5", config["torch_dtype"])
    assert (facts.num_layers, facts.hidden_size) == (decoder["num_hidden_layers"], decoder["hidden_size"])
    assert (facts.num_heads, facts.num_kv_heads) == (decoder["num_attention_heads"], decoder["num_key_value_heads"])
    assert facts.head_dim * facts.num_heads == facts.hidden_size
    assert facts.intermediate_size == decoder["intermediate_size"]
    assert (facts.sliding_window, facts.has_mrope, facts.has_text_tower) == (0, False, False)
    assert (facts.vision_layers, facts.vision_heads) == (tower["num_hidden_layers"], tower["num_attention_heads"])
    assert facts.vision_feature_layer == tower["num_hidden_layers"] + config["vision_feature_layer"]  # -1: the last
    assert facts.vision_hidden_size == tower["hidden_size"] and facts.has_class_token
    defaults = json.loads((model / "policy_defaults.json").read_text())
    assert {(d.policy, d.option, d.value) for d in facts.policy_defaults} == {
        (policy, option, str(value)) for policy, options in defaults.items() for option, value in options.items()
    }


def test_targets_say_what_they_came_to(engine, picture):
    whole = engine.generate("what shape?", [picture], max_new_tokens=4)
    assert whole.stats.solved is None
    room = whole.stats.kv_bytes  # of the prompt alone, so some of it must make place for the answer
    result = engine.generate("what shape?", [picture], max_new_tokens=4, policy=f"divprune:kv={room}B")
    solved = result.stats.solved
    assert solved.policy == result.policy and solved.policy.startswith("divprune:keep_ratio=")
    assert solved.fits and 0 < solved.kv_bytes <= room and solved.predicted_ms is None
    assert 0 < len(result.kept) < len(whole.kept)


# ---- pictures ----


def pixels_of(engine, picture, size=None):
    from espalier.prompts import _image

    image = _image(picture)
    return image.tobytes(), (image.height, image.width)


def test_every_kind_of_picture_is_the_same(engine, picture):
    pillow = PIL.Image.open(picture).convert("RGB")
    array = numpy.asarray(pillow)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    expected = array.tobytes(), array.shape[:2]
    for same in (
        picture,
        str(picture),
        picture.read_bytes(),
        pillow,
        array,
        array[::-1][::-1],
        tensor,
        tensor.float() / 255,
    ):
        assert pixels_of(engine, same) == expected


def test_grey_and_alpha(engine):
    random = numpy.random.default_rng(0)
    grey = random.integers(0, 256, (5, 7), dtype=numpy.uint8)
    expected = numpy.repeat(grey[..., None], 3, 2).tobytes(), (5, 7)
    for same in (
        grey,
        grey[..., None],
        PIL.Image.fromarray(grey),
        torch.from_numpy(grey),
        torch.from_numpy(grey)[None],
    ):
        assert pixels_of(engine, same) == expected
    rgba = random.integers(0, 256, (5, 7, 4), dtype=numpy.uint8)
    alpha = rgba[..., 3:] / 255
    on_white = rgba[..., :3] * alpha + 255 * (1 - alpha)
    for same in (rgba, PIL.Image.fromarray(rgba), torch.from_numpy(rgba).permute(2, 0, 1)):
        came = numpy.frombuffer(pixels_of(engine, same)[0], numpy.uint8).reshape(5, 7, 3)
        assert abs(came - on_white).max() <= 1


def test_turned_photographs(engine):
    """A file of a phone that lies on its side, as bytes and as Pillow opens it."""
    lying = numpy.zeros((8, 16, 3), numpy.uint8)
    lying[:, :8] = 255
    file = io.BytesIO()
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.fromarray(lying).save(file, "PNG", exif=exif)
    for turned in (file.getvalue(), PIL.Image.open(file)):
        assert pixels_of(engine, turned)[1] == (16, 8)


@pytest.mark.parametrize(
    "wrong, says",
    [
        (3, "got int"),
        (numpy.zeros((4, 4, 2), numpy.uint8), "got uint8 \\[4, 4, 2\\]"),
        (numpy.zeros((4, 4, 3)), "got float64"),
        (torch.ones(3, 4, 4) * 2, "floats in \\[0, 1\\], got 2 to 2"),
        ("no.png", "no.png: no such file"),
        (b"no", "image"),
    ],
)
def test_wrong_pictures(engine, wrong, says):
    with pytest.raises(espalier.Error, match=says):
        engine.generate("what?", [wrong])


# ---- callbacks ----


def test_callbacks_tell_what_the_result_says(engine, chat):
    text, ids, points, prompts, stages = "", [], [], [], set()

    def on_text(piece):
        nonlocal text
        text += piece

    result = engine.generate(
        chat,
        policy=POLICIES[1],
        trace=True,
        top_logprobs=2,
        on_text=on_text,
        on_token=lambda id, logprobs: ids.append((id, logprobs)),
        on_point=points.append,
        on_prompt=prompts.append,
        on_progress=lambda stage, done, total: stages.add(stage),
    )
    assert text == result.text
    assert ids == [(logprobs.id, logprobs) for logprobs in result.logprobs] and len(ids) == len(result.token_ids)
    assert all(len(logprobs.top) == 2 for logprobs in result.logprobs)
    assert stages == {"encode", "prefill", "decode"}
    (point,), (stated,), (prompt,) = points, result.points, prompts
    assert torch.equal(point.kept, stated.kept) and torch.equal(point.scores, stated.scores)
    assert torch.equal(point.candidates, (prompt.kind == 1).nonzero().squeeze(1))
    assert prompt.position_id.shape == (1, result.stats.prompt_tokens)
    assert len(point.kept) + len(point.dropped) == len(point.candidates) == len(point.scores)
    point.kept.add_(1)  # an ordinary tensor, though it was made without gradients


def test_stop_and_cancel(engine, picture):
    for word, reason in (("stop", "stopped"), ("cancel", "cancelled")):
        result = engine.generate("what?", [picture], ignore_eos=True, max_new_tokens=50, on_text=lambda piece: word)
        assert (result.finish_reason, len(result.token_ids) < 50) == (reason, True)
    assert engine.generate("what?", [picture], should_cancel=lambda: True).finish_reason == "cancelled"
    with pytest.raises(espalier.Error, match='on_text: expected None, "stop" or "cancel" back, got 7'):
        engine.generate("what?", [picture], on_text=lambda piece: 7)


@pytest.mark.parametrize("name", ["on_text", "on_token", "on_point", "on_prompt", "on_progress", "should_cancel"])
def test_what_a_callback_raises_comes_back(engine, picture, name):
    raised = LookupError("mine")

    def callback(*_):
        raise raised

    with pytest.raises(LookupError) as caught:
        engine.generate("what?", [picture], policy="uniform:keep_ratio=1/2", **{name: callback})
    assert caught.value is raised
    assert engine.generate("what?", [picture], max_new_tokens=1).token_ids


def test_a_callback_may_ask(engine, picture):
    inner = []
    engine.generate(
        "what?",
        [picture],
        max_new_tokens=1,
        on_token=lambda id, _: (
            inner.append(engine.generate("what?", [picture], max_new_tokens=1).token_ids[0]) or inner.append(id)
        ),
    )
    assert inner[0] == inner[1]


def test_ctrl_c_ends_a_call(engine, picture):
    tokens = []

    def on_token(id, _):
        tokens.append(id)
        if len(tokens) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.02)

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        engine.generate("what?", [picture], ignore_eos=True, max_new_tokens=200, on_token=on_token)
    assert 3 <= len(tokens) < 200 and time.monotonic() - began < 4
    assert engine.generate("what?", [picture], max_new_tokens=1).token_ids


def test_threads(engine, picture):
    expected = engine.generate("what shape?", [picture], greedy=True).text
    texts = []
    threads = [
        threading.Thread(target=lambda: texts.append(engine.generate("what shape?", [picture], greedy=True).text))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == [expected] * 6


# ---- errors ----


@pytest.mark.parametrize(
    "options, says",
    [
        (dict(max_new_token=3), "there is no 'max_new_token'"),
        (dict(max_new_tokens="3"), "max_new_tokens: expected an int, got '3'"),
        (dict(temperature="hot"), "temperature: expected a float"),
        (dict(policy="fast"), "fast"),
        (dict(policy=3), "policy: expected a spec string"),
        (dict(temperature=-1.0), "temperature"),
        (dict(on_text=3), "on_text: expected a function"),
    ],
)
def test_wrong_options(engine, options, says):
    with pytest.raises(espalier.Error, match=says):
        engine.generate("what?", **options)


def test_wrong_engines(tmp_path, picture):
    with pytest.raises(espalier.Error, match="config.json"):
        espalier.Engine(tmp_path)
    with pytest.raises(espalier.Error, match='EngineOptions.dtype: expected "f32", "bf16", "f16", got \'f8\''):
        espalier.Engine(options=espalier.EngineOptions(dtype="f8"))
    with espalier.Engine(options=espalier.EngineOptions(dtype="f32", threads=1)) as engine:
        assert engine.generate("what shape?", [picture], max_new_tokens=2).stats.threads == 1
    with pytest.raises(espalier.Error, match="engine: it is closed"):
        engine.generate("what?")


def test_loading_shows_progress():
    shown = []
    espalier.Engine(options=espalier.EngineOptions(on_progress=lambda *progress: shown.append(progress))).close()
    assert shown and all(stage == "load" and 0 <= done <= total for stage, done, total in shown)
