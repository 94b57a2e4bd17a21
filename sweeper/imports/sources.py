"""Reading what other tools wrote into rows: tables, Optuna storages, Ray Tune folders. No pickle is ever loaded."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sweeper.core.errors import InputError, Problem
from sweeper.core.objective import Goal
from sweeper.imports.tables import json_rows, read_text, table_rows, unpacked, with_numbers

FILE = "source file"
"""Column that holds the file's name where several are read together."""

PARAMS = "params."
"""Prefix of the columns that readers know to be hyperparameters."""

_SQLITE = b"SQLite format 3\0"


@dataclass
class RawTable:
    """Rows as read, columns by their names in the source.

    ``fallback`` names the column that stands for a field when no better one is found; ``goal`` is what the source says.
    """

    rows: list[dict[str, Any]]
    sha256: str
    goal: Goal | None = None
    fallback: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        """All columns, in the order in which they appear."""
        return list(dict.fromkeys(name for row in self.rows for name in row))


def read_raw(sources: Sequence[str], kind: str) -> RawTable:
    """Read ``sources`` as ``kind``, one of `FORMATS`; several, or a folder of tables, hold a model each.

    Raises
    ------
    InputError
        When one is not there, not of that kind, or holds no trial.
    """
    if kind not in FORMATS:
        raise InputError(Problem("--as", f"must be one of {', '.join(FORMATS)}", kind, "choose one of them"))
    paths = list(dict.fromkeys(path for source in sources for path in _paths(source, kind)))
    tables = {path: FORMATS[kind](path) for path in paths}
    for path, raw in tables.items():
        if not raw.rows:
            raise InputError(Problem(str(path), "must hold at least one trial", "none", "name another source"))
    if len(tables) == 1:
        return next(iter(tables.values()))
    goals = {raw.goal for raw in tables.values()}
    if len(goals) > 1:
        seen = ", ".join(f"{path.name} {raw.goal}" for path, raw in tables.items())
        raise InputError(Problem(str(paths[0]), "all files must have one direction", seen, "import them one by one"))
    names = _short_names(paths)
    rows = [{**row, FILE: names[path]} for path, raw in tables.items() for row in raw.rows]
    first = next(iter(tables.values()))
    notes = [*first.notes, f"{len(paths)} files were read together; where no column names the model, the file does."]
    return RawTable(rows, _sha256(paths), first.goal, {"model": FILE, **first.fallback}, notes)


def _paths(source: str, kind: str) -> list[Path]:
    """Return the files that a source names; Ray's is one folder."""
    path = Path(source.removeprefix("sqlite:///"))
    if "://" in str(source) and not source.startswith("sqlite:///"):
        raise InputError(
            Problem(source, "must be a local file, folder or sqlite:/// URL", source, "copy it here first")
        )
    if kind != "ray" and path.is_dir():
        ends = (f".{kind}", f".{kind}.gz", *((".tsv", ".txt", ".md") if kind == "csv" else ()))
        found = sorted(file for file in path.iterdir() if file.name.lower().endswith(ends))
        if not found:
            raise InputError(
                Problem(source, f"must hold files that end in {ends[0]}", "none", "correct the path or --as")
            )
        return found
    if not path.exists() or path.is_dir() != (kind == "ray"):
        rule = "must be a folder of Ray Tune trials" if kind == "ray" else "must be a file, or a folder of them"
        raise InputError(Problem(source, rule, "a file" if path.exists() else "nothing there", "correct the path"))
    return [path]


def _short_names(paths: Sequence[Path]) -> dict[Path, str]:
    """Return the files' names without their ends, with as many of their folders as tell them apart."""
    stems = [path.name.removesuffix(".gz").rsplit(".", 1)[0] for path in paths]
    folders = [path.resolve().parent.parts for path in paths]
    for depth in range(max(map(len, folders)) + 1):
        names = ["/".join([*parts[len(parts) - depth :], stem]) for parts, stem in zip(folders, stems, strict=True)]
        if len(set(names)) == len(names):
            return dict(zip(paths, names, strict=True))
    rule = "files must have names that tell them apart"
    raise InputError(Problem(str(paths[0]), rule, ", ".join(str(path) for path in paths[1:]), "rename one of them"))


def _csv(path: Path) -> RawTable:
    try:
        rows = [_flat(row) for row in unpacked(table_rows(read_text(path)))]
    except (ValueError, csv.Error, OSError, EOFError) as error:
        raise _damaged(path, "a table of delimited values", error) from None
    return RawTable(rows, _sha256([path]))


def _parquet(path: Path) -> RawTable:
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise _damaged(path, "a Parquet file", error) from None
    return _of_table(path, table)


def _of_table(path: Path, table: pa.Table) -> RawTable:
    twice = sorted({name for name in table.column_names if table.column_names.count(name) > 1})
    if twice:
        raise InputError(Problem(str(path), "columns must have different names", ", ".join(twice), "rename them"))
    return RawTable(with_numbers([_flat(row) for row in unpacked(table.to_pylist())]), _sha256([path]))


def _wandb(path: Path) -> RawTable:
    raw = _csv(path)
    for name, column in (("trial_id", "ID"), ("trial_id", "Name"), ("state", "State"), ("elapsed_seconds", "Runtime")):
        if column in raw.columns:
            raw.fallback.setdefault(name, column)
    return raw


def _jsonl(path: Path) -> RawTable:
    try:
        text = read_text(path)
    except (OSError, EOFError) as error:
        raise _damaged(path, "JSON lines", error) from None
    rows = json_rows(text, lambda line, rule, error: _damaged(Path(f"{path}:{line}"), rule, error))
    return RawTable(with_numbers([_flat(row) for row in unpacked(rows)]), _sha256([path]))


def _optuna(path: Path) -> RawTable:
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="sweeper-import-") as folder, path.open("rb") as file:
        is_sqlite = file.read(len(_SQLITE)) == _SQLITE
        copy = shutil.copy2(
            path, Path(folder) / "storage"
        )  # Optuna opens storages for writing; the source stays as it is
        try:
            storage: Any = (
                optuna.storages.RDBStorage(f"sqlite:///{copy}")
                if is_sqlite
                else optuna.storages.JournalStorage(JournalFileBackend(str(copy)))
            )
            studies = {study.study_name: study for study in optuna.get_all_study_summaries(storage)}
            loaded = {name: optuna.load_study(study_name=name, storage=storage) for name in studies}
            trials = {name: study.get_trials(deepcopy=False) for name, study in loaded.items()}
            directions = {name: [direction.name for direction in study.directions] for name, study in loaded.items()}
            if is_sqlite:
                storage.engine.dispose()
        except Exception as error:
            raise _damaged(path, "an Optuna journal file or SQLite storage", error) from None
    if not studies:
        raise _damaged(path, "an Optuna journal file or SQLite storage", "no study")
    several = [name for name, found in directions.items() if len(found) > 1]
    if several:
        raise InputError(
            Problem(str(path), "studies must have one objective", ", ".join(several), "export one objective as a table")
        )
    goals = {found[0].lower() for found in directions.values()}
    if len(goals) > 1:
        raise InputError(
            Problem(str(path), "all studies must have one direction", str(directions), "import them one by one")
        )
    rows = [_optuna_row(name, trial) for name, found in trials.items() for trial in found]
    goal: Goal = "minimize" if goals == {"minimize"} else "maximize"
    fallback = {"model": "study_name", "value": "value", "curve": "intermediate_values"}
    return RawTable(rows, _sha256([path]), goal, fallback)


def _optuna_row(study: str, trial: Any) -> dict[str, Any]:
    begun, ended = trial.datetime_start, trial.datetime_complete
    attributes = {name: value for name, value in trial.user_attrs.items() if not isinstance(value, dict | list)}
    return {
        **attributes,
        "study_name": study,
        "number": trial.number,
        "trial_id": f"{study}-{trial.number}",
        "state": trial.state.name,
        "value": trial.values[0] if trial.values else None,
        "duration": (ended - begun).total_seconds() if begun and ended else None,
        "intermediate_values": sorted(trial.intermediate_values.items()),
        **{PARAMS + name: value for name, value in trial.params.items()},
    }


def _ray(path: Path) -> RawTable:
    files = sorted(path.rglob("result.json"))
    rows: list[dict[str, Any]] = []
    for file in files:
        lines = []
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:  # a run that was killed leaves half a line
                continue
        params = file.with_name("params.json")
        config = json.loads(params.read_text()) if params.is_file() else (lines[-1].get("config", {}) if lines else {})
        common = {
            "experiment": file.parent.parent.name,
            "trial_id": str(file.parent.relative_to(path)),
            "ray_error": _last_line(file.with_name("error.txt")),
            **{PARAMS + name: value for name, value in _flat(config).items()},
        }
        for line in lines or [{}]:
            metrics = {name: value for name, value in _flat(line).items() if not name.startswith("config.")}
            rows.append({name: value for name, value in metrics.items() if name not in _RAY_OWN} | common)
    _ray_states(rows)
    fallback = {"model": "experiment", "epoch": "training_iteration", "elapsed_seconds": "time_total_s"}
    notes = ["Ray Tune trials that ended before the longest trial of their experiment are taken as stopped early."]
    return RawTable(rows, _sha256(files), None, fallback, notes)


def _ray_states(rows: list[dict[str, Any]]) -> None:
    """Say how each trial ended: Ray's folder names only errors, so that a short curve means early stopping."""
    last: dict[str, int] = {}
    longest: dict[str, int] = {}
    for row in rows:
        epoch = int(row.get("training_iteration") or 0)
        last[row["trial_id"]] = max(last.get(row["trial_id"], 0), epoch)
        longest[row["experiment"]] = max(longest.get(row["experiment"], 0), epoch)
    for row in rows:
        error = row.pop("ray_error")
        short = last[row["trial_id"]] < longest[row["experiment"]]
        row["state"] = "FAIL" if error is not None or not last[row["trial_id"]] else "PRUNED" if short else "COMPLETE"
        row["reason"] = error or ""


_RAY_OWN = {
    *("date", "timestamp", "pid", "hostname", "node_ip", "done", "trial_id", "experiment_id", "experiment_tag"),
    *("time_this_iter_s", "time_since_restore", "timesteps_since_restore", "iterations_since_restore", "warmup_time"),
    *("timesteps_total", "episodes_total", "should_checkpoint", "checkpoint_dir_name", "config"),
}


def _last_line(path: Path) -> str | None:
    if not path.is_file():
        return None
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else "error"


def _flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def _sha256(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _damaged(path: Path, rule: str, error: object) -> InputError:
    return InputError(Problem(str(path), f"must be {rule}", str(error)[:100], "check --as and the file"))


FORMATS: dict[str, Callable[[Path], RawTable]] = {
    "optuna": _optuna,
    "wandb": _wandb,
    "ray": _ray,
    "csv": _csv,
    "parquet": _parquet,
    "jsonl": _jsonl,
}
