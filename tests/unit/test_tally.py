"""What the router counts: against what is seen from outside, in random histories and in ones written down."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from embedpool.protocol import Done, Refused, Run
from embedpool.router import events as ev
from embedpool.router.core import Core
from embedpool.router.cost import CostModel
from embedpool.router.tally import LE_MS, LE_TOKENS, STAGES, ClassTally, RunTally
from tests.unit.histories import RULES, Player, choose
from tests.unit.transcript import ALICE, CARD, ask, core, joined, play

HISTORIES = 150


def _played(seed: int) -> Player:
    history = choose(seed)
    player = Player(core(slice_ms=history.slice_ms, **RULES))
    player.play(history.moves)
    return player


def _outcomes(player: Player) -> Counter[tuple[bool, str]]:
    """Every answer, as (interactive, "vectors" or a code): told from the questions and answers alone."""
    rules, model, found = player.core.rules, CARD, Counter[tuple[bool, str]]()
    asked: dict[tuple[bytes, int], bool] = {}
    for (event, _), actions in zip(player.log, player.actions, strict=True):
        if isinstance(event, ev.Switched) and event.model != model:
            model, asked = event.model, {}  # what was open has no answer, and its ids are free
        if isinstance(event, ev.Closed | ev.Opened):
            asked = {key: kind for key, kind in asked.items() if key[0] != event.session}
        if isinstance(event, ev.Asked):
            asked.setdefault((event.session, event.ask.id), rules.is_interactive(event.ask))
        for action in actions:
            if isinstance(action, ev.Reply):
                assert action.message.id is not None
                outcome = action.message.code if isinstance(action.message, Refused) else "vectors"
                found[asked.pop((action.session, action.message.id)), outcome] += 1
    return found


def test_requests_by_class_and_outcome_are_those_that_clients_saw() -> None:
    for seed in range(HISTORIES):
        player = _played(seed)
        counted: Counter[tuple[bool, str]] = Counter()
        for interactive in (True, False):
            tally = player.core.tally.of(interactive)
            counted[interactive, "vectors"] += tally.answered
            counted.update({(interactive, code): n for code, n in tally.refused.items()})
        assert +counted == _outcomes(player), seed


def test_classes_add_up_to_the_pools_counters() -> None:
    for seed in range(HISTORIES):
        made = _played(seed).core
        both = (made.tally.interactive, made.tally.bulk)
        assert sum(tally.requests for tally in both) == made.counters.requests
        assert sum(tally.answered for tally in both) == made.counters.answered
        assert sum(tally.rows for tally in both) == made.counters.rows
        assert sum(tally.tokens for tally in both) <= made.counters.tokens  # which has those of refused requests too
        assert sum((Counter(tally.refused) for tally in both), Counter()) == made.counters.refused


def test_every_answered_request_is_in_one_bucket_of_each_stage() -> None:
    for seed in range(HISTORIES):
        made = _played(seed).core
        for tally in (made.tally.interactive, made.tally.bulk):
            assert all(sum(getattr(tally, stage).counts) == tally.answered for stage in STAGES)
            assert tally.total.sum_ms >= tally.queue.sum_ms >= 0.0


def _answered(**took: Any) -> ClassTally:
    tally = ClassTally()
    tally.answer(1, 2, (took.get("queue", 0.0), took.get("tokenize", 0.0), took.get("run", 0.0)), took.get("total", 0.0))
    return tally


@pytest.mark.parametrize(
    ("ms", "bucket"), [(0.0, 0), (LE_MS[0], 0), (LE_MS[3], 3), (LE_MS[3] * 1.001, 4), (LE_MS[-1] * 2, len(LE_MS))]
)
def test_a_bucket_holds_its_upper_bound(ms: float, bucket: int) -> None:
    for stage in STAGES:
        histogram = getattr(_answered(**{stage: ms}), stage)
        assert histogram.counts.index(1) == bucket
        assert histogram.sum_ms == ms


def test_bounds_rise() -> None:
    assert list(LE_MS) == sorted(set(LE_MS))
    assert list(LE_TOKENS) == sorted(set(LE_TOKENS))


def test_runs_tell_what_padding_cost() -> None:
    runs = RunTally()
    runs.add([Run(2, 8, 1.0, 13), Run(1, 200, 5.0, 200)])
    assert (runs.count, runs.rows, runs.tokens, runs.padded_tokens) == (2, 3, 213, 216)
    assert [n for n in zip(LE_TOKENS, runs.by_tokens, strict=False) if n[1]] == [(16, 1), (256, 1)]
    assert runs.by_rows[:2] == [1, 1]


def _finish(made: Core, ms: float, now: float) -> None:
    job = made.workers[1].jobs[0]
    play(made, ev.Finished(1, Done(job.id, ms, (3,) * len(job.slices), (), (Run(1, 4, ms, 3),), 0.5), b""), now)


def test_stages_of_a_request_are_where_its_time_went() -> None:
    made = core()
    play(made, joined(1), 0.0)
    play(made, ask(1), 1.0)
    play(made, ask(2, priority="bulk"), 1.0)
    _finish(made, 3.5, 1.004)
    _finish(made, 6.5, 1.011)
    quick, bulk = made.tally.interactive, made.tally.bulk
    assert (quick.answered, quick.tokens, bulk.answered, bulk.tokens) == (1, 3, 1, 3)
    assert quick.queue.sum_ms == pytest.approx(0.0)
    assert (quick.tokenize.sum_ms, quick.run.sum_ms, quick.total.sum_ms) == pytest.approx((0.5, 3.0, 4.0))
    assert bulk.queue.sum_ms == pytest.approx(4.0)
    assert bulk.total.sum_ms == pytest.approx(11.0)
    assert made.tally.runs.count == 2


def test_a_worker_is_busy_from_its_first_job_to_the_end_of_its_last() -> None:
    made = core()
    play(made, joined(1), 0.0)
    worker = made.workers[1]
    assert worker.busy_until(5.0) == 0.0
    play(made, ask(1), 10.0)
    play(made, ask(2), 10.5)
    assert worker.busy_until(11.0) == pytest.approx(1.0)
    _finish(made, 3.0, 11.0)
    assert worker.busy_until(12.0) == pytest.approx(2.0)
    _finish(made, 3.0, 12.0)
    assert worker.busy_until(20.0) == pytest.approx(2.0)
    play(made, ask(3), 20.0)
    assert worker.busy_until(20.25) == pytest.approx(2.25)


def test_requests_whose_session_ends_are_neither_answered_nor_refused() -> None:
    made = core()
    play(made, ask(1), 0.0)
    play(made, ev.Closed(ALICE), 0.1)
    tally = made.tally.interactive
    assert (tally.requests, tally.dropped, tally.answered, tally.refused) == (1, 1, 0, {})


def test_the_cost_models_error_is_how_far_off_jobs_are() -> None:
    cost = CostModel(512, unit_ms=0.1)
    cost.learn(1000, 100.0)
    assert cost.error == pytest.approx(0.0)
    for _ in range(2000):
        cost.learn(1000, cost.ms(1000) * 2)
    assert cost.error == pytest.approx(0.693, abs=0.01)
    for _ in range(2000):
        cost.learn(1000, cost.ms(1000))
    assert cost.error == pytest.approx(0.0, abs=0.01)
