"""The exchange: one small asyncio actor through which Trainables command lanes.

Lanes join it, wait for commands and answer; Trainables borrow free lanes; the driver buries dead ones. It holds
queues and futures only, no training state, and reserves no CPU.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sweeper.engine.messages import Command, Dead, Failed, Leave, Left, Moved, NextEpoch, Reply, Start, Test

NAMESPACE = "sweeper"


Holder: TypeAlias = tuple[str, str]
NOBODY: Holder = ("", "")
CLEAR_SECONDS = 60.0  # a lane has to drop a trial that has ended


@dataclass
class _Lane:
    """A lane as the exchange sees it; ``members`` are its worker actors by rank, ``nodes`` the ids of their nodes.

    ``group`` says which trials it takes. ``holder``: the trial that borrowed it, and a name for this time. ``leaving``:
    one of the nodes is to be taken back, so the lane ends when the epoch under way has. ``retired``: it was told to
    end, or killed.
    """

    world_size: int
    group: str = ""
    members: dict[int, Any] = field(default_factory=dict)
    nodes: set[str] = field(default_factory=set)
    queues: dict[int, asyncio.Queue[tuple[int, Command] | None]] = field(default_factory=dict)
    token: int = 0  # of the command under way; answers to earlier ones are dropped
    holder: Holder = NOBODY
    leaving: bool = False
    retired: bool = False
    num_answers: int = 0
    answers: dict[int, Reply] = field(default_factory=dict)
    done: asyncio.Future[Reply] | None = None

    @property
    def is_whole(self) -> bool:
        return len(self.members) == self.world_size

    def end(self) -> None:
        """Tell its workers to end, once the command under way is answered."""
        self.retired = True
        for queue in self.queues.values():
            queue.put_nowait(None)

    def answer(self, reply: Reply) -> None:
        if self.done is not None and not self.done.done():
            self.num_answers += not isinstance(reply, Dead)
            self.done.set_result(reply)


@dataclass(frozen=True, kw_only=True)
class Joining:
    """What a worker says of itself when it joins: its actor, the id of its node, and whose lanes it belongs to."""

    actor: Any
    placement_group: Any = None
    node: str = ""
    lane_group: str = ""


class Exchange:
    """See the module's docstring. Runs as a named Ray actor; every method is a coroutine on one loop."""

    def __init__(self) -> None:
        self._lanes: dict[str, _Lane] = {}
        self._free: list[str] = []
        self._changed = asyncio.Condition()
        self._arrived: dict[str, set[str]] = {}
        self._groups: dict[str, Any] = {}
        self._dismissed = False
        self._clearing: dict[str, asyncio.Task[None]] = {}
        self._most: dict[str, int] = {}  # lanes that are wanted, by group, once there are too many
        self._run = 0  # Tune runs that ended badly so far

    # -- lanes ---------------------------------------------------------------------------------------------

    async def join(self, lane: str, rank: int, world_size: int, me: Joining) -> None:
        """Enter worker ``rank`` of ``lane``; the lane is free once all ranks are there."""
        entry = self._lanes.setdefault(lane, _Lane(world_size, me.lane_group))
        entry.members[rank] = me.actor
        entry.nodes.add(me.node)
        entry.queues[rank] = asyncio.Queue()
        self._groups[lane] = me.placement_group
        if entry.is_whole:
            await self._give_back(lane)

    async def next_command(self, lane: str, rank: int) -> tuple[int, Command] | None:
        """Wait for the next command of this worker; None tells it to end."""
        entry = self._lanes.get(lane)
        return None if entry is None or self._dismissed else await entry.queues[rank].get()

    async def reply(self, lane: str, rank: int, token: int, reply: Reply) -> None:
        """Take worker ``rank``'s answer; rank 0 speaks for the lane unless another rank failed alone."""
        entry = self._lanes.get(lane)
        if entry is None or token != entry.token:
            return
        entry.answers[rank] = reply
        if _ends_lane(reply):
            entry.answer(reply)  # the other ranks may hang in a collective: do not wait for them
        elif len(entry.answers) == entry.world_size:
            failed = [answer for answer in entry.answers.values() if isinstance(answer, Failed)]
            entry.answer(failed[0] if failed else entry.answers[0])

    # -- Trainables ----------------------------------------------------------------------------------------

    async def arrive(self, run: str, who: str, expected: int, patience_seconds: float) -> None:
        """Wait (bounded) until all Trainable actors of a Tune run are up.

        Tune hands a pending trial to a surviving actor and drops the one it was starting; an actor that
        begins before the others stand would starve them.
        """
        async with self._changed:
            self._arrived.setdefault(run, set()).add(who)
            self._changed.notify_all()
            try:
                await asyncio.wait_for(
                    self._changed.wait_for(lambda: len(self._arrived[run]) >= expected), patience_seconds
                )
            except TimeoutError:
                return

    async def acquire(self, group: str = "") -> str:
        """Borrow a free lane of a group; waits until there is one.

        Raises
        ------
        LookupError
            When the run of whoever waits has ended badly: a dead actor must not take a lane from a living one.
        """
        run = self._run
        async with self._changed:
            await self._changed.wait_for(lambda: self._run != run or bool(self._free_of(group)))
            if self._run != run:
                raise LookupError("the run of this actor has ended")
            lane = self._free_of(group)[0]
            self._free.remove(lane)
            return lane

    async def call(self, lane: str, command: Command, timeout_seconds: float, holder: Holder = NOBODY) -> Reply:
        """Send ``command`` to every worker of ``lane`` and return the lane's one answer.

        ``holder`` is whoever began a trial or a test on it; to others it does nothing. A lane that is leaving does
        nothing more but save its trial; then it is told to end.
        """
        entry = self._lanes.get(lane)
        if entry is None:
            return Dead("the lane had died before the command")
        if isinstance(command, Start | Test):
            entry.holder = holder
        elif entry.holder != holder:
            return Left() if isinstance(command, Leave) else Dead("the lane had been taken back before the command")
        if not entry.leaving or isinstance(command, Leave):
            return await self._ask(lane, entry, command, timeout_seconds)
        if isinstance(command, NextEpoch):
            saved = await self._ask(lane, entry, Leave(snapshot=True), timeout_seconds)
            if isinstance(saved, Dead):
                return saved  # without a snapshot it goes on from an older one, or from its seed
        entry.end()
        return Moved()

    async def _ask(self, lane: str, entry: _Lane, command: Command, timeout_seconds: float) -> Reply:
        entry.token += 1
        entry.answers = {}
        entry.done = asyncio.get_running_loop().create_future()
        for queue in entry.queues.values():
            queue.put_nowait((entry.token, command))
        try:
            reply = await asyncio.wait_for(asyncio.shield(entry.done), timeout_seconds)
        except TimeoutError:
            self._kill(lane)
            return Dead(f"the lane did not answer within {timeout_seconds:g} s and was ended")
        if _ends_lane(reply):
            self._kill(lane)
        return reply

    async def release(self, lane: str, holder: Holder = NOBODY) -> None:
        """Give a borrowed lane back; one that was taken back already is left alone."""
        if (entry := self._lanes.get(lane)) is not None and entry.holder == holder:
            await self._give_back(lane)

    async def _give_back(self, lane: str) -> None:
        async with self._changed:
            entry = self._lanes.get(lane)
            if entry is None or entry.retired or lane in self._free:
                return
            entry.holder = NOBODY
            if entry.leaving or len(self._standing(entry.group)) > self._most.get(entry.group, math.inf):
                entry.end()
            else:
                self._free.append(lane)
                self._changed.notify_all()

    # -- the driver ----------------------------------------------------------------------------------------

    async def finish(self, trial_id: str) -> None:
        """Take lanes back from a trial that has ended.

        Its actor would keep the lane until it gets another trial, for ever where the last trials wait for lanes of a
        node that was lost.
        """
        for lane, entry in self._lanes.items():
            if entry.holder[0] == trial_id:
                entry.holder = NOBODY
                self._clearing[lane] = asyncio.create_task(self._clear(lane, entry))

    async def _clear(self, lane: str, entry: _Lane) -> None:
        await self._ask(lane, entry, Leave(snapshot=False), CLEAR_SECONDS)
        del self._clearing[lane]
        await self._give_back(lane)

    async def bury(self, lane: str, reason: str) -> tuple[Any, int, bool]:
        """Forget a dead lane and tell whoever waits for it, and why it died.

        Returns its placement group (or None), how many commands it had answered, and whether it was leaving a node that
        is to be taken back.
        """
        entry = self._lanes.pop(lane, None)
        async with self._changed:
            if lane in self._free:
                self._free.remove(lane)
        if entry is not None:
            entry.answer(Dead(f"the lane's worker group died: {reason}"))
        group = self._groups.pop(lane, None)
        return (group, 0, False) if entry is None else (group, entry.num_answers, entry.leaving)

    async def reclaim(self) -> None:
        """Free every lane: after a Tune run whose actors may have died while they held some."""
        async with self._changed:
            self._run += 1
            self._arrived.clear()
            whole = {lane: entry for lane, entry in self._lanes.items() if entry.is_whole and not entry.retired}
            for entry in whole.values():
                entry.holder = NOBODY
                if entry.leaving:
                    entry.end()
            self._free = [lane for lane, entry in whole.items() if not entry.leaving and lane not in self._clearing]
            self._changed.notify_all()

    async def vacate(self, nodes: Collection[str]) -> int:
        """Let every lane end that has a worker on one of ``nodes``; return how many were not told before.

        A free one ends at once. One that a trial holds ends when its epoch is done and the trial's state is saved.
        """
        told = 0
        async with self._changed:
            for lane, entry in self._lanes.items():
                if entry.leaving or entry.nodes.isdisjoint(nodes):
                    continue
                entry.leaving = True
                told += 1
                if lane in self._free:
                    self._free.remove(lane)
                    entry.end()
        return told

    async def retire(self, keep: int, group: str = "") -> int:
        """Tell free lanes of a group to end while more than ``keep`` stand, and return how many were told.

        Lanes that a trial holds go once they are given back, those that wait for a node once they have it, if there are
        too many of them then.
        """
        async with self._changed:
            self._most[group] = keep
            free = self._free_of(group)
            going = free[len(free) - min(len(free), max(0, len(self._standing(group)) - keep)) :]
            self._free = [lane for lane in self._free if lane not in going]
        for lane in going:
            self._lanes[lane].end()
        return len(going)

    async def num_lanes(self, group: str | None = None) -> int:
        """Return how many lanes are whole, of one group or of all."""
        return sum(entry.is_whole and group in (None, entry.group) for entry in self._lanes.values())

    async def dismiss(self) -> None:
        """Tell every worker of every lane to end, those included that join later: they waited for a node."""
        self._dismissed = True
        for entry in self._lanes.values():
            entry.end()

    def _standing(self, group: str) -> list[_Lane]:
        mine = (entry for entry in self._lanes.values() if entry.group == group)
        return [entry for entry in mine if entry.is_whole and not entry.retired]

    def _free_of(self, group: str) -> list[str]:
        return [lane for lane in self._free if (entry := self._lanes.get(lane)) and entry.group == group]

    def _kill(self, lane: str) -> None:
        """End the workers of a lane that cannot be trusted; its ``fit()`` then raises and the driver restarts it."""
        entry = self._lanes.get(lane)
        if entry is not None:
            entry.retired = True  # nobody gets it any more, though its end takes Ray a moment
            for member in entry.members.values():
                ray.kill(member)


def _ends_lane(reply: Reply) -> bool:
    """Whether a lane cannot be used any more after one worker's answer."""
    return isinstance(reply, Dead) or (isinstance(reply, Failed) and not reply.lane_is_sound)


def start_exchange(name: str) -> Any:
    """Start the exchange under ``name`` and return its handle."""
    # On the driver's node: the loss of any other must not take it along.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(Exchange)
    options = {"num_cpus": 0, "max_concurrency": 10_000, "name": name, "namespace": NAMESPACE}
    return actor.options(scheduling_strategy=here, **options).remote()


def find_exchange(name: str) -> Any:
    """Return the handle of a running exchange."""
    return ray.get_actor(name, namespace=NAMESPACE)
