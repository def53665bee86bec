# SPDX-License-Identifier: Apache-2.0
"""Recordings, replays, pages, evaluations and the properties of policies, with policies written in
Python among others."""

import json
import re
import struct

import pytest
import torch

import espalier
from own_policies import Fastv, MergePairs, Norms


def read_safetensors(file):
    data = file.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    return {
        name: torch.frombuffer(
            bytearray(data[8 + size + about["data_offsets"][0] : 8 + size + about["data_offsets"][1]]),
            dtype=torch.float32,
        ).view(about["shape"])
        for name, about in header.items()
        if name != "__metadata__"
    }


def test_records_as_the_command_line(engine, chat, demo, program, tmp_path):
    program(
        "record",
        "--chat",
        demo / "messages.json",
        "--signals",
        tmp_path / "s.safetensors",
        "--layout",
        tmp_path / "l.json",
    )
    recording = espalier.record(engine, chat)
    assert recording.layout == json.loads((tmp_path / "l.json").read_text())
    expected = read_safetensors(tmp_path / "s.safetensors")
    assert sorted(recording.signals) == sorted(expected)
    for name, signal in recording.signals.items():
        assert torch.equal(signal, expected[name])
    some = espalier.record(engine, chat, only=["hidden", "attention.2"])
    assert sorted(some.signals) == sorted(
        name for name in expected if name.startswith("hidden.") or name == "attention.2"
    )
    with pytest.raises(espalier.Error, match="nothing of that name"):
        espalier.record(engine, chat, only=["colour"])


@pytest.mark.parametrize(
    "own, spec",
    [
        (Fastv("2/9", 3), "fastv:keep_ratio=2/9,layer=3"),
        (Norms(), None),
        (MergePairs(), None),
        (["random:keep_ratio=1/2", Fastv("1/4", 4)], "random:keep_ratio=1/2 + fastv:keep_ratio=1/4,layer=4"),
    ],
)
def test_replays_what_it_does_live(engine, chat, own, spec):
    recording = espalier.record(engine, chat, policy=own)
    replayed = espalier.replay(own, recording)
    live = engine.generate(chat, policy=own, trace=True)
    assert torch.equal(replayed.kept, live.kept)
    for point, trace in zip(replayed.points, live.points, strict=True):
        assert torch.equal(point.trace.kept, trace.kept)
    if spec:
        assert torch.equal(espalier.replay(spec, recording).kept, live.kept)
    merged = replayed.points[0].merged
    assert (merged is not None) == isinstance(own, MergePairs)
    if merged is not None:
        hidden = recording.signals["hidden.0"][(engine_kind(recording) == 1)]
        assert torch.allclose(merged, hidden.view(-1, 2, hidden.shape[1]).mean(1), atol=2e-2, rtol=2e-2)  # bf16
        assert len(replayed.points[0].merged_source) == len(merged) == len(replayed.points[0].merged_position_from)


def engine_kind(recording):
    kind = torch.zeros(recording.layout["num_tokens"], dtype=torch.int64)
    for segment in recording.layout["segments"]:
        kind[segment["begin"] : segment["end"]] = segment["kind"] == "patches"
    return kind


def test_replay_names_what_is_wrong(engine, chat):
    recording = espalier.record(engine, chat, only=["hidden"])
    with pytest.raises(espalier.Error, match="the policy needs attention.1, which was not recorded"):
        espalier.replay(Fastv(), recording)
    short = {name: signal[1:] for name, signal in recording.signals.items()}
    with pytest.raises(espalier.Error, match="signals: hidden.0: expected shape"):
        espalier.replay(Norms(), espalier.Recording(recording.layout, short))
    double = {name: signal.double() for name, signal in recording.signals.items()}
    with pytest.raises(espalier.Error, match="signals: hidden.0: expected float32 on the CPU, got CPUDoubleType"):
        espalier.replay(Norms(), espalier.Recording(recording.layout, double))
    with pytest.raises(espalier.Error, match="layout: "):
        espalier.replay(Norms(), espalier.Recording({}, recording.signals))


def test_inspect_shows_each_policy(engine, chat):
    policies = [Fastv("2/9", 3), "fastv:keep_ratio=2/9,layer=3", Norms()]
    page = espalier.inspect(engine, chat, policies=policies)
    data = json.loads(re.search(r'id="runs">(.*?)</script>', page, re.S).group(1))
    assert [run["policy"] for run in data["runs"]] == [
        "own_fastv:keep_ratio=2/9,layer=3",
        "fastv:keep_ratio=2/9,layer=3",
        "Norms",
    ]
    for run, policy in zip(data["runs"], policies):
        result = engine.generate(chat, policy=policy, greedy=True)
        assert (run["kept"], run["text"]) == (result.kept.tolist(), result.text)
    assert len(data["pictures"]) == 5
    with pytest.raises(espalier.Error, match="one request or more"):
        espalier.inspect(engine, chat, policies=[])


def test_evaluate_asks_each_policy_the_same(engine, program):
    policies = [Fastv("1/4", 3), "fastv:keep_ratio=1/4,layer=3", Norms()]
    shown = []
    options = espalier.EvaluationOptions(suites=["single/count"], items=8, with_controls=False)
    cells = espalier.evaluate(engine, policies, options, on_progress=lambda *progress: shown.append(progress))
    assert [cell.policy for cell in cells] == [
        "none",
        "own_fastv:keep_ratio=1/4,layer=3",
        "fastv:keep_ratio=1/4,layer=3",
        "Norms",
    ]
    own, built_in = cells[1:3]
    assert 0 < built_in.correct < built_in.n
    assert (own.correct, own.n, own.tokens_mean, own.flops) == (
        built_in.correct,
        built_in.n,
        built_in.tokens_mean,
        built_in.flops,
    )
    assert shown[-1] == ("evaluate", 32, 32)
    expected = json.loads(
        program("eval", "--json", "--suite", "single/count", "--items", 8, "--no-controls", "--policy", policies[1])
    )["cells"]
    assert [(row["policy"], row["correct"], row["low"]) for row in expected] == [
        (cell.policy, cell.correct, cell.low) for cell in (cells[0], cells[2])
    ]
    with pytest.raises(espalier.Error, match="colours"):
        espalier.evaluate(engine, [], espalier.EvaluationOptions(suites=["colours"]))
    with pytest.raises(espalier.Error, match="items"):
        espalier.evaluate(engine, [], espalier.EvaluationOptions(items=0))


@pytest.mark.parametrize("name", espalier.conformance.PROPERTIES)
@pytest.mark.parametrize("make", (Fastv, Norms), ids=("Fastv", "Norms"))
def test_properties(name, make):
    if name in ("keeps_pinned", "treats_images_alike") and make is Fastv:
        pytest.skip("ranks all pictures together, as fastv does")
    assert espalier.conformance.check(name, make) == ""


def test_properties_find_what_is_wrong():
    class Wide(Norms):
        """Says that it looks at its picture alone, and looks at the question."""

        def steps(self, model, prompt):
            return [
                espalier.Step(
                    at="projector_output",
                    scope="image",
                    budget=espalier.Budget(pool="image", keep_ratio=self.keep_ratio),
                    needs=[espalier.Tap("hidden")],
                    decide=lambda layout, signals: espalier.Verdict(
                        scores=signals[0][layout.image_tokens] @ signals[0][-1]
                    ),
                )
            ]

    assert "of which nothing changed within the scope" in espalier.conformance.check("keeps_to_its_scope", Wide)

    class Raises(espalier.Policy):
        def __init__(self, keep_ratio):
            pass

        def steps(self, model, prompt):
            raise ValueError("mine")

    assert espalier.conformance.check("keeps_text", Raises) == "it threw: ValueError: mine"
    with pytest.raises(espalier.Error, match="there is no 'keeps'"):
        espalier.conformance.check("keeps", Norms)
    assert espalier.conformance.MODEL.num_layers == 8
