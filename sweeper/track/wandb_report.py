"""What W&B keeps beside rows and summaries: tables, plots, the HTML report, and artifacts with their lineage."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sweeper.track.base import StudyInfo, StudyReport, tuning_curves
from sweeper.track.wandb_content import Configuration, RunContent, model_metadata, study_tables

logger = logging.getLogger("sweeper.tracking")


def media(wandb: Any, study: StudyInfo, report: StudyReport) -> dict[str, Any]:
    """Return the study's tables, its tuning curves and its page as values of one row."""
    row: dict[str, Any] = {
        name: wandb.Table(columns=columns, data=lines) for name, (columns, lines) in study_tables(report).items()
    }
    curves = {model: _known(curve) for model, curve in tuning_curves(study, report).items()}
    curves = {model: points for model, points in curves.items() if points}
    if curves:
        row["tuning_curves"] = wandb.plot.line_series(
            xs=[[at for at, _ in points] for points in curves.values()],
            ys=[[value for _, value in points] for points in curves.values()],
            keys=list(curves),
            title=f"Best validation {study.objective.metric} by trials",
            xname="trials of the model",
        )
    if report.page is not None and report.page.is_file():
        row["report"] = wandb.Html(str(report.page), inject=False)
    return row


def log_lineage(wandb: Any, run: Any, content: RunContent) -> None:
    """Draw what a run brought forth and what it was given: trial, best configuration, confirmation.

    W&B's `use_artifact` refuses offline runs and waits for the server; the record behind it does neither.
    """
    for one in content.logs:
        run.log_artifact(_configuration(wandb, one), aliases=["best"])
    for one in content.uses:
        try:
            run._log_artifact(_configuration(wandb, one), is_user_created=True, use_after_commit=True)
        except (AttributeError, TypeError):
            logger.warning("this version of wandb draws no lineage", exc_info=True)


def log_artifacts(wandb: Any, run: Any, study: StudyInfo, report: StudyReport) -> None:
    """Log the data by reference, and each model's best configuration and checkpoint."""
    run.log_artifact(_data(wandb, study))
    for model, folder in report.best.items():
        run.log_artifact(_model(wandb, study, report, model, folder), aliases=["best"])


def _known(curve: Iterable[float | None]) -> list[tuple[int, float]]:
    return [(at, value) for at, value in enumerate(curve, start=1) if value is not None]


def _configuration(wandb: Any, one: Configuration) -> Any:
    artifact = wandb.Artifact(one.name, type="configuration", metadata={"model": one.model, "found_by": one.found_by})
    with artifact.new_file("params.json") as file:
        json.dump(dict(one.params), file, sort_keys=True, indent=2)
    return artifact


def _data(wandb: Any, study: StudyInfo) -> Any:
    fingerprint = str(study.config.get("fingerprints", {}).get("data", ""))
    metadata = {"fingerprint": fingerprint, "task": study.config.get("task")}
    artifact = wandb.Artifact(f"{study.name}-data", type="dataset", metadata=metadata)
    with artifact.new_file("fingerprint.json") as file:
        json.dump({"fingerprint": fingerprint}, file)
    for split, path in study.data_paths.items():
        artifact.add_reference(path.resolve().as_uri(), name=split, checksum=False)
    return artifact


def _model(wandb: Any, study: StudyInfo, report: StudyReport, model: str, folder: Path) -> Any:
    artifact = wandb.Artifact(f"{study.name}-{model}", type="model", metadata=model_metadata(report, model))
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and ".partial" not in name:
            artifact.add_file(str(path), name=name, policy="immutable", skip_cache=True)
    return artifact
