"""Carrying out an assembled study on Ray: search, confirm, test; then tables, ``best/`` and report."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from sweeper.core.errors import RunFailedError, StopRequested, is_of_storage, storage_reason
from sweeper.core.trial import TrialSpec, TrialState
from sweeper.engine.cluster import Connection, capacity, lane_count, lane_counts, worker_resources
from sweeper.engine.lanes import LaneGroup, Lanes, LaneShape
from sweeper.engine.packing import hungriest, measured_packing
from sweeper.engine.tune import Conductor, Sequel, run_assignments
from sweeper.engine.worker_config import WorkerConfig
from sweeper.store.ledger import Ledger
from sweeper.store.profile import write_profile
from sweeper.store.state import StudyState
from sweeper.store.tables import write_tables
from sweeper.workflows.book import Book
from sweeper.workflows.conductors import ConfirmConductor, Room, TestConductor, resumed_search
from sweeper.workflows.confirm import confirmation_runs, more_runs
from sweeper.workflows.manifest import (
    changes,
    open_manifest,
    record_findings,
    record_node_labels,
    record_notes,
    record_openings,
    record_packing,
    record_precision,
)
from sweeper.workflows.progress import Progress
from sweeper.workflows.study import Study, train_options
from sweeper.workflows.tail import Tail, work_left
from sweeper.workflows.tidy import Tidy
from sweeper.workflows.tracking import Tracking, publish_tracked

logger = logging.getLogger("sweeper")


@contextmanager
def storage_failures(root: str | Path) -> Iterator[None]:
    """Turn what a full, broken or read-only disk raises into a `RunFailedError` of one line.

    What the ledger took before stays; nothing half written counts.
    """
    try:
        yield
    except Exception as error:
        if not is_of_storage(error):
            raise
        reason = storage_reason(error, root)
        raise RunFailedError(f"{reason}; what is done is kept: mend the storage, then resume {root}") from error


def execute(
    study: Study,
    interrupted: Callable[[], bool],
    more_seeds: int = 0,
    *,
    connection: Connection | None = None,
    profiled: bool = False,
) -> None:
    """Run what is left of ``study``; a finished one is only reported again, or confirmed with more seeds.

    Parameters
    ----------
    more_seeds:
        Confirmation seeds to add to a finished study; of an unfinished one what is left is done and nothing added.
    connection:
        To Ray, perhaps begun already; None: one of its own.
    profiled:
        Whether to write where the time of the lanes went.

    Raises
    ------
    RunFailedError
        When nothing could be confirmed, lanes died again and again, or the storage failed.
    StopRequested
        When ``interrupted`` said so.
    """
    paths = study.paths
    with (
        storage_failures(paths.place),
        Ledger.open(paths) as ledger,
        Tidy(paths) as tidy,
        Progress(study.plan) as progress,
        Tracking(paths, study.spec.tracking, progress.say) as tracking,
    ):
        for text in ledger.notes:
            progress.say(text)
        state = StudyState.replay(ledger.events())
        book = Book(ledger, state, study.objective, study.spec.training.num_workers, [progress, tidy])
        if accepted := changes(study):
            book.write("change_accepted", differences=accepted)
        open_manifest(study)
        progress.follow(book)
        try:
            finished = state.is_finished
            if finished and more_seeds:
                freeze(book, more_runs(study, state, more_seeds))
                finished = False
            if not finished:
                book.write("study_opened", plan_hash=study.plan.plan_hash, reason="run")
            tracking.start()
            if not finished:
                with connection or Connection(study.spec.cluster.address) as made:
                    progress.phase("starting lanes")
                    made.wait()
                    _on_ray(study, book, progress, interrupted, profiled=profiled)
        finally:
            state = book.state
            write_tables(paths, state, study.objective)
        progress.phase("report")
        from sweeper.report.build import build_report  # statistics and pages: nothing that a lane should wait for
        from sweeper.workflows.export import write_best

        record_findings(study, state)
        write_best(study, state)
        build_report(paths.root)
        notes = [text for text in tracking.finish() if text not in state.notes]
        for text in notes:
            book.write("note", text=text)
        if notes:
            record_notes(paths, notes)
            build_report(paths.root)
        paths.storage.publish(paths.report)
        publish_tracked(paths)
        paths.storage.remove(paths.snapshots_root)
        shutil.rmtree(paths.activations, ignore_errors=True)
        shutil.rmtree(paths.scratch / "ray", ignore_errors=True)


def _on_ray(
    study: Study,
    book: Book,
    progress: Progress,
    interrupted: Callable[[], bool],
    *,
    profiled: bool,
) -> None:
    record_precision(study.paths)  # of an earlier session that was killed
    left = partial(work_left, study.plan, book.state)
    is_shared = study.spec.cluster.address is not None
    work = left() if is_shared or book.state.frozen is None else None  # `left` knows no tests, which may be many
    with study_lanes(study, work, interrupted, profiled=profiled) as lanes:
        # Lanes come up while Tune starts its actors, which then wait for them.
        room = lanes.has_room if lanes.group_of else None
        conductor = Sequel(phases(study, book, interrupted, lanes.count, progress.phase, room))
        run_assignments(
            lanes,
            Tail(conductor, lanes, left) if is_shared else conductor,
            scratch=study.paths.scratch,
            max_retries=study.spec.training.max_trial_retries,
            epoch_timeout_seconds=study.spec.training.epoch_timeout_seconds,
            on_restart=progress.say,
        )
    record_precision(study.paths)
    if profiled:
        progress.say(write_profile(study.paths))
    if interrupted():
        raise StopRequested("stopped on request; all finished work is kept")


def study_lanes(
    study: Study,
    work: Mapping[str, int] | None = None,
    interrupted: Callable[[], bool] = lambda: False,
    *,
    profiled: bool = False,
) -> Lanes:
    """Return the lanes of a study, to be entered: as many as it wants and as fit the cluster that is connected.

    Models that ask for the same nodes share a group of lanes.

    Parameters
    ----------
    work:
        Trials that are left, by model: no lane starts for which there is none. None: any number.
    interrupted:
        Whether the run was asked to stop: a probe of memory then is not waited for.
    profiled:
        Whether the lanes keep where their time went.
    """
    training = study.spec.training
    asked = {model.name: {**training.node_labels, **model.node_labels} for model in study.spec.models}
    record_node_labels(study.paths, asked)
    group_of = {name: ",".join(f"{k}={v}" for k, v in sorted(labels.items())) for name, labels in asked.items()}
    if len(set(group_of.values())) == 1:
        group_of = dict.fromkeys(group_of, "")
    models: dict[str, list[str]] = {}
    for name, group in group_of.items():
        models.setdefault(group, []).append(name)
    found = {group: _lane_shape(study, names, asked[names[0]], interrupted) for group, names in models.items()}
    shapes = {group: shape for group, (shape, _) in found.items()}
    left = {group: sum(work[name] for name in names) for group, names in models.items()} if work is not None else None
    counts = lane_counts(shapes, study.spec.search.max_concurrent_trials, left)
    groups = [
        LaneGroup(
            shape=shape,
            count=counts[name],
            make_worker=_worker_config(study, shape, context_bytes, profiled=profiled).start,
            name=name,
            elastic=not capacity(shape).now,
        )
        for name, (shape, context_bytes) in found.items()
    ]
    return Lanes(groups, study.paths.scratch, group_of=group_of if len(groups) > 1 else {})


def _lane_shape(
    study: Study, models: Sequence[str], labels: Mapping[str, str], interrupted: Callable[[], bool]
) -> tuple[LaneShape, int | None]:
    """Return the shape of the lanes of some models, a GPU's share measured where it is asked to be.

    With it what a process takes of a GPU beside its allocator, where that was measured.
    """
    training = study.spec.training
    asked = training.resources_per_worker if training.resources_per_worker == "auto" else training.fixed_resources
    shape = LaneShape(
        num_workers=training.num_workers,
        resources_per_worker={},
        node_labels=labels,
        placement=training.placement.upper(),
    )
    if not training.is_packed:
        return replace(shape, resources_per_worker=worker_resources(asked, training.num_workers, labels)), None
    whole = replace(shape, resources_per_worker={**training.fixed_resources, "GPU": 1.0})
    lane_count(whole, "auto")  # a probe without a node for it would wait for ever
    probes = {name: hungriest(study.spaces[name]) for name in models}
    packing = measured_packing(_worker_config(study, whole), probes, whole.resources_per_worker, labels, interrupted)
    if packing is None:
        return whole, None
    logger.info("%d lanes share a GPU: %s", packing.lanes, packing)
    record_packing(study.paths, packing.lanes, packing.peaks)
    packed = replace(shape, resources_per_worker={**training.fixed_resources, "GPU": packing.share})
    return packed, packing.context_bytes


def _worker_config(
    study: Study, shape: LaneShape, context_bytes: int | None = None, *, profiled: bool = False
) -> WorkerConfig:
    measured = {} if context_bytes is None else {"context_bytes": context_bytes}
    return WorkerConfig(
        spec=study.spec,
        paths=study.paths,
        options=train_options(study, uses_gpu=shape.uses_gpu),
        cpus=max(1, int(shape.resources_per_worker.get("CPU", 1))),
        gpu_share=min(1.0, shape.resources_per_worker.get("GPU", 1.0)),
        profiled=profiled,
        **measured,
    )


def carry_out(
    study: Study,
    book: Book,
    serve: Callable[[Conductor], None],
    interrupted: Callable[[], bool],
    num_lanes: int,
    say_phase: Callable[[str], None],
) -> None:
    """Search, confirm and test what is left of a study, each phase in a run of its own.

    Parameters
    ----------
    serve:
        Carries out a conductor's assignments to their end, simulated for instance.
    """
    for conductor in phases(study, book, interrupted, num_lanes, say_phase):
        serve(conductor)


def phases(
    study: Study,
    book: Book,
    interrupted: Callable[[], bool],
    num_lanes: int,
    say_phase: Callable[[str], None],
    room: Room | None = None,
) -> Iterator[Conductor]:
    """Yield what is left of a study: search, confirmation, test; each is made when the one before it is done.

    Parameters
    ----------
    say_phase:
        Told the name of each phase as it begins.
    room:
        Where not every lane serves every model.

    Raises
    ------
    RunFailedError
        When there is nothing to confirm, or every confirmation run failed.
    """
    if book.state.frozen is None:
        say_phase("search")
        yield resumed_search(book, study.plan, study.spec.search, interrupted, num_lanes, room)
    if book.state.frozen is None:
        runs = confirmation_runs(study, book.state)
        if not runs:
            raise RunFailedError("no search trial completed, so there is nothing to confirm; see trials.parquet")
        freeze(book, runs)
    for index, batch in enumerate(book.state.freezings):
        say_phase("confirm")
        trials = [book.state.trials[trial_id].spec for trial_id in batch]
        yield ConfirmConductor(book, trials, interrupted, room)
        confirmed = [trial for trial in trials if book.state.trials[trial.trial_id].state is TrialState.COMPLETE]
        if not confirmed:
            raise RunFailedError("every confirmation run failed; see trials.parquet")
        if len(book.state.test_openings) == index:
            book.write("test_opened", reason="more seeds" if index else "confirmation", num_runs=len(confirmed))
        record_openings(study, book.state)
        say_phase("test")
        yield TestConductor(book, confirmed, interrupted, room)


def freeze(book: Book, runs: Sequence[TrialSpec]) -> None:
    """Close a list of confirmation runs: from here on none is added to it."""
    with book.together():
        for run in runs:
            if run.trial_id not in book.state.trials:
                book.asked(run, {})
        configs = {(run.model, run.config) for run in runs}
        shared = sorted(model for model, config in configs if (model, "default") not in configs)
        book.write(
            "confirmation_frozen", trial_ids=[run.trial_id for run in runs], **({"shared": shared} if shared else {})
        )


def state_of(study_paths: Any) -> StudyState:
    """Read the state of a run without taking its lock: for ``status`` from another terminal."""
    return StudyState.replay(Ledger.read(study_paths))
