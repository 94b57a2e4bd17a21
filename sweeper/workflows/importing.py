"""Turning trials that somebody else ran into a result folder, as far as the data allow."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from sweeper import __version__
from sweeper.core.errors import InputError, Problem
from sweeper.core.objective import Goal, Objective
from sweeper.core.trial import TrialState
from sweeper.imports.columns import Columns, find_columns, one_row_a_trial, same_seeds
from sweeper.imports.shapes import keep, words
from sweeper.imports.sources import RawTable, read_raw
from sweeper.imports.tables import FAILED, MISSING
from sweeper.report.build import build_report
from sweeper.store.imported import ImportedConfirmation, ImportedTrial, write_imported
from sweeper.store.manifest import Manifest, write_manifest
from sweeper.store.paths import ResultPaths
from sweeper.store.tables import MEASUREMENTS

Row = dict[str, Any]

_STATES = {
    **dict.fromkeys(
        ("complete", "completed", "finished", "success", "succeeded", "done", "terminated", "ok", "true", "valid"),
        "COMPLETE",
    ),
    **dict.fromkeys(("pruned", "stopped", "early_stopped", "stopped_early"), "PRUNED"),
    **dict.fromkeys(
        (
            "fail",
            "failed",
            "crashed",
            "crash",
            "error",
            "errored",
            "killed",
            "diverged",
            "preempted",
            "timeout",
            "timed_out",
            "cancelled",
            "canceled",
            "aborted",
            "nan",
            "false",
        ),
        "FAIL",
    ),
    **dict.fromkeys(("infeasible", "oom", "out_of_memory"), "INFEASIBLE"),
    **dict.fromkeys(("running", "waiting", "pending", "queued", "paused", "starting"), "RUNNING"),
}
_CONFIGS = ("tuned", "default")
_SHARES = {"accuracy", "acc", "f1", "auc", "auroc", "precision", "recall", "error", "em", "iou"}


@dataclass(frozen=True)
class Import:
    """What an import made: the folder, the columns it read, what it noted, how much."""

    path: Path
    columns: Columns
    notes: tuple[str, ...]
    num_trials: dict[str, int]
    num_confirmations: int


def import_results(
    source: str | Sequence[str],
    kind: str,
    output: Path,
    mapping: Sequence[str] = (),
    goal: Goal | None = None,
    where: Sequence[str] = (),
) -> Import:
    """Read trials from ``source`` and write a result folder with its report.

    Parameters
    ----------
    source:
        A table (csv, parquet, jsonl; W&B's csv export), an Optuna storage (journal file, SQLite file or URL), or a
        folder of Ray Tune trials; several of them, or a folder of tables, for a file a model. A row is a trial, one
        epoch of a trial where an epoch and a trial are mapped, one split or one metric of a trial; or there is a column
        a model.
    kind:
        ``optuna``, ``wandb``, ``ray``, ``csv``, ``parquet`` or ``jsonl``.
    output:
        A new or empty folder.
    mapping:
        ``FIELD=COLUMN`` each, see `find_columns`; the rest is guessed from common names.
    goal:
        Direction of the validation score; None: from the source or the metric's name.
    where:
        ``COLUMN=VALUE`` each: only rows in which all hold.

    Raises
    ------
    InputError
        When the source cannot be read, the mapping is unclear, or a value is impossible; nothing is written then.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(Problem(str(output), "must be a new or empty folder", "it holds files", "name another folder"))
    sources = [source] if isinstance(source, str) else list(source)
    place = sources[0] if len(sources) == 1 else f"{sources[0]} and {len(sources) - 1} more"
    raw = read_raw(sources, kind)
    raw.rows = keep(raw.rows, where, place)
    mapping = one_row_a_trial(raw, mapping)
    columns = find_columns(raw, mapping, goal, place)
    if columns.metric in {name for name, _ in MEASUREMENTS}:
        rule, remedy = "must not be the name of a column of measurements.parquet", "add --map metric=NAME"
        raise InputError(Problem(f"{place} metric", rule, columns.metric, remedy))
    builder = _Builder(raw, columns, place)
    trials, confirmations = builder.build()
    paths = ResultPaths(output)
    output.mkdir(parents=True, exist_ok=True)
    write_imported(paths, columns.metric, trials, confirmations)
    manifest = _manifest(", ".join(sources), kind, raw, columns, trials, confirmations, builder.notes)
    manifest.name = output.resolve().name
    write_manifest(paths, manifest)
    build_report(output)
    counts = {model: sum(t.model == model for t in trials) for model in dict.fromkeys(t.model for t in trials)}
    return Import(output, columns, tuple(manifest.notes), counts, len(confirmations))


def _word(state: Any) -> str:
    """Return what a table says of a trial's state in the spelling of `_STATES`."""
    return re.sub(r"[^a-z]+", "_", str(state).lower()).strip("_").removeprefix("trialstate_")


class _Builder:
    """Makes trials and confirmation runs of rows; collects what is wrong."""

    def __init__(self, raw: RawTable, columns: Columns, place: str) -> None:
        self._rows, self._columns, self._place = raw.rows, columns, place
        self._objective = Objective(columns.metric, columns.goal)
        self._problems: list[Problem] = []
        self.notes = list(columns.notes)

    def build(self) -> tuple[list[ImportedTrial], list[ImportedConfirmation]]:
        groups = self._groups()
        searched: list[ImportedTrial] = []
        confirmed: list[ImportedConfirmation] = []
        used: set[str] = set()
        numbers: dict[str, int] = {}
        unfinished = 0
        for (config, model, key), rows in groups.items():
            trial = self._trial(model, numbers.get(model, 0), rows)
            if trial is None:
                unfinished += 1
            elif config in _CONFIGS:
                confirmed += self._confirmation(config, trial)
            else:
                trial.trial_id = key if key and key not in used else f"{model}-t{trial.number:04d}"
                used.add(trial.trial_id)
                numbers[model] = trial.number + 1
                searched.append(trial)
        self._same_unit(searched)
        if not searched and not self._problems:
            self._problem("must hold at least one trial that has ended", "none", "name another source")
        if self._problems:
            raise InputError(self._problems[:20])
        if unfinished:
            self.notes.append(f"{unfinished} trial(s) that had not ended were left out.")
        return searched, confirmed

    def _same_unit(self, trials: list[ImportedTrial]) -> None:
        """Refuse fractions of one model beside percentages of another, which is what a gap of ten times looks like."""
        if not set(words(self._columns.metric)) & _SHARES:
            return
        best: dict[str, float] = {}
        for trial in trials:
            if trial.value is not None:
                best[trial.model] = max(best.get(trial.model, 0.0), trial.value)
        shares = [model for model, value in best.items() if value <= 1]
        others = [value for value in best.values() if value > 1]
        if shares and others and min(others) > 10 * max(best[model] for model in shares):
            rule = f"{self._columns.metric} must be in one unit, fractions or percentages"
            self._problem(rule, f"fractions for {', '.join(shares)} only", "convert one of them in the source")
        tests = [trial.test for trial in trials if trial.test is not None]
        if tests and best and (max(tests) <= 1) != (max(best.values()) <= 1) and max(*tests, *best.values()) > 2:
            rule = "validation and test scores must be in one unit, fractions or percentages"
            self._problem(
                rule, f"at best {max(best.values()):g} and {max(tests):g}", "convert one of them in the source"
            )

    def _groups(self) -> dict[tuple[str, str, str], list[Row]]:
        """Rows by configuration, model and trial: several rows are the epochs of one trial."""
        groups: dict[tuple[str, str, str], list[Row]] = {}
        nameless = 0
        repeated = not self._columns.rows_are_trials and same_seeds(self._rows, self._columns)
        configurations: dict[str, int] = {}
        for index, row in enumerate(self._rows):
            model, config = self._get(row, "model"), str(self._get(row, "config") or "")
            if model is None:
                nameless += 1
                continue
            trial = self._get(row, "trial_id")
            if repeated:
                trial = configurations.setdefault(json.dumps([model, self._params(row)]), len(configurations))
            if config in _CONFIGS:
                trial = f"{trial}-{self._get(row, 'seed')}"
            groups.setdefault((config, str(model), f"row {index}" if trial is None else str(trial)), []).append(row)
        if nameless:
            self.notes.append(f"{nameless} row(s) without a model were left out.")
        self._average(groups)
        self._refuse_doubled(groups)
        return groups

    def _average(self, groups: dict[tuple[str, str, str], list[Row]]) -> None:
        """Replace rows of one trial and epoch that differ in their seed by their mean."""
        counts = []
        for key, rows in groups.items():
            by_epoch: dict[Any, list[Row]] = {}
            for row in rows:
                by_epoch.setdefault(self._get(row, "epoch"), []).append(row)
            seeds = [[self._get(row, "seed") for row in same] for same in by_epoch.values()]
            if max(map(len, seeds)) > 1 and all(len(set(found)) == len(found) and None not in found for found in seeds):
                groups[key] = [self._mean(same) for same in by_epoch.values()]
                counts.append(max(map(len, seeds)))
        if counts:
            span = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
            self.notes.append(
                f"{len(counts)} configurations were run with {span} seeds each: a trial's scores are the means over "
                "them, its time their sum. `--map trial_id=` takes each row as a trial."
            )

    def _mean(self, rows: list[Row]) -> Row:
        """Return one row of several seeds: those that have ended. One without a score leaves the trial without one.

        A seed that failed fails the trial, as one without a score does.
        """
        states = {id(row): _STATES.get(_word(self._get(row, "state")), "COMPLETE") for row in rows}
        rows = [row for row in rows if states[id(row)] != "RUNNING"] or rows
        mean = {**next((row for row in rows if states[id(row)] in ("FAIL", "INFEASIBLE")), rows[0])}
        for name in ("value", "test", "train_loss", "validation_loss", "elapsed_seconds"):
            column = self._columns.fields.get(name)
            if column is not None:
                read = self._seconds if name == "elapsed_seconds" else partial(self._number, name=name)
                values = [value for row in rows if (value := read(row)) is not None]
                whole = len(values) == len(rows)
                mean[column] = sum(values) / (1 if name == "elapsed_seconds" else len(rows)) if whole else None
        mean[self._columns.fields["seed"]] = None
        return mean

    def _refuse_doubled(self, groups: dict[tuple[str, str, str], list[Row]]) -> None:
        doubled = [
            f"{len(rows)} rows of {model} {key}"
            for (_, model, key), rows in groups.items()
            if len(rows) > 1 and len({self._get(row, "epoch") for row in rows}) < len(rows)
        ]
        if doubled:
            rule = f"a trial ({self._columns.fields['trial_id']!r}) must have one row, one an epoch, or one a seed"
            seen = doubled[0] + (f", and {len(doubled) - 1} more trials" if len(doubled) > 1 else "")
            remedy = (
                "map another trial_id (`--map trial_id=` takes each row as a trial), the epoch or seed, or keep some "
                "--where"
            )
            self._problem(rule, seen, remedy)

    def _trial(self, model: str, number: int, rows: list[Row]) -> ImportedTrial | None:
        """Return the trial, or None where it has not ended."""
        last = rows[-1]
        curve = self._curve(rows)
        best = min(
            curve,
            key=lambda p: (self._objective.loss(p["value"]), p["validation_loss"] or 0.0, p["epoch"]),
            default=None,
        )
        state = self._state(last, best is not None)
        if state is None:
            return None
        seconds = [value for value in (self._seconds(row) for row in rows) if value is not None]
        reason = str(self._get(last, "reason") or "")
        if state is TrialState.FAIL and best is None and not reason:
            said = self._get(last, "value")
            reason = str(said) if isinstance(said, str) else f"no finite {self._columns.metric}"
        is_curve = len(rows) > 1 or "curve" in self._columns.fields
        epochs = len(curve) if is_curve else self._number(last, "epoch")
        return ImportedTrial(
            trial_id="",
            number=number,
            model=model,
            state=state,
            value=best["value"] if best else None,
            test=self._test(best, rows, is_curve=len(rows) > 1),
            epochs=int(epochs) if epochs is not None else None,
            best_epoch=best["epoch"] if best and (is_curve or epochs is not None) else None,
            elapsed_seconds=max(seconds, default=None),
            seed=self._int(last, "seed"),
            reason=reason,
            params=self._params(last),
            curve=[point for point in curve if is_curve or epochs is not None],
        )

    def _curve(self, rows: list[Row]) -> list[Row]:
        """Return the epochs with a finite validation score."""
        points = []
        for index, row in enumerate(rows, start=1):
            listed = self._get(row, "curve")
            if isinstance(listed, list) and listed:
                pairs = [p if isinstance(p, list | tuple) else (at, p) for at, p in enumerate(listed, start=1)]
                shift = 1 - min(int(at) for at, _ in pairs)  # some count epochs from 0
                points += [self._point(int(at) + max(0, shift), value, {}) for at, value in pairs if _finite(value)]
                final = self._number(row, "value")
                if final is not None and final not in [point["value"] for point in points]:
                    points = [self._point(len(pairs), final, row)]  # the list is not of the score: do not mix them
            else:
                value, epoch = self._number(row, "value"), self._number(row, "epoch")
                if value is not None:
                    points.append(self._point(int(epoch) if epoch is not None else index, value, row))
        return points

    def _point(self, epoch: int, value: float, row: Row) -> Row:
        losses = {name: self._number(row, name) for name in ("train_loss", "validation_loss")}
        return {"epoch": epoch, "value": float(value), "elapsed_seconds": self._seconds(row), **losses}

    def _test(self, best: Row | None, rows: list[Row], *, is_curve: bool) -> float | None:
        if best is None or "test" not in self._columns.fields:
            return None
        chosen = [row for row in rows if not is_curve or self._number(row, "epoch") == best["epoch"]]
        if not chosen:
            return None
        by_epoch = self._get(chosen[-1], "test")
        if isinstance(by_epoch, list):
            at = best["epoch"] - 1
            return float(by_epoch[at]) if at < len(by_epoch) and _finite(by_epoch[at]) else None
        return self._number(chosen[-1], "test")

    def _state(self, row: Row, has_value: bool) -> TrialState | None:
        given = self._get(row, "state")
        word = _word(given)
        if given is not None and word not in _STATES:
            known = ", ".join(_STATES)
            self._problem(f"{self._columns.fields['state']} must be one of {known}", str(given), "map another state")
            return TrialState.FAIL
        state = _STATES[word] if given is not None else "COMPLETE"
        if state == "RUNNING":
            return None
        return TrialState.FAIL if state == "COMPLETE" and not has_value else TrialState(state)

    def _confirmation(self, config: str, trial: ImportedTrial) -> list[ImportedConfirmation]:
        if trial.seed is None:
            self._problem("a confirmation run must have a seed", f"{config} {trial.model}", "map seed=COLUMN")
            return []
        if trial.state is not TrialState.COMPLETE:
            return []
        scores = {"validation": trial.value, "test": trial.test}
        return [
            ImportedConfirmation(trial.model, config, trial.seed, split, value, trial.elapsed_seconds)
            for split, value in scores.items()
            if value is not None
        ]

    def _params(self, row: Row) -> Row:
        found = {}
        for name, column in self._columns.params.items():
            value = row.get(column)
            if value is None or (isinstance(value, float) and not math.isfinite(value)):
                continue
            found[name] = value if isinstance(value, str | int | float | bool) else json.dumps(value, default=str)
        return found

    def _get(self, row: Row, name: str) -> Any:
        column = self._columns.fields.get(name)
        return row.get(column) if column is not None else None

    def _number(self, row: Row, name: str) -> float | None:
        """Return a finite number or None; text is a problem."""
        value = self._get(row, name)
        if value is None or value == "":
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            text = str(value).strip().removesuffix("%").strip()
            if text.lower() in MISSING | FAILED:
                return None
            try:
                value = float(text)
            except ValueError:
                self._problem(f"{self._columns.fields[name]} must hold numbers", str(value), f"map another {name}")
                return None
        return float(value) if math.isfinite(value) else None

    def _int(self, row: Row, name: str) -> int | None:
        value = self._number(row, name)
        return None if value is None else int(value)

    def _seconds(self, row: Row) -> float | None:
        value = self._get(row, "elapsed_seconds")
        if isinstance(value, str):
            match = re.fullmatch(r"(?:(\d+) days? )?(\d+):(\d\d):(\d\d(?:\.\d+)?)", value.strip())
            if match:  # as pandas writes a time difference
                days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
                return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
        if hasattr(value, "total_seconds"):
            return float(value.total_seconds())
        return self._number(row, "elapsed_seconds")

    def _problem(self, rule: str, value: str, remedy: str) -> None:
        problem = Problem(self._place, rule, value, remedy)
        if problem not in self._problems:
            self._problems.append(problem)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _manifest(
    source: str,
    kind: str,
    raw: RawTable,
    columns: Columns,
    trials: Sequence[ImportedTrial],
    confirmations: Sequence[ImportedConfirmation],
    notes: Sequence[str],
) -> Manifest:
    models = list(dict.fromkeys(trial.model for trial in trials))
    counts = [sum(trial.model == model for trial in trials) for model in models]
    seeds = sorted({run.seed for run in confirmations})
    space = {"parameters": {}, "default": {}, "source": "not known: imported; trials.parquet holds what was tried"}
    mapped = {**columns.fields, **({"params": ", ".join(columns.params.values())} if columns.params else {})}
    content = {
        "objective": {"metric": columns.metric, "goal": columns.goal},
        "task": {"type": "imported"},
        "models": [{"name": model, "checkpoint": "", "weights": "", "space": space} for model in models],
        "search": {
            "num_trials": max(counts),
            "max_epochs": max((trial.epochs or 0 for trial in trials), default=0),
            "sampler": "unknown",
            "scheduler": {"type": "unknown"},
        },
        "confirm": {"seeds": seeds, "vary": ["seed"] if seeds else []},
        "source": raw.sha256,
    }
    return Manifest(
        name="",
        plan_hash=hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(),
        content=content,
        versions={"sweeper": __version__, "python": platform.python_version(), "pyarrow": pa.__version__},
        data={"fingerprint": None, "classes": [], "counts": {}, "source": None},
        seeds={"study": None, "confirmation": seeds},
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        notes=list(notes),
        imported={"source": source, "format": kind, "sha256": raw.sha256, "columns": mapped},
    )
