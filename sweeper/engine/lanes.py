"""The driver's pool of lanes: long-lived Ray Train worker groups that run trial after trial.

A thread per lane calls ``TorchTrainer.fit()`` in a loop. The train function joins the exchange and serves
commands until told to end. When ``fit()`` returns or raises, the thread removes the lane's placement group itself
(Ray Train would leave that to a cleaner that may be dead too) and starts the lane anew, a bounded number of times.
"""

from __future__ import annotations

import logging
import re
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import ray
from ray import cloudpickle
from ray.exceptions import RayError

from sweeper.core.errors import InfeasibleError, RunFailedError, TrialError, is_of_peers, is_of_storage
from sweeper.core.trial import TrialState
from sweeper.engine import environment
from sweeper.engine.exchange import Joining, find_exchange, start_exchange
from sweeper.engine.messages import Command, Dead, Failed, Reply

logger = logging.getLogger("sweeper")

RESTARTS_IN_A_ROW = 5  # deaths of a lane without a single answer in between after which the pool gives up
START_PAUSE_SECONDS = 1.0
START_SECONDS = 300.0  # within which a first lane must stand
UPSCALING_SECONDS = 1800.0  # the same where nodes come as needed: minutes to start one, and as many to pull the image
NOTICE_SECONDS = 1.0  # between two looks for nodes that are to be taken back; spot instances give 30 s to 2 min
_IDENTITY = re.compile(r"\b(?:class_name|actor_id|pid|name|namespace|ip): \S+ ")  # of a dead actor, before the cause
_SPARED = {"PlacementGroupCleanerCallback", "DatasetsCallback"}  # each an actor of 115 MB that a lane has no use for


class LaneWorker(Protocol):
    """What runs inside a lane's worker process; one instance per process, kept over all trials."""

    def handle(self, command: Command) -> Reply:
        """Carry out one command. A `TrialError` raised here ends the trial, not the lane."""
        ...


@dataclass(frozen=True, kw_only=True)
class LaneShape:
    """What one lane is.

    Parameters
    ----------
    num_workers:
        Ray Train workers, at least 1; a torch process group joins them from 2 on.
    resources_per_worker:
        Ray resources of each, for instance ``{"CPU": 1}``.
    node_labels:
        Labels that a node must have to take a worker.
    placement:
        Over which nodes the workers of one lane lie: ``PACK`` on few, ``STRICT_PACK`` on one, ``SPREAD`` over many.
    """

    num_workers: int
    resources_per_worker: Mapping[str, float]
    node_labels: Mapping[str, str] = field(default_factory=dict)
    placement: str = "PACK"

    @property
    def uses_gpu(self) -> bool:
        """Whether workers hold a GPU or a part of one."""
        return self.resources_per_worker.get("GPU", 0) > 0


@dataclass(frozen=True, kw_only=True)
class LaneGroup:
    """Lanes of one shape, for the models that may use them.

    Parameters
    ----------
    count:
        Lanes to keep alive, at least 1. Check the cluster's capacity first: a lane that does not fit waits silently.
    make_worker:
        Called in every worker process; pickled with cloudpickle.
    name:
        Which lanes they are; ``""`` where all are equal.
    elastic:
        Whether even the first of them waits until the cluster's autoscaler has added a node.
    """

    shape: LaneShape
    count: int
    make_worker: Callable[[], LaneWorker]
    name: str = ""
    elastic: bool = False

    @property
    def patience_seconds(self) -> float:
        """Within which a first lane must stand."""
        return UPSCALING_SECONDS if self.elastic else START_SECONDS


def _serve(config: dict[str, Any]) -> None:
    """Run in every worker of a lane: take commands from the exchange until told to end."""
    from ray import train

    environment.reopen_way_out()
    context = train.get_context()
    rank, lane, exchange = context.get_world_rank(), config["lane"], find_exchange(config["exchange"])
    here = ray.get_runtime_context()
    group = ray.util.get_current_placement_group()
    worker: LaneWorker = cloudpickle.loads(config["make_worker"])()
    me = Joining(
        actor=here.current_actor, placement_group=group, node=here.get_node_id(), lane_group=config["lane_group"]
    )
    ray.get(exchange.join.remote(lane, rank, context.get_world_size(), me))
    while (item := ray.get(exchange.next_command.remote(lane, rank))) is not None:
        token, command = item
        ray.get(exchange.reply.remote(lane, rank, token, _guarded(worker, command, context.get_world_size())))


def _guarded(worker: LaneWorker, command: Command, world_size: int) -> Reply:
    """Turn whatever a trial raises into a reply, so that the lane lives on."""
    try:
        return worker.handle(command)
    except TrialError as error:
        state = TrialState.INFEASIBLE if isinstance(error, InfeasibleError) else TrialState.FAIL
        return _failed(error, state, "")
    except Exception as error:
        if world_size > 1 and is_of_peers(error):
            return Dead(f"it lost another of its workers: {_one_line(error)}")
        # Several workers: the others may wait in a collective that this one will never enter.
        failed = _failed(error, TrialState.FAIL, traceback.format_exc(), lane_is_sound=world_size == 1)
        return replace(failed, is_of_storage=is_of_storage(error))


def _failed(error: Exception, state: TrialState, trace: str, *, lane_is_sound: bool = True) -> Failed:
    return Failed(state=state, reason=_one_line(error, 500), trace=trace, lane_is_sound=lane_is_sound)


def _one_line(error: BaseException, most: int = 200) -> str:
    text = " ".join(str(error).split())[:most]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _why(error: Exception) -> str:
    """Say in one line why a worker group ended: what Ray says of the first worker, without Ray Train's words around."""
    failures = getattr(error, "worker_failures", None) or {}
    first: Exception = next(iter(failures.values()), error)
    return _IDENTITY.sub("", _one_line(getattr(first, "health_check_failure", first), 1000))[:300]


def _draining_nodes() -> list[str]:
    """Return the ids of nodes that are to be taken back: Ray was told so by a cloud, an autoscaler or a SIGTERM.

    Ray has no public way to ask for them.
    """
    try:
        return list(ray._private.state.state.get_draining_nodes())
    except Exception:  # an older or newer Ray, or a moment without its GCS: then a node goes without notice
        return []


def _lane_trainer(num_workers: int) -> Any:
    """Return a trainer without the helpers that a lane has no use for: Ray Data's manager, and the cleaner.

    The cleaner of placement groups is detached and outlives a killed controller, for ever on a shared cluster; the
    driver removes the groups itself. Nor are nodes asked of the autoscaler by requests, which need an actor more and
    outlive a driver that is killed: placement groups ask for them. Where Ray no longer calls these methods, the helpers
    are started as ever. A single worker needs no process group, and its controller then no torch.
    """
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    base: Any = DataParallelTrainer
    if num_workers > 1:
        from ray.train.torch import TorchTrainer

        base = TorchTrainer

    class LanePolicy(FixedScalingPolicy):
        def after_controller_start(self, train_run_context: Any) -> None:
            pass

        def _maybe_send_resource_request(self) -> None:
            pass

    class LaneTrainer(base):  # type: ignore[misc]
        def _create_default_callbacks(self) -> list[Any]:
            made: list[Any] = super()._create_default_callbacks()
            return [callback for callback in made if type(callback).__name__ not in _SPARED]

        def _initialize_and_run_controller(self, **parts: Any) -> Any:
            parts["scaling_policy"] = LanePolicy(self.scaling_config)
            return super()._initialize_and_run_controller(**parts)

    return LaneTrainer


class Lanes:
    """A pool of lanes; a context manager that leaves nothing behind.

    Parameters
    ----------
    groups:
        What lanes there are: one group where all models use the same.
    scratch:
        Folder for Ray Train's own files.
    group_of:
        The group that serves a model, by the model's name; those left out are served by the group ``""``.
    """

    def __init__(
        self, groups: Sequence[LaneGroup], scratch: Path, *, group_of: Mapping[str, str] | None = None
    ) -> None:
        self.counts = {group.name: group.count for group in groups}
        self.group_of = dict(group_of or {})
        self.groups = groups
        self._lock = threading.Lock()
        self._alive = dict(self.counts)  # threads that keep a lane
        self.restarts: list[str] = []
        self.exchange_name = f"exchange-{uuid.uuid4().hex[:12]}"
        self._scratch = scratch
        self._closing = threading.Event()
        self._given_up: str | None = None
        self._awaited = list(groups)  # of which no lane has stood yet
        self._began = time.monotonic()
        self._exchange: Any = None
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._exchange = start_exchange(self.exchange_name)
        self._threads = [
            threading.Thread(target=self._keep_alive, args=(group,), name=f"lane-{group.name}{index}", daemon=True)
            for group in self.groups
            for index in range(group.count)
        ]
        threading.Thread(target=self._heed_notices, name="lane-notices", daemon=True).start()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def count(self) -> int:
        """Lanes that are kept alive."""
        return sum(self.counts.values())

    def group(self, model: str) -> str:
        """Return the group of lanes that serves a model."""
        return self.group_of.get(model, "")

    def has_room(self, model: str, running: Sequence[str]) -> bool:
        """Whether a lane is left for ``model`` beside trials of the models ``running``."""
        group = self.group(model)
        return sum(self.group(other) == group for other in running) < self.counts[group]

    @property
    def failure(self) -> str | None:
        """Why the pool gave up on its lanes, or None while all is well."""
        if self._given_up is None:
            self._awaited = [group for group in self._awaited if not self._ask("num_lanes", group.name)]
            for group in self._awaited:
                if time.monotonic() - self._began > group.patience_seconds and self._given_up is None:
                    where = f" on nodes with labels {group.name}" if group.name else ""
                    self._given_up = f"no lane started within {group.patience_seconds:g} s{where}"
        return self._given_up

    def wait_ready(self) -> None:
        """Wait until at least one lane stands; whoever only gives lanes work need not.

        Raises
        ------
        RunFailedError
            When no lane came up in time, or lanes died again and again.
        """
        while True:
            if failure := self.failure:
                raise RunFailedError(failure)
            if len(self._awaited) < len(self.groups):
                return
            time.sleep(0.05)

    def finish(self, trial_id: str) -> None:
        """Free the lane of a trial that has ended, whether or not there is another one for its actor."""
        self._ask("finish", trial_id)

    def reclaim(self) -> None:
        """Free all lanes after a Tune run that ended badly."""
        self._ask("reclaim")

    def keep(self, wanted: Mapping[str, int]) -> None:
        """Let idle lanes beyond ``wanted`` of a group go, so that their nodes can.

        No lane is taken from a trial; call again when one has ended. The last lane of a group stays.
        """
        for group, most in wanted.items():
            with self._lock:
                self.counts[group] = min(self.counts[group], max(1, most))
                surplus = self._alive[group] - self.counts[group]
            if surplus > 0:
                self._ask("retire", self.counts[group], group)

    def close(self) -> None:
        """End all lanes and the exchange; returns when their processes are gone."""
        self._closing.set()
        if self._exchange is None:
            return
        self._ask("dismiss")
        deadline = time.monotonic() + 30
        for thread in self._threads:
            thread.join(timeout=max(0.1, deadline - time.monotonic()))
        ray.kill(self._exchange)
        self._exchange = None

    def _keep_alive(self, of: LaneGroup) -> None:
        in_a_row = 0
        while not self._closing.is_set() and self._given_up is None:
            lane = f"lane-{uuid.uuid4().hex[:12]}"
            reason = self._run_once(lane, of)
            if self._exchange is None:  # closed, and this lane took longer to end than that waited for
                return
            buried = self._ask("bury", lane, reason)
            if buried is None:
                return
            group, num_answers, was_leaving = buried
            if group is not None:
                ray.util.remove_placement_group(group)
            if self._closing.is_set() or self._leaves(of.name):
                return
            if was_leaving:  # its node is taken back: no fault, and no sign of one
                continue
            in_a_row = 1 if num_answers else in_a_row + 1
            self.restarts.append(reason)
            logger.warning("a lane ended (%s); it starts anew", reason)
            if in_a_row >= RESTARTS_IN_A_ROW:
                self._given_up = f"a lane died {in_a_row} times in a row, last: {reason}"
            time.sleep(START_PAUSE_SECONDS)

    def _ask(self, method: str, *arguments: Any) -> Any:
        """Ask the exchange; None when it is gone, as it is with Ray on this host: `failure` says so then."""
        exchange = self._exchange
        if exchange is None:  # the pool is closed
            return None
        try:
            return ray.get(getattr(exchange, method).remote(*arguments))
        except RayError as error:
            if not self._closing.is_set() and self._given_up is None:
                self._given_up = f"Ray failed on the driver's node ({_one_line(error)}); what is done is kept: resume"
            return None

    def _heed_notices(self) -> None:
        """Let lanes leave nodes that are to be taken back; they start anew elsewhere, for Ray gives such nodes none.

        Notices too when the exchange is gone.
        """
        while not self._closing.wait(NOTICE_SECONDS) and self._ask("num_lanes") is not None:
            if (nodes := _draining_nodes()) and (told := self._ask("vacate", nodes)):
                logger.warning("%d lane(s) lie on a node that is to be taken back; their trials are saved", told)

    def _leaves(self, group: str) -> bool:
        """Whether this thread is one too many; then it counts as gone."""
        with self._lock:
            if self._alive[group] <= self.counts[group]:
                return False
            self._alive[group] -= 1
            return True

    def _run_once(self, lane: str, of: LaneGroup) -> str:
        """Run a lane to its end and say why it ended."""
        from ray.train import RunConfig
        from ray.train.v2.api.config import FailureConfig, ScalingConfig  # ray.train's own names are typed as V1's

        trainer = _lane_trainer(of.shape.num_workers)(
            _serve,
            train_loop_config={
                "lane": lane,
                "lane_group": of.name,
                "exchange": self.exchange_name,
                # Opaque to the controller, which would import all that the worker needs: seconds, and half a gigabyte.
                "make_worker": cloudpickle.dumps(of.make_worker),  # type: ignore[no-untyped-call]
            },
            scaling_config=ScalingConfig(
                num_workers=of.shape.num_workers,
                use_gpu=of.shape.uses_gpu,
                resources_per_worker=dict(of.shape.resources_per_worker),
                placement_strategy=of.shape.placement,
                label_selector=dict(of.shape.node_labels) or None,
            ),
            run_config=RunConfig(
                name=lane,
                storage_path=str(self._scratch / "ray"),
                failure_config=FailureConfig(max_failures=0, max_preemption_failures=0, controller_failure_limit=0),
            ),
        )
        try:
            trainer.fit()
        except Exception as error:
            return _why(error)
        return "ended on its own"
