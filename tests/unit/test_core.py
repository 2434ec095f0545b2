"""The router's decisions, as transcripts: what happens, when, and what must follow."""

from __future__ import annotations

from typing import Any

import pytest

from embedpool.protocol import Done, Failure, ModelCard, Part, Refused, Vectors
from embedpool.router.admission import Admission
from embedpool.router.cost import CostModel
from embedpool.router.events import (
    CancelAsked,
    Closed,
    DrainAsked,
    Drained,
    Failed,
    Finished,
    Kill,
    Lost,
    Opened,
    Reply,
    RetireAsked,
    Retired,
    SendJob,
    Switched,
    Tick,
)
from embedpool.router.suspects import MOST_POISON
from embedpool.shm.layout import DTYPES, Dtype, row_bytes
from tests.unit.transcript import ALICE, BOB, SEGMENT, ask, core, finish, joined, lost, play, replies, sent, words


def test_a_request_to_an_idle_worker_is_given_out_at_once_and_answered_when_done() -> None:
    made = core()
    play(made, joined(1), 0.0)
    assert sent(play(made, ask(), 0.1)) == [(1, [(0,)])]
    assert replies(play(made, finish(made, 1), 0.2)) == [(ALICE, 1, "vectors")]


def test_a_request_waits_for_the_first_worker() -> None:
    made = core()
    assert play(made, ask(), 0.1) == []
    assert sent(play(made, joined(1), 0.2)) == [(1, [(0,)])]


def test_a_request_that_comes_right_after_others_have_expired_does_not_wait_for_the_next_sweep() -> None:
    made = core()
    play(made, ask(1, words(1, 20), budget_ms=5.0), 0.0)  # 4.4 ms
    assert replies(play(made, joined(1), 0.001)) == [(ALICE, 1, "expired")]
    assert sent(play(made, ask(2), 0.001)) == [(1, [(0,)])]


def test_no_texts_need_no_worker() -> None:
    assert replies(play(core(), ask(texts=()), 0.1)) == [(ALICE, 1, "vectors")]


def test_work_is_spread_over_idle_workers_before_any_gets_a_second_job() -> None:
    made = core(slice_ms=10)
    play(made, joined(1), 0.0)
    play(made, joined(2), 0.0)
    actions = play(made, ask(texts=words(6, 76)), 0.1)  # 10 ms a row: one row a job
    assert [worker for worker, _ in sent(actions)] == [1, 2, 1, 2]
    assert made.queue.rows == 2


def test_jobs_are_cut_to_a_slice_and_only_a_single_long_row_exceeds_it() -> None:
    made = core(slice_ms=10)
    play(made, joined(1), 0.0)
    texts = ["x" * 1000, *words(3, 26)]  # 102 ms, then 5 ms each
    (job,) = [a.job for a in play(made, ask(texts=texts), 0.1) if isinstance(a, SendJob)][:1]
    assert [part.rows for part in job.parts] == [(0,)]
    assert [len(rows) for _, parts in sent(play(made, finish(made, 1), 0.2)) for rows in parts] == [1]


def test_rows_go_out_longest_first_and_are_answered_once_all_are_done() -> None:
    made = core(slice_ms=3)
    play(made, joined(1), 0.0)
    first = play(made, ask(texts=["aa", "aaaa", "a", "aaa"]), 0.1)
    assert [rows for _, rows in sent(first)] == [[(1,)], [(3,)]]
    answers = []
    for step in range(4):
        answers += replies(play(made, finish(made, 1), 0.2 + step))
    assert answers == [(ALICE, 1, "vectors")]


def test_small_requests_that_wait_together_share_a_job() -> None:
    made = core(slice_ms=20)
    play(made, joined(1), 0.0)
    play(made, ask(1), 0.1)
    play(made, ask(2), 0.1)
    for n in range(3, 8):
        assert play(made, ask(n, session=BOB if n % 2 else ALICE), 0.1) == []
    (_, parts) = sent(play(made, finish(made, 1), 0.2))[0]
    assert len(parts) == 5


def test_a_query_goes_to_a_worker_at_once_whatever_bulk_work_it_has_in_hand() -> None:
    made = core(slice_ms=5)
    play(made, joined(1), 0.0)
    assert [a.job.urgent for a in play(made, ask(1, words(20, 26), priority="bulk"), 0.1) if isinstance(a, SendJob)] == [
        False
    ] * 2
    (query,) = (a for a in play(made, ask(2, words(1, 26, "query"), session=BOB), 0.2) if isinstance(a, SendJob))
    assert query.job.urgent
    assert [job.urgent for job in made.workers[1].jobs] == [True, False, False], "it is run first"
    assert replies(play(made, finish(made, 1), 0.3)) == [(BOB, 2, "vectors")]


def test_a_worker_is_given_both_kinds_while_both_wait_so_that_neither_starves() -> None:
    made = core(slice_ms=5)
    play(made, joined(1), 0.0)
    play(made, ask(1, words(20, 26), priority="bulk"), 0.1)
    for n in range(2, 30):
        play(made, ask(n, words(1, 26, f"query {n} "), session=BOB), 0.1)
    for step in range(24):
        kinds = [job.urgent for job in made.workers[1].jobs]
        assert kinds == [True, True, False, False], "the worker itself decides how often it gives way"
        play(made, finish(made, 1), 0.2 + step / 100)


def test_a_query_goes_to_the_worker_with_the_fewest_queries_and_then_the_least_to_do() -> None:
    made = core(slice_ms=5)
    for worker in (1, 2):
        play(made, joined(worker), 0.0)
    play(made, ask(1, words(3, 26), priority="bulk"), 0.1)  # one job for each, and one more for the first
    workers = [sent(play(made, ask(n, words(1, 26, f"query {n} "), session=BOB), 0.1))[0][0] for n in (2, 3)]
    assert workers == [2, 1]


def test_a_bulk_job_that_was_overtaken_is_hung_only_by_its_own_time() -> None:
    made = core(hang_s=1.0, slice_ms=5)
    play(made, joined(1), 0.0)
    play(made, ask(1, ["x" * 26], priority="bulk"), 0.0)
    for n in range(2, 12):  # each query takes 0.3 s: together longer than hang_s
        play(made, ask(n, words(1, 26, f"query {n} "), session=BOB), 0.3 * n)
        assert not [a for a in play(made, finish(made, 1), 0.3 * n + 0.29) if isinstance(a, Kill)]
    assert [a for a in play(made, Tick(), 9.0) if isinstance(a, Kill)], "it never ends"


def test_two_bulk_clients_take_turns_and_one_clients_requests_keep_their_order() -> None:
    made = core(slice_ms=5)
    play(made, joined(1), 0.0)
    for id in (1, 2):
        play(made, ask(id, words(3, 26, f"{id} "), priority="bulk"), 0.1)
    play(made, ask(3, words(6, 26, "bob "), session=BOB, priority="bulk"), 0.1)
    order = []
    answers = []
    for step in range(12):
        actions = play(made, finish(made, 1), 0.2 + step / 100)
        order += [a.job.parts[0].segment[0] for a in actions if isinstance(a, SendJob)]
        answers += [(name, id) for name, id, _ in replies(actions)]
    assert "".join(order[:6]) in ("ababab", "bababa")
    assert answers.index((ALICE, 1)) < answers.index((ALICE, 2))


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("event", "code"),
    [
        (ask(model="other"), "unknown_model"),
        (ask(prompt_name="other"), "unknown_prompt"),
        (ask(dim=5), "bad_dimension"),
        (ask(texts=["x"] * 9000), "too_large"),
        (ask(texts=["x", "y" * 1_000_001]), "too_large"),
        (ask(offset=SEGMENT), "bad_request"),
        (ask(offset=SEGMENT - 15), "bad_request"),
        (ask(offset=2), "bad_request"),
        (ask(offset=2**63 - 1), "bad_request"),
        (ask(prompt="Q: ", prompt_name="query"), "bad_request"),
        (ask(titles=("a", "b"), prompt_name="document"), "bad_request"),
        (ask(titles=("a",), prompt_name="query"), "bad_request"),
        (ask(titles=("a",)), "bad_request"),
        (ask(prompt="x" * 1_000_001), "too_large"),
        (ask(titles=("x" * 1_000_001,), prompt_name="document"), "too_large"),
        (ask(offset=SEGMENT - 8, dtype="int8"), "bad_request"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_can_never_succeed_is_refused_at_once(event: object, code: str) -> None:
    made = core()
    play(made, joined(1), 0.0)
    actions = play(made, event, 0.1)  # type: ignore[arg-type]
    assert replies(actions) == [(ALICE, 1, code)]
    assert sent(actions) == []


def test_a_type_that_the_model_does_not_give_is_refused_at_once_and_its_own_is_not() -> None:
    made = core(ModelCard("model", 4, 512, "fingerprint", dtypes=("uint8",)))
    play(made, joined(1), 0.0)
    for id, dtype in enumerate(DTYPES):
        actions = play(made, ask(id, dtype=dtype), 0.1)
        assert sent(actions) == ([(1, [(0,)])] if dtype == "uint8" else [])
        assert replies(actions) == ([] if dtype == "uint8" else [(ALICE, id, "bad_request")])


@pytest.mark.parametrize(("dtype", "last"), [("float32", 16), ("float16", 8), ("int8", 12), ("uint8", 12), ("binary", 4)])
def test_the_last_row_of_a_segment_is_usable(dtype: str, last: int) -> None:
    made = core()
    play(made, joined(1), 0.0)
    assert replies(play(made, ask(1, offset=SEGMENT - last + 4, dtype=dtype), 0.1)) == [(ALICE, 1, "bad_request")]
    assert sent(play(made, ask(2, offset=SEGMENT - last, dtype=dtype), 0.1)) == [(1, [(0,)])]


def test_a_request_that_cannot_be_done_in_its_budget_is_refused_with_a_time_to_come_back() -> None:
    made = core()
    play(made, joined(1), 0.0)
    (action,) = play(made, ask(texts=["x" * 976], budget_ms=50), 0.1)  # 100 ms
    assert isinstance(action, Reply)
    assert action.message.code == "overloaded"  # type: ignore[union-attr]
    assert action.message.retryable  # type: ignore[union-attr]
    assert action.message.retry_after_ms == 50  # type: ignore[union-attr]


def test_a_full_queue_refuses_by_rows_and_by_bytes_and_by_session() -> None:
    by_rows = core(max_queue_rows=10)
    play(by_rows, ask(1, ["x"] * 10), 0.1)
    assert replies(play(by_rows, ask(2), 0.1)) == [(ALICE, 2, "overloaded")]
    by_bytes = core(max_queue_bytes=2000)
    play(by_bytes, ask(1, ["x" * 1500]), 0.1)
    assert replies(play(by_bytes, ask(2, ["x" * 600]), 0.1)) == [(ALICE, 2, "overloaded")]
    by_session = core(max_session_requests=2)
    play(by_session, ask(1), 0.1)
    play(by_session, ask(2), 0.1)
    assert replies(play(by_session, ask(3), 0.1)) == [(ALICE, 3, "overloaded")]
    assert replies(play(by_session, ask(3, session=BOB), 0.1)) == []


def test_an_id_that_is_open_is_the_same_request_sent_again() -> None:
    made = core()
    play(made, joined(1), 0.0)
    play(made, ask(1), 0.1)
    assert play(made, ask(1), 0.1) == []
    assert replies(play(made, finish(made, 1), 0.2)) == [(ALICE, 1, "vectors")]


def test_a_request_older_than_its_budget_is_refused_not_run() -> None:
    made = core()
    play(made, ask(budget_ms=1000), 0.0)
    assert play(made, Tick(), 0.5) == []
    assert replies(play(made, Tick(), 1.1)) == [(ALICE, 1, "expired")]
    assert sent(play(made, joined(1), 1.2)) == []


def test_a_cancelled_request_answers_only_when_its_writer_is_done() -> None:
    made = core(slice_ms=3)
    play(made, joined(1), 0.0)
    play(made, ask(texts=["aa", "aaaa", "a", "aaa"]), 0.1)
    assert play(made, CancelAsked(ALICE, 1), 0.2) == []
    assert made.queue.rows == 0
    assert replies(play(made, finish(made, 1), 0.3)) == []
    assert replies(play(made, finish(made, 1), 0.4)) == [(ALICE, 1, "cancelled")]


def test_one_bad_row_refuses_its_request_and_no_other() -> None:
    made = core()
    play(made, joined(1), 0.0)
    play(made, ask(1), 0.1)
    play(made, ask(2), 0.1)
    play(made, ask(3, ["good", "bad"]), 0.1)
    play(made, ask(4), 0.1)
    play(made, finish(made, 1), 0.2)
    play(made, finish(made, 1), 0.3)
    failure = Failure(0, 1, "too_long", "text 1 is too long")
    assert sorted(replies(play(made, finish(made, 1, [failure]), 0.4))) == [(ALICE, 3, "too_long"), (ALICE, 4, "vectors")]


# ── deaths ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_worker_lost_in_the_middle_of_a_job_costs_nobody_an_answer() -> None:
    made = core()
    play(made, joined(1), 0.0)
    assert sent(play(made, ask(), 0.1)) == [(1, [(0,)])]
    play(made, joined(2), 0.1)
    assert sent(play(made, lost(made, 1, "SIGKILL"), 0.2)) == [(2, [(0,)])]
    assert replies(play(made, finish(made, 2), 0.3)) == [(ALICE, 1, "vectors")]


def test_a_lost_worker_with_nobody_left_leaves_its_work_to_the_next_one() -> None:
    made = core()
    play(made, joined(1), 0.0)
    play(made, ask(), 0.1)
    assert play(made, lost(made, 1, "SIGKILL"), 0.2) == []
    assert sent(play(made, joined(2), 0.9)) == [(2, [(0,)])]


def test_a_late_answer_of_a_lost_worker_changes_nothing() -> None:
    made = core()
    play(made, joined(1), 0.0)
    play(made, ask(), 0.1)
    late = finish(made, 1)
    play(made, joined(2), 0.1)
    play(made, lost(made, 1, "SIGKILL"), 0.2)
    assert play(made, late, 0.3) == []
    assert replies(play(made, Finished(2, late.done, b""), 0.4)) == [(ALICE, 1, "vectors")]


def test_an_answer_to_a_job_of_another_router_changes_nothing() -> None:
    made = core()
    play(made, joined(1), 0.0)
    play(made, ask(), 0.1)
    assert play(made, Finished(1, Done(999_999, 1.0, (1,)), b""), 0.2) == []
    assert made.counters.late_answers == 1


@pytest.mark.parametrize("killer", range(8))
def test_the_row_that_kills_is_found_by_halving_and_refused_alone(killer: int) -> None:
    made = core(slice_ms=100)
    worker = 1
    play(made, joined(worker), 0.0)
    play(made, ask(1, [f"text {i}" for i in range(8)]), 0.1)
    play(made, ask(2, session=BOB), 0.1)
    answers: list[tuple[bytes, int | None, str]] = []
    deaths = 0
    for step in range(60):
        jobs = made.workers[worker].jobs
        if not jobs:
            break
        deadly = any(s.request.session.key == ALICE and killer in s.rows for s in jobs[0].slices)
        if deadly:
            deaths += 1
            actions = play(made, lost(made, worker, "SIGSEGV"), 1.0 + step)
            answers += replies(actions)
            assert all(a.message.row == killer for a in actions if isinstance(a, Reply) and isinstance(a.message, Refused))
            worker += 1
            answers += replies(play(made, joined(worker), 1.5 + step))
        else:
            answers += replies(play(made, finish(made, worker), 1.0 + step))
    assert sorted(answers, key=str) == [(ALICE, 1, "poison_row"), (BOB, 2, "vectors")]
    assert deaths <= 2 + 3  # twice whole, then once for each halving of 8 rows


def test_a_silent_worker_is_killed_and_its_job_given_away_only_after_it_was_reaped() -> None:
    made = core(hang_s=10)
    play(made, joined(1), 0.0)
    play(made, joined(2), 0.0)
    play(made, ask(), 0.1)
    assert play(made, Tick(), 10.0) == []
    (action,) = play(made, Tick(), 10.2)
    assert isinstance(action, Kill)
    assert action.worker == 1
    assert play(made, Tick(), 10.4) == []
    assert sent(play(made, ask(2), 10.5)) == [(2, [(0,)])]
    assert sent(play(made, lost(made, 1, "SIGKILL"), 10.6)) == [(2, [(0,)])]


def test_a_client_that_leaves_takes_its_waiting_work_along_and_nothing_else() -> None:
    made = core(slice_ms=3)
    play(made, joined(1), 0.0)
    play(made, ask(1, words(5, 1)), 0.1)
    play(made, ask(2, ["b"], session=BOB), 0.1)
    play(made, Closed(ALICE), 0.2)
    assert made.queue.rows == 1
    answers = []
    for step in range(3):
        answers += replies(play(made, finish(made, 1), 0.3 + step))
    assert answers == [(BOB, 2, "vectors")]


def test_work_of_a_session_that_was_opened_again_never_writes_into_the_new_segment() -> None:
    made = core()
    play(made, joined(1), 0.0)
    play(made, ask(), 0.1)
    play(made, Opened(ALICE, "new.segment", SEGMENT), 0.2)
    assert sent(play(made, lost(made, 1, "SIGKILL"), 0.3)) == []
    assert sent(play(made, joined(2), 0.4)) == []
    actions = play(made, ask(), 0.5)
    assert [part.segment for a in actions if isinstance(a, SendJob) for part in a.job.parts] == ["new.segment"]


def test_draining_finishes_what_was_accepted_and_refuses_the_rest() -> None:
    made = core()
    play(made, joined(1), 0.0)
    play(made, ask(1), 0.1)
    assert play(made, DrainAsked(), 0.2) == []
    assert replies(play(made, ask(2), 0.3)) == [(ALICE, 2, "draining")]
    actions = play(made, finish(made, 1), 0.4)
    assert replies(actions) == [(ALICE, 1, "vectors")]
    assert actions[-1] == Drained()
    assert play(made, Tick(), 0.5) == []


def test_an_idle_pool_is_drained_at_once() -> None:
    assert play(core(), DrainAsked(), 0.1) == [Drained()]


def test_a_failed_pool_answers_everything_with_the_reason() -> None:
    made = core()
    play(made, ask(1), 0.1)
    assert replies(play(made, Failed("the model is gone"), 0.2)) == [(ALICE, 1, "pool_failed")]
    assert replies(play(made, ask(2), 0.3)) == [(ALICE, 2, "pool_failed")]


# ── another worker, another model ────────────────────────────────────────────────────────────────────────────────────


def test_a_worker_that_retires_does_what_it_has_in_hand_and_gets_nothing_more() -> None:
    made = core()
    play(made, joined(1), 0.0)
    play(made, ask(1), 0.1)
    assert play(made, RetireAsked(1), 0.2) == []
    assert sent(play(made, ask(2), 0.3)) == []
    assert sent(play(made, joined(2), 0.4)) == [(2, [(0,)])]
    actions = play(made, finish(made, 1), 0.5)
    assert replies(actions) == [(ALICE, 1, "vectors")]
    assert actions[-1] == Retired(1)


def test_an_idle_worker_retires_at_once_and_one_that_is_lost_leaves_its_work_to_others() -> None:
    made = core()
    for worker in (1, 2, 3):
        play(made, joined(worker), 0.0)
    assert play(made, RetireAsked(3), 0.1) == [Retired(3)]
    play(made, ask(1), 0.1)
    play(made, RetireAsked(1), 0.2)
    assert sent(play(made, lost(made, 1), 0.3)) == [(2, [(0,)])]
    assert play(made, RetireAsked(7), 0.4) == [], "nobody of that number"


def test_another_model_ends_all_sessions_and_retires_the_workers_of_the_one_before() -> None:
    made = core()
    play(made, joined(1), 0.0)
    play(made, joined(2), 0.0)
    play(made, ask(1), 0.1)
    play(made, ask(2, session=BOB, priority="bulk"), 0.1)
    play(made, finish(made, 2), 0.2)
    model = ModelCard("other", 8, 512, "another fingerprint")
    actions = play(made, Switched(model, Admission(max_request_rows=3), relearn=False), 0.3)
    assert actions == [Retired(2)], "the other one is in a job, which nobody will read"
    assert not made.sessions and not made.queue.held
    assert play(made, finish(made, 1), 0.4) == [Retired(1)]
    play(made, Opened(ALICE, "new.segment", SEGMENT), 0.5)
    play(made, joined(3), 0.5)
    assert replies(play(made, ask(1, ["x"] * 4), 0.6)) == [(ALICE, 1, "too_large")]
    play(made, ask(1, dim=8), 0.6)
    (action,) = play(made, finish(made, 3), 0.7)
    assert isinstance(action, Reply) and isinstance(action.message, Vectors)
    assert (action.message.dim, action.message.fingerprint) == (8, "another fingerprint")


def test_an_answer_says_how_long_its_request_waited_and_what_its_jobs_took() -> None:
    made = core()
    play(made, joined(1), 0.0)
    play(made, ask(1), 1.0)
    play(made, ask(2, session=BOB), 1.0)
    first, second = made.workers[1].jobs
    (reply, *_) = play(made, Finished(1, Done(first.id, 30.0, (1,), tokenize_ms=2.0), b""), 1.04)
    assert _took(reply) == (0.0, 2.0, 28.0)
    (reply,) = play(made, Finished(1, Done(second.id, 10.0, (1,), tokenize_ms=1.0), b""), 1.06)
    assert _took(reply) == (40.0, 1.0, 9.0), "it was the worker's next one for 40 ms"


def test_an_answer_counts_the_jobs_of_all_workers_that_shared_its_request() -> None:
    made = core(slice_ms=5.0)
    for worker in (1, 2):
        play(made, joined(worker), 0.0)
    jobs = [action.job for action in play(made, ask(1, words(2, 26), priority="bulk"), 1.0) if isinstance(action, SendJob)]
    assert len(jobs) == 2
    play(made, Finished(1, Done(jobs[0].id, 6.0, (9,), tokenize_ms=1.0), b""), 1.006)
    (reply,) = play(made, Finished(2, Done(jobs[1].id, 8.0, (9,), tokenize_ms=1.5), b""), 1.008)
    assert _took(reply) == (0.0, 2.5, 11.5)


def _took(reply: object) -> tuple[float, float, float]:
    assert isinstance(reply, Reply) and isinstance(reply.message, Vectors)
    message = reply.message
    return round(message.queue_ms, 6), message.tokenize_ms, message.run_ms


def test_what_the_model_before_still_computes_says_nothing_of_what_this_one_costs() -> None:
    made = core()
    for worker in (1, 2):
        play(made, joined(worker), 0.0)
    for id in (1, 2, 3):
        play(made, ask(id), 0.1)
    play(made, finish(made, 2), 0.15)  # known of, and not learned from yet
    play(made, Switched(ModelCard("other", 8, 512, "another fingerprint"), made.rules, relearn=False), 0.2)
    play(made, joined(3), 0.3)
    job = made.workers[1].jobs[0]
    play(made, Finished(1, Done(job.id, 3_600_000.0, (1,)), b""), 0.4)
    made.learn()
    assert made.cost == CostModel(512, unit_ms=0.1), "as its own worker's warm-up said"


def test_new_rules_for_the_same_model_touch_no_session_and_no_job() -> None:
    made = core()
    play(made, joined(1), 0.0)
    play(made, ask(1), 0.1)
    made.cost.learn(100, 1000.0)
    before = made.cost.unit_ms
    assert play(made, Switched(made.model, Admission(max_request_rows=3), relearn=False), 0.2) == []
    assert made.cost.unit_ms == before
    assert replies(play(made, ask(2, ["x"] * 4), 0.3)) == [(ALICE, 2, "too_large")]
    assert replies(play(made, finish(made, 1), 0.4)) == [(ALICE, 1, "vectors")]
    play(made, Switched(made.model, made.rules, relearn=True), 0.5)
    assert made.cost.unit_ms != before, "workers with another number of threads work at another speed"


# ── in time, or not at all ───────────────────────────────────────────────────────────────────────────────────────────


def test_what_would_come_too_late_is_refused_when_its_turn_comes_and_not_run() -> None:
    made = core(slice_ms=5)
    play(made, joined(1), 0.0)
    play(made, ask(1, words(2, 26, "a"), session=BOB), 0.0)  # 5 ms each: both places of the worker are taken
    play(made, ask(2, words(1, 76), budget_ms=40), 0.0)  # 10 ms
    play(made, ask(3, words(1, 26, "c"), budget_ms=1000), 0.0)
    actions = play(made, finish(made, 1), 0.028)  # later than thought: 28 + 5 for the job before it + 10 > 40
    assert replies(actions) == [(ALICE, 2, "expired")]
    (expired,) = (a.message for a in actions if isinstance(a, Reply))
    assert expired.retryable and expired.retry_after_ms  # type: ignore[union-attr]
    assert [a.job.parts[0].texts for a in actions if isinstance(a, SendJob)] == [tuple(words(1, 26, "c"))]


def test_admission_counts_what_workers_have_in_hand_and_what_waits_for_a_second_try() -> None:
    made = core(slice_ms=100)
    play(made, joined(1), 0.0)
    play(made, ask(1, words(1, 976, "a")), 0.0)  # 100 ms, given out
    late = ask(2, words(1, 26), session=BOB, budget_ms=90)
    assert replies(play(made, late, 0.0)) == [(BOB, 2, "overloaded")]
    play(made, joined(2), 0.0)
    assert replies(play(made, late, 0.0)) == [], "two workers: 50 ms"
    play(made, CancelAsked(BOB, 2), 0.0)
    play(made, lost(made, 2), 0.0)
    play(made, lost(made, 1), 0.0)
    play(made, joined(3), 0.0)
    assert replies(play(made, late, 0.0)) == [(BOB, 2, "overloaded")]


def test_a_fifth_of_the_budget_is_kept_for_what_estimates_miss() -> None:
    made = core(slice_ms=1000)
    play(made, joined(1), 0.0)
    play(made, ask(1, words(1, 976, "a")), 0.0)  # 100 ms
    assert replies(play(made, ask(2, ["x" * 26], session=BOB, budget_ms=129), 0.0)) == [(BOB, 2, "overloaded")]
    assert replies(play(made, ask(3, ["x" * 26], session=BOB, budget_ms=131), 0.0)) == [], "5 + 100 / 0.8"


# ── what goes with a row ─────────────────────────────────────────────────────────────────────────────────────────────

ROWS = [f"{'x' * (10 * row % 7)} text {row}" for row in range(12)]  # handed out longest first: in another order
TITLES = tuple(f"title {row}" for row in range(12))


def _parts(actions: list[object]) -> list[Part]:
    return [part for action in actions if isinstance(action, SendJob) for part in action.job.parts]


def _assert_own_titles(parts: list[Part]) -> None:
    for part in parts:
        assert [part.texts, part.titles] == [tuple(ROWS[i] for i in part.rows), tuple(TITLES[i] for i in part.rows)]


def test_rows_that_are_split_over_several_jobs_keep_their_own_titles() -> None:
    made = core(slice_ms=8)
    play(made, joined(1), 0.0)
    parts = _parts(play(made, ask(texts=ROWS, titles=TITLES, prompt_name="document"), 0.1))
    for step in range(12):
        if made.workers[1].jobs:
            parts += _parts(play(made, finish(made, 1), 0.2 + step))
    assert len(parts) > 3 and any(len(part.rows) > 1 for part in parts)
    assert [row for part in parts for row in part.rows] != list(range(12))
    assert sorted(row for part in parts for row in part.rows) == list(range(12))
    _assert_own_titles(parts)


def test_rows_of_a_job_that_is_halved_keep_their_own_titles() -> None:
    made = core(slice_ms=1000)
    play(made, joined(1), 0.0)
    play(made, ask(texts=ROWS, titles=TITLES, prompt_name="document"), 0.1)
    for worker in (1, 2):
        play(made, lost(made, worker), 0.2)
        parts = _parts(play(made, joined(worker + 1), 0.3))
    assert [len(part.rows) for part in parts] == [6, 6]
    _assert_own_titles(parts)


def test_a_part_says_all_that_its_request_said_and_titles_are_only_where_they_were_given() -> None:
    made = core()
    play(made, joined(1), 0.0)
    said: dict[str, Any] = {"prompt": "Q: ", "dtype": "int8", "truncate": "left", "normalize": False, "dim": 3, "offset": 64}
    (part,) = _parts(play(made, ask(texts=["b", "aa"], **said), 0.1))
    assert part == Part("alice.segment", SEGMENT, 64, 3, (1, 0), ("aa", "b"), None, False, "left", "int8", "Q: ", ())
    (one,) = _parts(play(made, ask(2, prompt_name="document", titles=("title",)), 0.2))
    assert (one.titles, one.prompt_name, one.prompt) == (("title",), "document", None)


# ── inline ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _written(made: Any, worker: int) -> Finished:
    """A worker's answer in which each byte of a row is the row's number, and 100 more for the requests of Bob."""
    job = made.workers[worker].jobs[0]
    payload = b""
    for piece in job.slices:
        ask = piece.request.ask
        if ask.offset is None:
            more = 100 if piece.request.session.key == BOB else 0
            payload += b"".join(bytes([row + more]) * row_bytes(ask.dim or 4, ask.dtype) for row in piece.rows)
    return Finished(worker, Done(job.id, made.cost.ms(job.units), tuple(1 for _ in job.slices)), payload)


def _in_order(rows: int, width: int, first: int = 0) -> bytes:
    return b"".join(bytes([first + row]) * width for row in range(rows))


@pytest.mark.parametrize("slice_ms", [3, 8, 1000])
@pytest.mark.parametrize(("dtype", "width"), [("float32", 16), ("float16", 8), ("int8", 12), ("uint8", 12), ("ubinary", 4)])
def test_inline_rows_are_put_in_order_whatever_the_order_of_their_jobs(dtype: str, width: int, slice_ms: int) -> None:
    made = core(slice_ms=slice_ms)
    play(made, joined(1), 0.0)
    play(made, ask(texts=ROWS, offset=None, dtype=dtype), 0.1)
    answers: list[object] = []
    while made.workers[1].jobs:
        answers += play(made, _written(made, 1), 0.2)
    (reply,) = [a for a in answers if isinstance(a, Reply)]
    assert bytes(reply.payload) == _in_order(12, width)
    assert isinstance(reply.message, Vectors)
    assert reply.message.inline


def test_inline_rows_of_several_requests_of_different_widths_in_one_job_are_told_apart() -> None:
    made = core(slice_ms=1000)
    play(made, joined(1), 0.0)
    for id in (1, 2):
        play(made, ask(id), 0.1)  # occupy the worker
    play(made, ask(3, ["a", "ccc", "bb"], offset=None, dtype="int8"), 0.1)
    play(made, ask(4, ["a", "bb"], offset=64, dtype="float32"), 0.1)  # in the segment: nothing of it in the payload
    play(made, ask(5, ["a", "bb"], offset=None, dtype="ubinary", session=BOB), 0.1)
    play(made, ask(6, ["a", "bb"], offset=None, dim=3, session=BOB), 0.1)
    play(made, finish(made, 1), 0.2)
    play(made, finish(made, 1), 0.2)
    assert len(made.workers[1].jobs[0].slices) == 4, "one job was meant"
    answers = play(made, _written(made, 1), 0.3)
    payloads = {a.message.id: bytes(a.payload) for a in answers if isinstance(a, Reply)}
    assert payloads == {3: _in_order(3, 12), 4: b"", 5: _in_order(2, 4, 100), 6: _in_order(2, 12, 100)}


@pytest.mark.parametrize("dtype", DTYPES)
def test_inline_bytes_count_by_type_against_the_limits(dtype: Dtype) -> None:
    width = row_bytes(4, dtype)
    made = core(max_inline_bytes=8 * width)
    assert replies(play(made, ask(1, ["a"] * 9, offset=None, dtype=dtype), 0.1)) == [(ALICE, 1, "too_large")]
    assert replies(play(made, ask(2, ["a"] * 8, offset=None, dtype=dtype), 0.1)) == []
    assert made.sessions[ALICE].inline_bytes == 8 * width
    assert replies(play(made, ask(3, ["a"], offset=None, dtype=dtype), 0.1)) == [(ALICE, 3, "overloaded")]


def test_nothing_needs_waking_when_nothing_is_going_on() -> None:
    made = core()
    assert made.next_deadline() is None
    play(made, joined(1), 0.0)
    assert made.next_deadline() is None
    play(made, ask(), 0.1)
    assert made.next_deadline() is not None
    play(made, finish(made, 1), 0.2)
    assert made.next_deadline() is None


def test_a_request_waiting_for_its_second_try_expires_is_cancelled_and_fails_like_any_other() -> None:
    for event, now, code in (
        (Tick(), 31.0, "expired"),
        (CancelAsked(ALICE, 1), 0.3, "cancelled"),
        (Failed("gone"), 0.3, "pool_failed"),
    ):
        made = core()
        play(made, joined(1), 0.0)
        play(made, ask(), 0.1)
        play(made, lost(made, 1, "SIGKILL"), 0.2)
        assert replies(play(made, event, now)) == [(ALICE, 1, code)]
        assert play(made, DrainAsked(), now) == [Drained()]


def test_a_cancelled_request_is_answered_when_the_worker_that_had_it_is_lost() -> None:
    made = core()
    play(made, joined(1), 0.0)
    play(made, ask(), 0.1)
    play(made, CancelAsked(ALICE, 1), 0.2)
    assert replies(play(made, lost(made, 1, "SIGKILL"), 0.3)) == [(ALICE, 1, "cancelled")]
    assert made.next_deadline() is None


def test_a_job_on_its_way_to_workers_that_are_dead_already_is_no_suspect() -> None:
    made = core()
    for worker in (1, 2, 3):
        play(made, joined(worker), 0.0)
    assert sent(play(made, ask(), 0.1)) == [(1, [(0,)])]
    assert sent(play(made, Lost(1, "SIGKILL"), 0.2)) == [(2, [(0,)])]
    assert sent(play(made, Lost(2, "SIGKILL"), 0.2)) == [(3, [(0,)])]
    assert replies(play(made, finish(made, 3), 0.3)) == [(ALICE, 1, "vectors")]


def test_a_job_that_ends_workers_before_they_can_say_that_they_began_it_is_found_out_too() -> None:
    made = core()
    play(made, ask(), 0.0)
    answers = []
    for worker in range(1, 30):
        play(made, joined(worker), 0.1)
        answers += replies(play(made, Lost(worker, "SIGSEGV"), 0.1))
        if answers:
            break
    assert answers == [(ALICE, 1, "poison_row")]
    assert worker <= 8


# ── poison that comes again ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_row_that_ended_its_workers_is_refused_at_once_when_it_comes_again_and_tried_after_a_while() -> None:
    made = core()
    play(made, ask(1, ["poison"], prompt="p "), 0.0)
    for worker in (1, 2):
        play(made, joined(worker), 0.1)
        actions = play(made, lost(made, worker), 0.2)
    assert replies(actions) == [(ALICE, 1, "poison_row")]
    play(made, joined(3), 0.3)
    (again,) = play(made, ask(2, ["fine", "poison"], session=BOB, prompt="p "), 0.4)
    assert isinstance(again, Reply) and isinstance(again.message, Refused)
    assert (again.message.code, again.message.row) == ("poison_row", 1)
    for number, other in enumerate((ask(3, ["poison"]), ask(4, ["poison"], prompt="q "), ask(5, ["poison "], prompt="p "))):
        assert replies(play(made, other, 0.5 + number)) == [], "another text for the model"
    assert (BOB, 6, "poison_row") not in replies(play(made, ask(6, ["poison"], session=BOB, prompt="p "), 700.0))


def test_how_many_such_rows_are_remembered_is_bounded() -> None:
    made = core()
    play(made, joined(1), 0.0)
    worker = 1
    for n in range(MOST_POISON + 5):
        play(made, ask(n + 1, [f"poison {n}"]), 1.0)
        while made.sessions[ALICE].open:
            play(made, lost(made, worker), 1.0)
            worker += 1
            play(made, joined(worker), 1.0)
    assert len(made.retries.suspects.poison) == MOST_POISON
