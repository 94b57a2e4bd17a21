"""Loading a study file: all problems at once, each with file, line and column; dotted overrides."""

from __future__ import annotations

import difflib
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML

from sweeper.core.errors import InputError, Problem
from sweeper.spec.space import load_space
from sweeper.spec.study import StudySpec
from sweeper.spec.yaml import Document, parse_yaml, read_yaml

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
M = TypeVar("M", bound=BaseModel)


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> StudySpec:
    """Load and check a study file.

    Parameters
    ----------
    path:
        The YAML file. Paths in it are relative to it and come back absolute.
    overrides:
        ``search.num_trials=8``, ``models.bert.space.learning_rate.high=1e-4``: dotted keys, a list's items by
        their name or index, values as in YAML.

    Raises
    ------
    InputError
        With every problem of the study file and of the space files it names.
    """
    document = read_yaml(path)
    if not isinstance(document.data, dict):
        kind = type(document.data).__name__
        raise InputError(Problem(document.place(()), "must be a mapping of keys", kind, "see `sweeper init`"))
    problems: list[Problem] = []
    data, sources = document.data, {}
    for override in overrides:
        try:
            sources[_apply(data, override)] = override
        except InputError as error:
            problems.extend(error.problems)
    try:
        spec = StudySpec.model_validate(data)
    except ValidationError as error:
        problems.extend(_problem(document, sources, data, dict(detail)) for detail in error.errors())
        _check_spaces(data, Path(path).parent, problems)
        raise InputError(problems) from None
    spec = _resolve(spec, Path(path).resolve().parent)
    _check_spaces(spec.model_dump(), Path(path).parent, problems)
    if problems:
        raise InputError(problems)
    return spec


def validate(model: type[M], document: Document) -> M:
    """Check a parsed file against its type.

    Raises
    ------
    InputError
        With every problem, each with its place in the file.
    """
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        found = [_problem(document, {}, document.data, dict(detail), model) for detail in error.errors()]
        raise InputError(found) from None


def dump_study(spec: StudySpec) -> str:
    """Return the study as YAML that `load_study` reads back to the same."""
    yaml = YAML(typ="rt", pure=True)
    yaml.default_flow_style = False
    yaml.width = 4096
    stream = io.StringIO()
    yaml.dump(spec.model_dump(by_alias=True, exclude_none=True, mode="json"), stream)
    return stream.getvalue()


def study_schema() -> dict[str, Any]:
    """Return the JSON schema of study files, for editors."""
    return StudySpec.model_json_schema(by_alias=True)


def _apply(data: Any, override: str) -> tuple[str | int, ...]:
    """Apply one override in place and return the path it set."""
    place = f"override {override}"
    key, separator, text = override.partition("=")
    if not separator or not all(key.split(".")):
        raise InputError(Problem(place, "must be written KEY.KEY=VALUE", override, "for example search.num_trials=8"))
    value = parse_yaml(text, place).data
    parts = key.split(".")
    if len(parts) > 4 and parts[0] == "models" and parts[2] == "space":
        parts[2] = "space_overrides"
    path: list[str | int] = []
    target = data
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        if isinstance(target, list):
            names = [item.get("name") if isinstance(item, dict) else None for item in target]
            at = (
                names.index(part)
                if part in names
                else int(part)
                if part.isdigit() and int(part) < len(target)
                else None
            )
            if at is None:
                known = ", ".join(str(name) for name in names)
                raise InputError(Problem(place, f"{part} must be one of {known}", part, "correct the name"))
            step: str | int = at
        elif isinstance(target, dict):
            step = part
            if not last and not isinstance(target.get(part), dict | list):
                target[part] = {}
        else:
            raise InputError(
                Problem(place, f"{'.'.join(parts[:index])} has no keys of its own", part, "shorten the key")
            )
        path.append(step)
        if last:
            target[step] = value
        else:
            target = target[step]
    return tuple(path)


def _problem(
    document: Document,
    sources: dict[Any, str],
    data: Any,
    detail: dict[str, Any],
    model: type[BaseModel] = StudySpec,
) -> Problem:
    """Turn one of pydantic's errors into a line of ours."""
    location = _location(data, detail["loc"])
    override = next((text for path, text in sources.items() if path == location[: len(path)]), None)
    place = document.place(location) if override is None else f"override {override}"
    kind, context = detail["type"], detail.get("ctx", {})
    value = re.sub(r"(?<=://)[^\s/@]+(?=@)", "…", str(detail.get("input")))  # no password in a message
    if kind == "extra_forbidden":
        known = _known_keys(location[:-1], model)
        near = difflib.get_close_matches(str(location[-1]), known, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"known keys are {', '.join(known)}"
        return Problem(place, "no such key", str(location[-1]), remedy)
    if kind == "missing":
        return Problem(place, "must be given", "nothing", f"add {location[-1]}")
    if kind == "literal_error":
        return Problem(place, f"must be {context['expected']}", value, "choose one of them")
    if kind == "value_error":
        return Problem(place, str(context["error"]), value, "correct it")
    message = detail["msg"]
    rule = message.replace("Input should be", "must be").replace("Value should", "must").rstrip(".")
    return Problem(place, rule[0].lower() + rule[1:], value, "correct it")


def _location(data: Any, location: Sequence[str | int]) -> tuple[str | int, ...]:
    """Keep the part of pydantic's location that names keys and indices: it also names the types it tried."""
    path: list[str | int] = []
    for index, part in enumerate(location):
        is_key = isinstance(data, dict) and (part in data or index == len(location) - 1)
        if is_key or (isinstance(data, list) and isinstance(part, int)):
            path.append(part)
            data = data.get(part) if isinstance(data, dict) else data[part] if part < len(data) else None  # type: ignore[operator]
    return tuple(path)


def _known_keys(path: Sequence[str | int], model: Any) -> list[str]:
    """Return the keys that are allowed at ``path``."""
    for part in path:
        if isinstance(part, int):
            continue
        annotation = next((f.annotation for name, f in model.model_fields.items() if part in (name, f.alias)), None)
        model = _model_in(annotation) or model
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part))), None)


def _expanded(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # the home folder of nobody
        return Path(text)


def _resolve(spec: StudySpec, base: Path) -> StudySpec:
    """Make paths absolute."""

    def at(text: str | None) -> str | None:
        return text if text is None or "://" in text else str((base / _expanded(text)).resolve())

    def is_there(text: str) -> bool:  # os.path, unlike pathlib, takes a name that is too long for one that is not there
        return os.path.exists(base / _expanded(text))  # noqa: PTH110

    def data_source(value: Any) -> Any:
        if not isinstance(value, str) or value.startswith(("builtin:", "memory:")) or "://" in value:
            return value
        looks_like_hub = _HUB_ID.fullmatch(value) and not Path(value).suffix
        return value if looks_like_hub and not is_there(value) else at(value)

    def checkpoint(value: str) -> str:
        is_path = is_there(value) or value.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(value)
        return str(at(value)) if is_path else value

    data = spec.task.data.model_copy(
        update={split: data_source(getattr(spec.task.data, split)) for split in ("train", "validation", "test")}
        | {"images": at(spec.task.data.images)}
    )
    retention = spec.task.retention
    if retention is not None:
        retention = retention.model_copy(update={"data": data_source(retention.data)})
    models = [
        model.model_copy(update={"checkpoint": checkpoint(model.checkpoint), "space": at(model.space)})
        for model in spec.models
    ]
    return spec.model_copy(
        update={
            "storage_path": at(spec.storage_path),
            "task": spec.task.model_copy(update={"data": data, "retention": retention}),
            "models": models,
            "search": spec.search.model_copy(
                update={"space": at(spec.search.space), "warm_start": at(spec.search.warm_start)}
            ),
        }
    )


def _check_spaces(data: Any, base: Path, problems: list[Problem]) -> None:
    """Add the problems of the space files that a study names."""
    models, search = data.get("models"), data.get("search")
    models = models if isinstance(models, list) else []
    named: list[tuple[Any, Any]] = [(search.get("space"), {})] if isinstance(search, dict) else []
    named += [(m.get("space"), m.get("space_overrides", {})) for m in models if isinstance(m, dict)]
    for space, overrides in named:
        if isinstance(space, str):
            try:
                load_space(base / space, overrides if isinstance(overrides, dict) else {})
            except InputError as error:
                problems.extend(problem for problem in error.problems if problem not in problems)
