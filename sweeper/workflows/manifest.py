"""The manifest of a study: written when it begins, compared when it goes on."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import sweeper
from sweeper import __version__
from sweeper.data.repeated import repeated_inputs
from sweeper.plan.plan import differences
from sweeper.spec.load import dump_study
from sweeper.store.manifest import Manifest, read_manifest, write_manifest
from sweeper.store.paths import ResultPaths, replace_file
from sweeper.store.state import StudyState
from sweeper.workflows.study import Study

_PACKAGES = ("ray", "optuna", "torch", "transformers", "numpy", "scikit-learn")


def versions() -> dict[str, str]:
    """Return the versions that results depend on."""
    return {"sweeper": __version__, "python": platform.python_version(), **{p: version(p) for p in _PACKAGES}}


def code_fingerprint(task_type: str) -> str:
    """Return the SHA-256 of sweeper's own source and of the module of a task named ``package.module:Class``."""
    home = Path(sweeper.__file__).parent
    files = {str(path.relative_to(home)): path for path in home.rglob("*.py")}
    module = sys.modules.get(task_type.partition(":")[0])
    if ":" in task_type and module is not None and module.__file__ is not None:
        files[task_type] = Path(module.__file__)
    parts = [f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for name, path in sorted(files.items())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def changes(study: Study) -> list[str]:
    """Name what differs from the study that the result folder holds; empty for a new folder."""
    if not study.paths.storage.obtain(study.paths.manifest):
        return []
    manifest = read_manifest(study.paths)
    found = differences(manifest.content, _as_before(manifest.content, study.plan.content))
    found += differences({"versions": manifest.versions}, {"versions": versions()})
    return found


def _as_before(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return the new content with each checkpoint's old name where its weights are the same: moved is not changed.

    A study that was launched lies somewhere else every time that its cluster is made anew.
    """
    names = {model.get("weights"): model.get("checkpoint") for model in old.get("models", ())}
    models = [model | {"checkpoint": names.get(model["weights"], model["checkpoint"])} for model in new["models"]]
    return {**new, "models": models}


def open_manifest(study: Study) -> None:
    """Write manifest and resolved study of a new study, or record the changes that a resume accepted."""
    paths = study.paths
    accepted = changes(study)
    if not paths.storage.obtain(paths.manifest):
        _write_study(study)
        write_manifest(paths, _new_manifest(study))
    elif accepted:
        manifest = read_manifest(paths)
        manifest.accepted_changes.extend(accepted)
        manifest.content, manifest.plan_hash = study.plan.content, study.plan.plan_hash
        manifest.versions = versions()
        _write_study(study)
        write_manifest(paths, manifest)


def _write_study(study: Study) -> None:
    replace_file(study.paths.study, lambda partial: partial.write_text(dump_study(study.spec)))
    study.paths.storage.publish(study.paths.study)


def record_openings(study: Study, state: StudyState) -> None:
    """Copy the ledger's openings of the test split, and the seeds confirmed, into the manifest."""
    manifest = read_manifest(study.paths)
    manifest.seeds["confirmation"] = list(dict.fromkeys(state.trials[run].spec.seed for run in state.frozen or ()))
    manifest.test_openings = [
        {**opening, "at": datetime.fromtimestamp(opening["at"], UTC).isoformat(timespec="seconds")}
        for opening in state.test_openings
    ]
    write_manifest(study.paths, manifest)


def record_findings(study: Study, state: StudyState) -> None:
    """Copy into the manifest what a report says beside the tables.

    What using each confirmed model costs, what the trivial answer scores, what was retained, why a search ended early.
    """
    costs = {state.trials[run].spec.model: dict(result.cost) for run, result in state.tested.items() if result.cost}
    manifest = read_manifest(study.paths)
    trivial = next((dict(result.baseline) for result in state.tested.values() if result.baseline), {})
    retention = [
        {
            "model": (spec := state.trials[run].spec).model,
            "config": spec.config,
            "seed": spec.seed,
            "schedule": spec.params.get("unfreezing", "full"),
            **result.retention,
        }
        for run, result in state.tested.items()
        if result.retention
    ]
    known = (manifest.costs, manifest.data.get("trivial", {}), manifest.search_ends, manifest.retention)
    if (costs, trivial, state.search_ends, retention) != known:
        manifest.costs, manifest.retention = costs, retention
        manifest.data = {**manifest.data, "trivial": trivial}
        manifest.search_ends = dict(state.search_ends)
        write_manifest(study.paths, manifest)


def record_notes(paths: ResultPaths, notes: Iterable[str]) -> None:
    """Add notes to the manifest, each once; the report shows them."""
    manifest = read_manifest(paths)
    manifest.notes = list(dict.fromkeys([*manifest.notes, *notes]))
    write_manifest(paths, manifest)


def record_precision(paths: ResultPaths) -> None:
    """Copy what ``training.precision: auto`` came to into the manifest, once: a resume takes it from there."""
    if not paths.precision.exists():
        return
    manifest = read_manifest(paths)
    if "precision" not in manifest.machine:
        manifest.machine["precision"] = json.loads(paths.precision.read_text())
        write_manifest(paths, manifest)


def record_packing(paths: ResultPaths, lanes: int, peaks: Mapping[str, int]) -> None:
    """Note how many lanes share a GPU, and the bytes of it that training each model took at most in the probe.

    Models with nodes of their own are probed there: the number is that of the last of them.
    """
    if paths.manifest.exists():
        manifest = read_manifest(paths)
        earlier = manifest.machine.get("packing", {}).get("peak_bytes", {})
        manifest.machine["packing"] = {"lanes_per_gpu": lanes, "peak_bytes": {**earlier, **peaks}}
        write_manifest(paths, manifest)


def record_node_labels(paths: ResultPaths, labels: Mapping[str, Mapping[str, str]]) -> None:
    """Note which nodes each model asks for, where one of them does; the report says whether devices may differ."""
    if paths.manifest.exists():
        manifest = read_manifest(paths)
        noted = {model: dict(asked) for model, asked in labels.items()} if any(labels.values()) else {}
        if manifest.machine.get("node_labels", {}) != noted:
            manifest.machine["node_labels"] = noted
            write_manifest(paths, manifest)


def _new_manifest(study: Study) -> Manifest:
    return Manifest(
        name=study.spec.name,
        plan_hash=study.plan.plan_hash,
        content=study.plan.content,
        versions=versions(),
        data={
            "fingerprint": study.data.fingerprint,
            "classes": list(study.data.classes),
            "counts": {split: dict(counts) for split, counts in study.data.counts.items()},
            "source": study.spec.task.data.model_dump(mode="json"),
        },
        seeds={"study": study.plan.seed, "confirmation": list(study.plan.confirmation_seeds)},
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        machine={"cores": len(os.sched_getaffinity(0)), "platform": platform.platform()},
        checkpoints={
            name: {"model_type": info.model_type, "licence": info.licence} for name, info in study.models.items()
        },
        notes=[*study.data.notes, *([repeated] if (repeated := repeated_inputs(study.data)) else [])],
        code=code_fingerprint(study.spec.task.type),
    )
