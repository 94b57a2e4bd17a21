"""What is left to take home: ``best/MODEL/`` with configuration and checkpoint, and copies of the tables."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from sweeper.core.errors import InputError, Problem
from sweeper.core.trial import TrialSpec
from sweeper.report.cards import model_card
from sweeper.spec.load import dump_study
from sweeper.store.state import StudyState
from sweeper.workflows.confirm import export_run, search_winner
from sweeper.workflows.results import readable
from sweeper.workflows.study import Study


def write_best(study: Study, state: StudyState) -> None:
    """Write each model's best configuration and, once confirmed, the weights of one named confirmation seed."""
    for model in study.spec.models:
        winner = search_winner(study, state, model.name)
        if winner is None:
            continue
        home, storage = study.paths.best(model.name), study.paths.storage
        home.mkdir(parents=True, exist_ok=True)
        for name, text in (("space.yaml", _fixed_space(winner.spec)), ("config.yaml", _config(study, model.name))):
            (home / name).write_text(text)
            storage.publish(home / name)
        chosen = export_run(study, state, model.name)
        if chosen is None:
            continue
        weights = study.paths.confirmation_weights(chosen.spec.trial_id)
        if not storage.obtain(home / "checkpoint") and storage.obtain(weights):
            partial = home / "checkpoint.partial"
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(weights, partial)
            (partial / "README.md").write_text(model_card(study.paths.root, model.name, chosen.spec.seed))
            partial.rename(home / "checkpoint")
            storage.publish(home / "checkpoint")


def export(root: str | Path, target: Path) -> list[Path]:
    """Copy best configurations, checkpoints, tables and report into ``target``; return what was written.

    Raises
    ------
    InputError
        When the result folder has nothing to export, or the target is not empty.
    """
    paths = readable(root, with_best=True)
    sources = [paths.root / "best", paths.report, paths.manifest, paths.study]
    sources += [paths.trials, paths.measurements, paths.confirmations, paths.predictions]
    present = [source for source in sources if source.exists()]
    if paths.manifest not in present:
        remedy = "name the folder of a study that has run"
        raise InputError(Problem(str(root), "a result folder must hold manifest.json", "none", remedy))
    if target.exists() and any(target.iterdir()):
        raise InputError(Problem(str(target), "the target must be empty", "it holds files", "name another folder"))
    target.mkdir(parents=True, exist_ok=True)
    for source in present:
        copy = shutil.copytree if source.is_dir() else shutil.copy2
        copy(source, target / source.name)
    return [target / source.name for source in present]


def _fixed_space(trial: TrialSpec) -> str:
    """Return a space file in which every parameter is fixed to the trial's value."""
    lines = [f"# The best configuration of {trial.model}: search trial {trial.trial_id}.", "parameters:"]
    lines += [f"  {name}: {json.dumps(value)}" for name, value in trial.params.items()]
    return "\n".join(lines) + "\n"


def _config(study: Study, model: str) -> str:
    """Return a study of this model alone at its best configuration, ready for ``sweeper run``."""
    only = [
        m.model_copy(update={"space": "space.yaml", "space_overrides": {}})
        for m in study.spec.models
        if m.name == model
    ]
    search = study.spec.search.model_copy(update={"num_trials": 1, "space": None})
    spec = study.spec.model_copy(
        update={"name": f"{study.spec.name}-{model}", "models": only, "search": search, "storage_path": "results"}
    )
    return dump_study(spec)
