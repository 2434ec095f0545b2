"""Rows of the same text and options are computed once, whoever asked for them. Pure; owned by the core.

The first such row *leads*: it waits in the queue and runs in a job. A later one *follows* it: it waits nowhere else, costs
nothing, and its vector is written by the worker that computed the leader's. It goes along in the leader's job; one that came
when that job was already given out goes to the same worker in a job of its own, which repeats the vectors.

Rules
1. A text has at most one leader among interactive rows and one among bulk rows. An interactive row never follows a bulk one:
   it would wait for bulk work. A bulk row follows whichever there is.
2. A leader that leaves without having been computed is followed by the next in line, who leads from then on.
3. How a vector is delivered (dimension, type, place) is not part of the key; what the model reads is.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from embedpool.protocol import Embed
from embedpool.router.state import Request, Slice

Place: TypeAlias = tuple[Request, int]  # one row


def key_of(ask: Embed, row: int) -> Hashable:
    """What the model reads for this row, as far as the router knows."""
    text = ask.texts[row]
    if ask.prompt is None and ask.prompt_name is None and ask.truncate is True and not ask.titles:
        return text
    return (text, ask.titles[row] if ask.titles else "", ask.prompt, ask.prompt_name, ask.truncate)


@dataclass(slots=True)
class _Class:
    """The leaders of one class, and who follows them, in the order of their arrival."""

    leaders: dict[Hashable, Place] = field(default_factory=dict)
    followers: dict[Hashable, dict[Place, None]] = field(default_factory=dict)


@dataclass(slots=True)
class Alike:
    _interactive: _Class = field(default_factory=_Class)
    _bulk: _Class = field(default_factory=_Class)

    def admit(self, request: Request) -> None:
        """Takes out of a new request's `waiting` the rows that follow others."""
        request.waiting = [row for row in request.waiting if self._leads(request, row)]

    def leads_none(self, request: Request) -> bool:
        """Whether every row of a request that is not admitted yet would follow another."""
        return all(self._class_led(request, key_of(request.ask, row)) is not None for row in request.waiting)

    def place(self, places: Iterable[Place]) -> list[Place]:
        """Followers that have lost their leader find another one. Gives those that lead from now on, who have to wait."""
        leading = []
        for request, row in places:
            request.following -= 1
            if self._leads(request, row):
                leading.append((request, row))
        return leading

    def _leads(self, request: Request, row: int) -> bool:
        key = key_of(request.ask, row)
        led = self._class_led(request, key)
        if led is None:
            (self._interactive if request.interactive else self._bulk).leaders[key] = (request, row)
            return True
        led.followers.setdefault(key, {})[request, row] = None
        request.following += 1
        return False

    def _class_led(self, request: Request, key: Hashable) -> _Class | None:
        """The class in which somebody leads whom this row may follow."""
        if key in self._interactive.leaders:
            return self._interactive
        return self._bulk if not request.interactive and key in self._bulk.leaders else None

    def _of(self, request: Request) -> _Class:
        return self._interactive if request.interactive else self._bulk

    def along(self, slices: Sequence[Slice], most: int) -> list[Place]:
        """The followers, at most so many, that go along with these rows into a job."""
        found: list[Place] = []
        if not self._interactive.followers and not self._bulk.followers:
            return found
        for piece in slices:
            led = self._of(piece.request)
            for row in piece.rows:
                key = key_of(piece.request.ask, row)
                if key in led.followers and led.leaders[key] == (piece.request, row):
                    followers = led.followers[key]
                    for place in list(followers)[: most - len(found)]:
                        del followers[place]
                        found.append(place)
                    if not followers:
                        del led.followers[key]
        for request, _ in found:
            request.following -= 1
        return found

    def left(self, slices: Iterable[Slice]) -> list[Place]:
        """These rows wait no longer and are in no job: computed, or given up. Those who followed them have no leader now."""
        orphans: list[Place] = []
        for piece in slices:
            led = self._of(piece.request)
            for row in piece.rows:
                key = key_of(piece.request.ask, row)
                if led.leaders.get(key) == (piece.request, row):
                    del led.leaders[key]
                    if led.followers:
                        orphans += led.followers.pop(key, ())
        return orphans

    def leaders(self, key: Hashable) -> list[Place]:
        """Who leads rows of this key: at most one of each class."""
        return [led.leaders[key] for led in (self._interactive, self._bulk) if key in led.leaders]

    def lead(self, places: Iterable[Place]) -> None:
        """These rows have gone into a job by themselves: whoever asks for the same now follows them."""
        for request, row in places:
            request.following -= 1
            self._of(request).leaders.setdefault(key_of(request.ask, row), (request, row))

    def stop_following(self, request: Request) -> None:
        """Nobody wants this request's rows any more."""
        for row in range(len(request.units)) if request.following else ():
            key = key_of(request.ask, row)
            for led in (self._interactive, self._bulk):
                followers = led.followers.get(key)
                if followers is not None and (request, row) in followers:
                    del followers[request, row]
                    request.following -= 1
                    if not followers:
                        del led.followers[key]

    def groups(self) -> Iterator[tuple[Hashable, Place, tuple[Place, ...]]]:
        """Every text that is led, with its leader and those who follow; for the invariants."""
        for led in (self._interactive, self._bulk):
            assert set(led.followers) <= set(led.leaders), "rows follow nobody"
            for key, leader in led.leaders.items():
                yield key, leader, tuple(led.followers.get(key, ()))


def slices_of(places: Iterable[Place], *, free: bool = False) -> list[Slice]:
    """These rows, one slice per request."""
    rows_of: dict[Request, list[int]] = {}
    for request, row in places:
        rows_of.setdefault(request, []).append(row)
    return [Slice(request, tuple(rows), free) for request, rows in rows_of.items()]
