"""How many descriptors the router gives out, and how often it counts them."""

from __future__ import annotations

from dataclasses import dataclass

from embedpool.router.descriptors import OWN, SEATLESS, SPARE, WORKERS_MOST, Descriptors, limit_of


@dataclass
class Process:
    """So many descriptors are open."""

    opened: int
    counted: int = 0

    def count(self) -> int:
        self.counted += 1
        return self.opened

    def open(self, descriptors: Descriptors, keep: int = 0) -> int:
        """As many as it may."""
        before = self.opened
        while descriptors.take(keep):
            self.opened += 1
        return self.opened - before


def test_descriptors_are_given_out_until_what_is_kept_and_to_spare_is_left() -> None:
    process = Process(20)
    descriptors = Descriptors(100, process.count)
    assert process.open(descriptors, keep=30) == 100 - 20 - 30 - SPARE
    assert process.open(descriptors) == 30, "what was kept is for others"
    assert not descriptors.take(0)


def test_those_that_were_closed_are_found_and_given_out_again() -> None:
    process = Process(20)
    descriptors = Descriptors(100, process.count)
    process.open(descriptors)
    process.opened -= 5
    assert process.open(descriptors) == 5


def test_they_are_counted_where_none_is_known_to_be_left_and_not_each_time() -> None:
    process = Process(100)
    process.open(Descriptors(10_000, process.count))
    assert process.counted == 2, "at the first, and at the last"


def test_a_promise_counts_as_open_until_it_is_kept() -> None:
    process = Process(100 - SPARE - 2)
    descriptors = Descriptors(100, process.count)
    assert descriptors.promise(0)
    assert descriptors.promise(0)
    assert not descriptors.take(0)
    process.opened += 1
    descriptors.kept()
    assert not descriptors.take(0)
    descriptors.kept()  # that connection failed
    assert descriptors.take(0)


def test_the_limit_is_the_process_s_or_what_the_sessions_need() -> None:
    assert limit_of(1024, 256) == 1024
    assert limit_of(1_000_000, 256) == OWN + 2 * 256 + SEATLESS + WORKERS_MOST
    assert Descriptors(limit_of(1_000_000, 256), int).for_sessions >= 256
    assert Descriptors(64, int).for_sessions == 0
    assert Descriptors(1024, int).for_sessions >= 256, "by default there are so many, and with systemd so many descriptors"
    assert Descriptors(64, int).for_workers == 64 // 3
    assert Descriptors(1_000_000, int).for_workers == WORKERS_MOST
