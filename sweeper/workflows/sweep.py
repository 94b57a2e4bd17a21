"""The main job: search, confirm, test, report. Safe to call again at any moment, also after a crash.

Nothing here imports Ray at the top: `run` sets Ray's environment first.
"""

from __future__ import annotations

import logging
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeper.core.errors import ChangedWorldError, InputError, Problem, StopRequested
from sweeper.engine import environment
from sweeper.spec.load import load_study
from sweeper.spec.study import StudySpec

if TYPE_CHECKING:
    from sweeper.store.paths import ResultPaths
    from sweeper.workflows.results import StudyResult

logger = logging.getLogger("sweeper")

ModelFactory = Callable[[], tuple[Any, Any]]
"""Returns a transformers model with its head, and its tokenizer or image processor."""


def run(
    spec: StudySpec,
    *,
    datasets: Mapping[str, Any] | None = None,
    factories: Mapping[str, ModelFactory] | None = None,
    accept_change: bool = False,
    more_seeds: int = 0,
    profiled: bool = False,
) -> StudyResult:
    """Run a study to its report, or go on with one that was interrupted.

    Parameters
    ----------
    spec:
        From `load_study`, or built in Python.
    datasets:
        Splits as ``datasets.Dataset`` under ``train``, ``validation`` and ``test``, in the place of ``task.data``.
    factories:
        By model name: builds a model and its preprocessor in the place of its checkpoint.
    accept_change:
        Go on although plan, data, weights or versions differ from those the study began with; recorded.

    more_seeds:
        Confirmation seeds to add to a finished study: the same configurations, trained and tested once more; the test
        split is opened a second time, by name. An addition that was interrupted is finished first.
    profiled:
        Write where the time of the lanes went into ``profile/``: a table, and a trace for a browser.

    Returns
    -------
    StudyResult
        The tables, best configurations and leaderboard of the result folder.

    Raises
    ------
    InputError
        The study, its data or its models are wrong; nothing has been written.
    ChangedWorldError
        The result folder belongs to another plan.
    RunFailedError
        The run ended without its result; finished trials are kept.
    StopRequested
        SIGINT or SIGTERM; state is saved.
    """
    environment.prepare(own_ray=spec.cluster.address is None)
    from sweeper.workflows.study import assemble, provisional, result_paths, settle

    paths = result_paths(spec)
    if factories:
        spec = _with_built_models(spec, factories, paths)
    if datasets is None and spec.task.data.train == "memory:" and paths.storage.obtain(paths.data):
        study = assemble(spec, paths.data)
        _refuse_changes(study, accept_change=accept_change)
    else:
        with provisional(spec, datasets) as draft:
            _refuse_changes(draft, accept_change=accept_change)
            study = settle(draft)
    from sweeper.engine.cluster import Connection
    from sweeper.engine.last_words import last_words
    from sweeper.store.ledger import Ledger
    from sweeper.store.state import StudyState

    killed = f"the run was killed, or ended by Ray; what is done is kept: sweeper resume {paths.place}"
    with last_words(killed), Connection(spec.cluster.address) as connection, _signals() as interrupted:
        if more_seeds or not StudyState.replay(Ledger.read(study.paths)).is_finished:
            connection.begin()  # Ray takes seconds; so do the imports of what follows
        from sweeper.workflows.execute import execute

        execute(study, interrupted, more_seeds, connection=connection, profiled=profiled)
    from sweeper.workflows.results import load_results

    return load_results(paths.root)


def resume(path: str | Path, *, accept_change: bool = False) -> StudyResult:
    """Go on with the study of a result folder or study file; see `run`."""
    return run(load_study(study_file(path)), accept_change=accept_change)


def study_file(path: str | Path) -> Path:
    """Return the study file that ``path`` names: itself, or the resolved one of a result folder."""
    from sweeper.store.storage import is_url

    if not is_url(str(path)) and not Path(path).is_dir():
        return Path(path)
    from sweeper.workflows.results import readable

    paths = readable(path)
    if not paths.study.is_file():
        raise InputError(Problem(paths.place, "a result folder must hold study.yaml", "none", "name the right folder"))
    return paths.study


def _refuse_changes(study: Any, *, accept_change: bool) -> None:
    """Compare the study with the manifest of its result folder, where there is one."""
    from sweeper.workflows.manifest import changes

    differences = changes(study)
    if differences and not accept_change:
        remedy = "undo the change, choose another name, or pass --accept-change"
        raise ChangedWorldError(
            [
                Problem(study.paths.place, "a resumed study must be the one that began", difference, remedy)
                for difference in differences
            ]
        )


def _with_built_models(spec: StudySpec, factories: Mapping[str, ModelFactory], paths: ResultPaths) -> StudySpec:
    """Save what the factories build as checkpoints, which lanes load like any other."""
    models = []
    for model in spec.models:
        if model.name in factories:
            home = paths.built_model(model.name)
            if not paths.storage.obtain(home):
                partial = home.with_name(home.name + ".partial")
                shutil.rmtree(partial, ignore_errors=True)
                built, preprocessor = factories[model.name]()
                built.save_pretrained(partial)
                preprocessor.save_pretrained(partial)
                partial.rename(home)
                paths.storage.publish(home)
            model = model.model_copy(update={"checkpoint": str(home)})
        models.append(model)
    return spec.model_copy(update={"models": models})


@contextmanager
def _signals() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGINT or SIGTERM into a flag; a second SIGINT ends at once.

    Further SIGTERMs are the same request: batch systems and Ray's jobs send it to every process below a job, and the
    supervisor passes its own on.
    """
    received: list[int] = []

    def note(number: int, frame: Any) -> None:  # noqa: ARG001 - the signature of handlers
        if received:
            if number == signal.SIGTERM:
                return
            raise KeyboardInterrupt
        received.append(number)
        logger.warning("stopping after the epochs under way; once more ends at once")

    previous: dict[int, Any] = {}
    try:
        for caught in (signal.SIGINT, signal.SIGTERM):
            previous[caught] = signal.signal(caught, note)
    except ValueError:  # not the main thread: the host program handles signals
        pass
    try:
        yield lambda: bool(received)
        if received:
            raise StopRequested("stopped on request; all finished work is kept")
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
