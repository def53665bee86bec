# SPDX-License-Identifier: Apache-2.0
"""Policies written in Python: the same tokens as the built-in ones that they copy, wherever a
policy may be used."""

import copy
import dataclasses
import gc
import pickle
import time
import weakref

import pytest
import torch

import espalier
from own_policies import Fastv, MergePairs, Norms, Raising

RATIOS = ("1/9", "2/9", "1/2", "1")


def same_points(own, built_in):
    assert [(point.site, point.layer, point.kept.tolist()) for point in own.points] == [
        (point.site, point.layer, point.kept.tolist()) for point in built_in.points
    ]
    assert (own.token_ids, own.kept.tolist()) == (built_in.token_ids, built_in.kept.tolist())


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("layer", (2, 5))
def test_a_copy_of_fastv_keeps_the_same_tokens(engine, chat, ratio, layer):
    own = engine.generate(chat, policy=Fastv(ratio, layer), greedy=True)
    same_points(own, engine.generate(chat, policy=f"fastv:keep_ratio={ratio},layer={layer}", greedy=True))
    assert (len(own.points) == 0) == (ratio == "1")


def test_in_a_chain(engine, chat):
    own = engine.generate(chat, policy=["random:keep_ratio=1/2,seed=3", Fastv("1/4", 4)], greedy=True)
    same_points(
        own, engine.generate(chat, policy="random:keep_ratio=1/2,seed=3 + fastv:keep_ratio=1/4,layer=4", greedy=True)
    )
    assert (
        espalier.chain(["random:keep_ratio=1/2,seed=3", Fastv()]).spec()
        == "random:keep_ratio=1/2,seed=3 + own_fastv:keep_ratio=1/4,layer=2"
    )
    with pytest.raises(espalier.Error, match="own_fastv"):  # more than what is left
        engine.generate(chat, policy=["random:keep_ratio=1/8", Fastv("1/4", 4)])


def test_in_a_session(engine, demo):
    answers = {}
    for name, policy in (("own", Fastv()), ("built-in", "fastv:keep_ratio=1/4,layer=2")):
        session = espalier.Session(engine, policy, greedy=True)
        first = session.ask("what shape?", [demo / "0.png"])
        answers[name] = [
            first,
            session.ask(["what shape?", {"type": "image", "image": demo / "1.png"}]),
            session.ask("and before?"),
        ]
        assert [message["role"] for message in session.messages] == ["user", "assistant"] * 3
        assert session.messages[1]["content"] == [{"type": "text", "text": first.text}]
    for own, built_in in zip(answers["own"], answers["built-in"]):
        same_points(own, built_in)
    assert answers["own"][1].stats.reused_tokens == answers["built-in"][1].stats.reused_tokens


def test_in_a_scheduler(engine, chat, picture):
    with espalier.Scheduler(engine) as scheduler:
        tickets = [
            scheduler.submit(chat, policy=policy, greedy=True)
            for policy in (Fastv(), "fastv:keep_ratio=1/4,layer=2", Norms(), "none")
        ]
        same_points(tickets[0].result(), tickets[1].result())
        assert tickets[2].result().token_ids == engine.generate(chat, policy=Norms(), greedy=True).token_ids


def test_ranking_and_choosing_are_the_same(engine, chat):
    same_points(
        engine.generate(chat, policy=Norms(), greedy=True),
        engine.generate(chat, policy=Norms(choose=True), greedy=True),
    )


def test_merging(engine, picture):
    result = engine.generate("what?", [picture], policy=MergePairs(), trace=True)
    assert result.stats.tokens_per_layer[0] == result.stats.prompt_tokens - result.stats.image_tokens[0] // 2


def test_what_a_policy_is_told(engine, chat):
    seen = {}

    class Looks(Norms):
        def wanted_shape(self, model, shape):
            seen["shape"] = shape
            return shape

        def steps(self, model, prompt):
            seen.update(model=model, prompt=prompt)
            (step,) = super().steps(model, prompt)

            def decide(layout, signals):
                seen.update(layout=layout, signal=signals[0])
                return step.decide(layout, signals)

            return [dataclasses.replace(step, decide=decide)]

    result = engine.generate(chat, policy=Looks())
    prompt, layout = seen["prompt"], seen["layout"]
    assert seen["model"].num_layers == len(result.stats.tokens_per_layer)
    assert prompt.num_tokens == layout.num_tokens == result.stats.prompt_tokens == len(seen["signal"])
    assert prompt.images == (seen["shape"],) * 5 and prompt.query_example == 4
    assert sum(s.end - s.begin for s in prompt.segments) == prompt.num_tokens
    assert [s.image for s in prompt.segments if s.kind == "patches"] == [0, 1, 2, 3, 4]
    assert [prompt.example_of_image(i) for i in range(5)] == [0, 1, 2, 3, 4]
    assert torch.equal(layout.image_tokens, (prompt.kind == 1).nonzero().squeeze(1))
    assert tuple(layout.tokens_per_image()) == result.stats.image_tokens
    assert layout.pools("image").begin == [0, *torch.tensor(layout.tokens_per_image()).cumsum(0).tolist()]


def test_a_smaller_picture(engine, picture):
    class Half(espalier.Policy):
        def steps(self, model, prompt):
            return []

        def wanted_shape(self, model, shape):
            return espalier.ImageShape((shape.grid[0] // 2, shape.grid[1] // 2), shape.tiling)

    full = engine.generate("what?", [picture]).stats.image_tokens[0]
    assert engine.generate("what?", [picture], policy=Half()).stats.image_tokens == (full // 4,)


# ---- whose it is ----


def test_beginnings_are_known_by_the_policys_object(demo):
    with espalier.Engine(options=espalier.EngineOptions(prefix_cache_bytes=1 << 28)) as engine:
        chat = espalier.read_chat(demo / "messages.json")
        policy = Norms()
        assert engine.generate(chat, policy=policy, greedy=True).stats.reused_tokens == 0
        assert engine.generate(chat, policy=policy, greedy=True).stats.reused_tokens > 0
        for other in (Norms(), copy.copy(policy), pickle.loads(pickle.dumps(policy))):
            assert engine.generate(chat, policy=other, greedy=True).stats.reused_tokens == 0


def test_nothing_holds_a_policy_for_ever(engine, picture):
    policy = Raising("decide", KeyError("x"))
    with pytest.raises(KeyError):
        engine.generate("what?", [picture], policy=policy)
    gone = weakref.ref(policy)
    policy.error = None
    del policy
    for _ in range(100):  # the thread that computes may still be letting go
        gc.collect()
        if gone() is None:
            return
        time.sleep(0.05)
    raise AssertionError("the policy is still there")


def test_a_frozen_dataclass_may_be_one(engine, picture):
    @dataclasses.dataclass(frozen=True)
    class Half(espalier.Policy):
        layer: int = 1

        def steps(self, model, prompt):
            return Fastv("1/2", self.layer).steps(model, prompt)

    own = engine.generate("what?", [picture], policy=Half(3), greedy=True)
    same_points(own, engine.generate("what?", [picture], policy="fastv:keep_ratio=1/2,layer=3", greedy=True))


# ---- what goes wrong ----


@pytest.mark.parametrize("where", ("steps", "needs", "decide", "choose"))
def test_what_a_policy_raises_comes_back_and_ends_its_own_request(engine, chat, picture, where):
    raised = ZeroDivisionError("mine")
    with espalier.Scheduler(engine) as scheduler:
        other = scheduler.submit(chat, greedy=True)
        with pytest.raises(ZeroDivisionError) as caught:
            scheduler.submit("what?", [picture], policy=Raising(where, raised)).result()
        assert caught.value is raised
        assert other.result().token_ids == engine.generate(chat, greedy=True).token_ids
    with pytest.raises(ZeroDivisionError) as caught:
        engine.generate("what?", [picture], policy=Raising(where, raised))
    assert caught.value is raised


def test_a_ticket_raises_again(engine, picture):
    ticket = espalier.Scheduler(engine).submit("what?", [picture], policy=Raising("decide", KeyError("mine")))
    for _ in range(3):
        with pytest.raises(KeyError, match="mine"):
            ticket.result()


def step(**fields):
    class Made(espalier.Policy):
        def steps(self, model, prompt):
            return [
                espalier.Step(
                    **{"at": "before_layer", "layer": 2, "budget": espalier.Budget(keep_ratio="1/2")} | fields
                )
            ]

    return Made()


@pytest.mark.parametrize(
    "fields, says",
    [
        (dict(at="layer"), "Step.at: expected \"vision_output\", .*got 'layer'"),
        (dict(layer="2"), "Step.layer: expected an int, got '2'"),
        (dict(layer=99), "99"),
        (dict(budget="1/2"), "Step.budget: expected Budget, got str"),
        (dict(budget=espalier.Budget(keep_ratio="x")), "Budget.keep_ratio: expected a fraction"),
        (dict(budget=espalier.Budget(keep_ratio=2)), "keep_ratio"),
        (dict(needs=[3]), "Step.needs: expected AttentionProbe, AttentionGrowth or Tap, got int"),
        (dict(needs=[espalier.Tap("colour")]), "Tap.what: expected"),
        (dict(needs=[espalier.AttentionProbe(layer=7)]), "layer"),
        (dict(decide=3), "Step.decide: expected a function, got 3"),
        (dict(decide=lambda layout, signals: None), "Step.decide: expected Verdict, got NoneType"),
        (
            dict(decide=lambda layout, signals: espalier.Verdict(scores=[1.0])),
            "Verdict.scores: expected a torch.Tensor",
        ),
        (dict(decide=lambda layout, signals: espalier.Verdict(scores=torch.ones(3))), "scores"),
        (dict(decide=lambda layout, signals: espalier.Verdict(kept=torch.tensor([5, 3]))), "ascending"),
    ],
)
def test_wrong_answers_are_named(engine, picture, fields, says):
    with pytest.raises(espalier.Error, match=says):
        engine.generate("what?", [picture], policy=step(**fields))


def test_steps_must_be_steps(engine, picture):
    class Wrong(espalier.Policy):
        def steps(self, model, prompt):
            return ["before_layer"]

    with pytest.raises(espalier.Error, match="Policy.steps: expected Step, got str"):
        engine.generate("what?", [picture], policy=Wrong())
    with pytest.raises(TypeError, match="abstract"):
        espalier.Policy()


def test_floats_are_the_fractions_that_they_look_like(engine, chat):
    counts = [
        len(
            engine.generate(
                chat,
                policy=step(
                    budget=espalier.Budget(keep_ratio=ratio),
                    needs=[espalier.AttentionProbe(layer=1)],
                    decide=lambda layout, signals: espalier.Verdict(scores=signals[0]),
                ),
            ).kept
        )
        for ratio in (0.1, "1/10")
    ]
    assert counts[0] == counts[1] == 32


def test_the_table(program):
    rows = {row.name: row for row in espalier.policy_table()}
    listed = program("policies", with_model=False)
    assert all(name in listed for name in rows) and {"fastv", "catp", "none"} <= set(rows)
    assert rows["fastv"].sites == ("before_layer", "cache") and rows["fastv"].options["layer"][0] == "2"
