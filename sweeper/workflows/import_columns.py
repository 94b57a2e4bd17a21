"""Which column of an imported table is what: the user's mapping first, then common names, else an error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sweeper.core.errors import InputError, Problem
from sweeper.core.objective import Goal
from sweeper.workflows.import_shapes import (
    LESS,
    MORE,
    PLAIN,
    TEST,
    TRAIN,
    VALIDATION,
    models_in_names,
    plain,
    reshaped,
    tall,
    words,
)
from sweeper.workflows.import_sources import PARAMS, RawTable
from sweeper.workflows.import_tables import FAILED

_NAMES: dict[str, tuple[str, ...]] = {
    "model": (
        *("model", "model_name", "architecture", "arch", "backbone", "network", "algorithm", "algo", "estimator"),
        *("classifier", "checkpoint", "pretrained_model", "model_name_or_path", "encoder", "system", "base_model"),
        *("model_id", "model_type", "pretrained", "language_model", "learner", "net", "method", "approach"),
    ),
    "trial_id": ("trial_id", "trial", "run_id", "run", "config_id", "trial_number", "number", "id"),
    "epoch": ("epoch", "epochs", "num_epochs", "training_iteration"),
    "state": ("state", "status", "trial_state"),
    "seed": ("seed", "random_seed", "random_state"),
    "config": ("config", "configuration", "kind"),
    "elapsed_seconds": (
        *("elapsed_seconds", "duration", "duration_seconds", "elapsed", "seconds", "runtime", "training_time"),
        *("train_time", "time_total_s", "time", "wall_time", "fit_time"),
    ),
    "train_loss": ("train_loss", "training_loss"),
    "validation_loss": ("validation_loss", "val_loss", "valid_loss", "eval_loss", "dev_loss"),
    "curve": ("curve", "learning_curve"),
    "reason": ("reason", "error_message"),
}
FIELDS = ("model", "value", "test", "metric", "params", *(name for name in _NAMES if name != "model"))
_ALIASES = {
    **dict.fromkeys(("validation", "val", "score", "validation_score"), "value"),
    **dict.fromkeys(("test_score", "test_value"), "test"),
    **dict.fromkeys(("trial", "id"), "trial_id"),
    **dict.fromkeys(("duration", "seconds"), "elapsed_seconds"),
    "learning_curve": "curve",
}
_UNSAID = {"metrics", "results", "best", "final", "mean", "avg", "average", "max", "min", "last", "summary"}
_DATA = ("dataset", "dataset_name", "data_set", "task", "task_name", "corpus", "benchmark")
_MOST_MODELS = 20
_PREFIXES = (PARAMS, "params_", "param.", "param_", "config.", "config/", "hparams.", "hyperparameters.", "hp_")
_OWN = {
    *("created", "user", "tags", "sweep", "notes", "hostname", "timestamp", "date", "datetime", "datetime_start"),
    *("datetime_complete", "name", "commit", "gpu", "node", "study_name", "experiment", "index", "number"),
    *(
        "source_file",
        "intermediate_values",
        "device_seconds",
        "started_at",
        "finished_at",
        "updated",
        "end_time",
        "start_time",
    ),
}


@dataclass(frozen=True)
class Columns:
    """By field: its column. ``params``: by hyperparameter, its column. ``metric`` and ``goal``: what ``value`` is."""

    fields: dict[str, str]
    params: dict[str, str]
    metric: str
    goal: Goal
    notes: tuple[str, ...]


def find_columns(raw: RawTable, mapping: Sequence[str], goal: Goal | None, place: str) -> Columns:
    """Return which column is what.

    Parameters
    ----------
    mapping:
        ``FIELD=COLUMN`` each; ``FIELD=`` says that there is none; ``metric=NAME`` names the metric;
        ``params=COLUMN,COLUMN`` names the hyperparameters.

    Raises
    ------
    InputError
        When a mapping names no field or column, or the model's or the score's column is unclear.
    """
    asked, problems = _asked(mapping, raw.columns)
    if problems:
        raise InputError(problems)
    finder = _Finder(raw, asked, place)
    fields = finder.find()
    if finder.problems:
        raise InputError(finder.problems)
    metric = asked.get("metric") or _metric(fields["value"])
    notes = [*raw.notes, *finder.notes]
    direction = goal or raw.goal or _direction(metric) or _direction(fields["value"])
    if direction is None:
        notes.append(f"Whether more or less {metric} is better was not said: more was taken; --goal minimize for less.")
    return Columns(fields, finder.params(fields), metric, direction or "maximize", tuple(notes))


def one_row_a_trial(raw: RawTable, mapping: Sequence[str]) -> list[str]:
    """Bring ``raw`` into one row a trial where it has a row a split, a row a metric or a column a model.

    Returns
    -------
    list of str
        The mapping, renamed where columns were.
    """
    asked = dict(item.split("=", 1) for item in mapping if "=" in item)
    if not asked.keys() & {"value", "validation", "val", "score", "curve"}:
        raw.rows, notes = reshaped(raw.rows)
        raw.notes += notes
    several = {
        field: asked[name].split(",")
        for name, field in (("value", "value"), ("validation", "value"), ("val", "value"), ("test", "test"))
        if "," in asked.get(name, "") and set(asked[name].split(",")) <= set(raw.columns)
    }
    columns = raw.columns
    if "value" in several:
        tests = several.get("test", [""] * len(several["value"]))
        groups = {
            value: {value: "validation score", **({test: "test score"} if test else {})}
            for value, test in zip(several["value"], tests, strict=False)
        }
        left = [item for item in mapping if item.split("=")[0] not in ("value", "validation", "val", "test", "model")]
        mapping = [*left, "model=model", "value=validation score", f"test={'test score' if any(tests) else ''}"]
    else:
        named = any(
            plain(name) in _NAMES["model"] or plain(_parameter(name) or "") in _NAMES["model"] for name in columns
        )
        groups = {} if named or "model" in asked or "model" in raw.fallback else models_in_names(columns)
    if groups:
        raw.rows = tall(raw.rows, groups)
        raw.notes.append(f"One column a model: {', '.join(groups)}.")
    return list(mapping)


def _asked(mapping: Sequence[str], columns: list[str]) -> tuple[dict[str, str], list[Problem]]:
    asked: dict[str, str] = {}
    problems = []
    for item in mapping:
        name, separator, column = item.partition("=")
        name = _ALIASES.get(name, name)
        if not separator or name not in FIELDS:
            rule = f"must be FIELD=COLUMN with a field of {', '.join(FIELDS)}"
            problems.append(Problem(f"--map {item}", rule, item, "correct the field"))
            continue
        wanted = column.split(",") if name == "params" and column else [column] if column and name != "metric" else []
        missing = [part for part in wanted if part not in columns]
        if missing:
            rule = f"must name one of the columns {', '.join(columns)}"
            problems.append(Problem(f"--map {item}", rule, ", ".join(missing), "correct the column"))
        asked[name] = column
    return asked, problems


class _Finder:
    """Guesses the fields that the user did not map; collects what is unclear."""

    def __init__(self, raw: RawTable, asked: dict[str, str], place: str) -> None:
        self._raw, self._asked, self._place = raw, asked, place
        self._plain: dict[str, str] = {}
        for name in raw.columns:
            if _parameter(name) is None:
                self._plain.setdefault(plain(name), name)
        self.problems: list[Problem] = []
        self.notes: list[str] = []

    def find(self) -> dict[str, str]:
        fields: dict[str, str | None] = {}
        fields["model"] = self._given("model") if "model" in self._asked else self._model()
        fields["value"] = self._given("value") if "value" in self._asked else self._value()
        if fields["value"] is not None:
            fields["test"] = self._given("test") if "test" in self._asked else self._test(fields["value"])
        used = {column for column in fields.values() if column}
        for name, common in _NAMES.items():
            if name in self._asked:
                fields[name] = self._given(name)
            elif name not in fields:
                present = [self._plain[word] for word in common if word in self._plain]
                free = [column for column in present if column not in used]
                fields[name] = free[0] if free else self._raw.fallback.get(name)
            if name == "config" and name not in self._asked and not self._is_config(fields[name]):
                fields[name] = None
            used |= {column for column in (fields[name],) if column}
        self._one_data_set({column for column in fields.values() if column})
        for name in ("model", "value"):
            if fields.get(name) is None and not self.problems:
                self._unclear(name, [], "must have a column")
        return {name: column for name, column in fields.items() if column}

    def _one_data_set(self, used: set[str]) -> None:
        """Scores of several data sets are no trials of one study."""
        asked = self._asked.get("params", "").split(",")
        for name in (self._plain[word] for word in _DATA if word in self._plain):
            values = sorted({str(row.get(name)) for row in self._raw.rows if row.get(name) is not None})
            if name not in used and name not in asked and len(values) > 1:
                remedy = f"take one with --where {name}={values[0]}, or name it in --map params= if it was tuned"
                self.problems.append(Problem(self._place, f"{name!r} must be one data set", ", ".join(values), remedy))

    def params(self, fields: dict[str, str]) -> dict[str, str]:
        """Return the hyperparameters' columns: those with a prefix, else all that are left and tell trials apart."""
        if "params" in self._asked:
            return {_parameter(name) or name: name for name in self._asked["params"].split(",") if name}
        used = set(fields.values())
        named = {_parameter(name): name for name in self._raw.columns if _parameter(name) and name not in used}
        if named:
            return {str(name): column for name, column in named.items()}
        return {name: name for name in self._raw.columns if name not in used and self._may_be_param(name)}

    def _may_be_param(self, name: str) -> bool:
        own = set(words(name))
        scored = own & (VALIDATION | TEST | TRAIN) and own & (LESS | MORE | set(PLAIN))
        values = [row.get(name) for row in self._raw.rows]
        scalar = all(value is None or isinstance(value, str | int | float | bool) for value in values)
        return scalar and not scored and not name.startswith("_") and plain(name) not in _OWN

    def _given(self, name: str) -> str | None:
        return self._asked[name] or None

    def _model(self) -> str | None:
        fallback = self._raw.fallback.get("model")
        if fallback and len({row.get(fallback) for row in self._raw.rows}) > 1:
            return fallback
        present = [self._plain[word] for word in _NAMES["model"] if word in self._plain]
        params = {plain(_parameter(name) or ""): name for name in self._raw.columns if _parameter(name)}
        present = present or [params[word] for word in _NAMES["model"] if word in params]
        if not present and fallback:
            return fallback
        if not present:
            present = self._groups_of_rows()
        if len(present) == 1 or (present and plain(_parameter(present[0]) or present[0]) == "model"):
            return present[0]
        self._unclear("model", present, "must be one column" if present else "must have a column")
        return None

    def _groups_of_rows(self) -> list[str]:
        """Return the text columns whose few values each stand in several rows: one of them may be the model."""
        found = []
        for name in self._plain.values():
            values = [row.get(name) for row in self._raw.rows]
            counts = Counter(value for value in values if isinstance(value, str))
            is_text = sum(counts.values()) == len(values) and plain(name) not in _OWN | set(_NAMES["state"])
            if is_text and 2 <= len(counts) <= _MOST_MODELS and min(counts.values()) > 1:
                found.append(name)
        if len(found) == 1:
            self.notes.append(f"No column is called model: {found[0]!r} was taken, because its values repeat.")
        return found

    def _value(self) -> str | None:
        numeric = [name for name in self._plain.values() if self._is_number(name)]
        parts = {name: set(words(name)) for name in numeric}
        found = [name for name in numeric if parts[name] & VALIDATION and not parts[name] & TEST]
        if len(found) > 1:
            found = [name for name in found if not parts[name] & LESS] or found
        if len(found) > 1:  # beside the last epoch's score there may be the best epoch's
            found = [name for name in found if "best" in parts[name]] or found
        if not found and "value" in self._raw.fallback:
            found = [self._raw.fallback["value"]]
        if not found:
            found = [self._plain[word] for word in PLAIN if self._plain.get(word) in numeric][:1]
        if not found:
            apart = TEST | TRAIN
            found = [name for name in numeric if parts[name] & (LESS | MORE) and not parts[name] & apart]
        if len(found) == 1:
            return found[0]
        self._unclear("value", found, "must be one column of validation scores")
        return None

    def _test(self, value: str) -> str | None:
        parts = {name: set(words(name)) for name in self._plain.values() if self._is_number(name)}
        found = [name for name in parts if parts[name] & TEST and name != value]
        if len(found) > 1:
            rest = set(words(value)) - VALIDATION
            same = [name for name in found if parts[name] - TEST == rest]
            if len(same) != 1:
                same = [name for name in found if parts[name] - TEST == rest - {"best"}]
            if len(same) != 1:
                self._unclear("test", found, "must be one column of test scores")
                return None
            found = same
        return found[0] if found else None

    def _is_number(self, column: str) -> bool:
        values = [row.get(column) for row in self._raw.rows]
        present = [v for v in values if v is not None and not (isinstance(v, str) and v.lower() in FAILED)]
        return bool(present) and {type(value) for value in present} <= {int, float}

    def _is_config(self, column: str | None) -> bool:
        values = {row.get(column) for row in self._raw.rows} if column else set()
        return bool(values & {"tuned", "default"}) and values <= {"tuned", "default", "search", "", None}

    def _unclear(self, name: str, candidates: list[str], rule: str) -> None:
        seen = ", ".join(candidates) if candidates else f"columns {', '.join(self._raw.columns)}"
        remedy = f"say which with --map {name}=COLUMN"
        if name == "test":
            remedy += ", or --map test= for none"
        if name == "model":
            remedy += ", give a file a model, or a column a model with --map value=COLUMN,COLUMN"
        self.problems.append(Problem(self._place, f"{name} {rule}", seen, remedy))


def _parameter(name: str) -> str | None:
    """Return the hyperparameter that a column's prefix says it is, else None."""
    for prefix in _PREFIXES:
        if name.startswith(prefix) and len(name) > len(prefix):
            return name.removeprefix(prefix)
    return None


def _metric(column: str) -> str:
    parts = [word for word in words(column) if word not in VALIDATION | _UNSAID]
    name = "_".join("accuracy" if word == "acc" else word for word in parts)
    return name if name and name not in (*PLAIN, "best") else "score"


def _direction(name: str) -> Goal | None:
    parts = set(words(name))
    if parts & LESS:
        return "minimize"
    return "maximize" if parts & MORE else None
