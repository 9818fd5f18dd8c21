"""One class, several processes: each does its share of the samples, the first of them has the results in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from utils.distributed import lost_process
from utils.observer import Observer
from utils.world import World

PATIENCE = timedelta(days=30)  # one process may be at work on its class for as long
Item = TypeVar("Item")
Result = TypeVar("Result")


class Notes(Observer):
    """Keeps what it is told of samples, to be told again in the process that writes the results."""

    def __init__(self) -> None:
        self._notes: list[tuple[str, str, str]] = []

    def remark(self, sample: str, text: str) -> None:
        self._notes.append(("remark", sample, text))

    def left_out(self, sample: str, reason: str) -> None:
        self._notes.append(("left_out", sample, reason))

    def taken(self) -> list[tuple[str, str, str]]:
        """What was told since the last call."""
        notes, self._notes = self._notes, []
        return notes


@dataclass(frozen=True)
class Team:
    """The processes that share a class, by rank; `place` is this one's, and the first of them leads.

    The results of a class do not depend on the team: a sample's patches and scores are its own.
    """

    ranks: tuple[int, ...] = (0,)
    place: int = 0
    group: Any = field(default=None, compare=False)

    @property
    def leads(self) -> bool:
        return self.place == 0

    def observer(self, of_leader: Observer) -> Observer:
        """Who is told in this process."""
        return of_leader if self.leads else Notes()

    def in_order(
        self, items: Sequence[Item], run: Callable[[list[Item]], Iterator[Result]], observer: Observer
    ) -> Iterator[Result]:
        """`run` of this process's share of the items; the leader gets all results, in order, the others none.

        What the others' observers were told, the leader's is told beside the results. A ValueError of any of them is
        raised in the leader, when the others have got rid of their results.
        """
        own = run(list(items[self.place :: len(self.ranks)]))
        if not self.leads:
            assert isinstance(observer, Notes)
            self._send_all(own, observer)
            return
        failed: dict[int, ValueError] = {}  # by place; those have no more to give
        for i in range(len(items)):
            place = i % len(self.ranks)
            if place in failed or (failed and place == 0):
                continue
            message = self._own(own) if place == 0 else self._received(self.ranks[place])
            if isinstance(message, ValueError):
                failed[place] = message
                continue
            result, notes = message
            for kind, sample, text in notes:
                getattr(observer, kind)(sample, text)
            if not failed:
                yield result
        if failed:
            raise next(iter(failed.values()))
        next(own, None)  # lets it end what it began, a progress bar for instance

    def meet(self) -> None:
        """Wait until all are here. Raises ConnectionError when one is gone."""
        with lost_process():
            dist.barrier(self.group)

    def let_go(self, results: Iterator[Any]) -> None:
        """The leader wants no more of `in_order`'s results; the others wait until theirs are taken."""
        if len(self.ranks) > 1:
            for _result in results:
                pass

    def from_leader(self, make: Callable[[], Result]) -> Result:
        """What the leader makes, in every process; a ValueError of the leader's is raised in all of them."""
        if len(self.ranks) == 1:
            return make()
        message: list[Any] = [None]
        if self.leads:
            try:
                message = [make()]
            except ValueError as error:
                message = [error]
        with lost_process():
            dist.broadcast_object_list(message, self.ranks[0], self.group)
        if isinstance(message[0], ValueError):
            raise message[0]
        made: Result = message[0]
        return made

    def _send_all(self, own: Iterator[Any], notes: Notes) -> None:
        """Send each result with what was told meanwhile, or the error that ends them."""
        try:
            for result in own:
                self._send((result, notes.taken()))
        except ValueError as error:
            self._send(error)
            raise

    def _send(self, message: Any) -> None:
        with lost_process():
            dist.send_object_list([message], self.ranks[0], self.group)

    @staticmethod
    def _own(results: Iterator[Result]) -> tuple[Result, list[Any]] | ValueError:
        try:
            return next(results), []
        except ValueError as error:
            return error

    def _received(self, rank: int) -> Any:
        message: list[Any] = [None]
        with lost_process():
            dist.recv_object_list(message, rank, self.group)
        return message[0]


def shares(classes: int, processes: int, *, alone: bool = False) -> list[list[tuple[int, ...]]]:
    """Rounds of teams, a team of ranks a class: one process a class while there are enough of them, else several.

    alone: one process a class in any case; some then have nothing to do in the last round.
    """
    rounds = []
    for start in range(0, classes, processes):
        teams = min(processes, classes - start)
        last = teams if alone else processes
        rounds.append([tuple(range(team, last, teams)) for team in range(teams)])
    return rounds


def plan_teams(world: World, classes: Sequence[str], *, alone: bool = False) -> list[tuple[str, Team]]:
    """The classes that this process works on, each with its team; all processes must call this, with equal classes."""
    own = []
    remaining = iter(classes)
    for teams in shares(len(classes), world.size, alone=alone):
        for ranks in teams:
            name = next(remaining)
            group = dist.new_group(list(ranks), timeout=PATIENCE) if len(ranks) > 1 else None
            if world.rank in ranks:
                own.append((name, Team(ranks, ranks.index(world.rank), group)))
    return own


def everyone(world: World) -> Team:
    """All processes as one team, which has patience."""
    group = dist.new_group(timeout=PATIENCE) if world.size > 1 else None
    return Team(tuple(range(world.size)), world.rank, group)
