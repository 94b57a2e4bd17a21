"""A study put together: data, task, models, spaces and plan, checked before anything is spent or written."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sweeper.core.errors import InfeasibleError, InputError, Problem
from sweeper.core.objective import Objective
from sweeper.core.space import Categorical, SearchSpace
from sweeper.data.prepare import PreparedData, load_prepared, prepare, retention_folder
from sweeper.models.checkpoints import ModelInfo, inspect
from sweeper.plan.plan import StudyPlan, make_plan
from sweeper.spec.space import load_space, preset_path
from sweeper.spec.study import ModelSpec, StudySpec
from sweeper.store.manifest import read_manifest
from sweeper.store.paths import ResultPaths
from sweeper.store.temporary import temporary_folder
from sweeper.tasks.base import Packing, Task
from sweeper.tasks.labelled import not_applicable
from sweeper.tasks.registry import make_task, needs
from sweeper.train.options import TrainOptions
from sweeper.train.settings import Settings
from sweeper.workflows.retention import prepare_retention, retention_problems
from sweeper.workflows.starting import Start, make_start

logger = logging.getLogger("sweeper")


@dataclass(frozen=True, kw_only=True)
class Study:
    """Everything a run needs, validated."""

    spec: StudySpec
    data: PreparedData
    task: Task
    models: Mapping[str, ModelInfo]
    spaces: Mapping[str, SearchSpace]
    plan: StudyPlan

    @property
    def objective(self) -> Objective:
        """The validation metric and its direction."""
        return self.task.objective

    @property
    def paths(self) -> ResultPaths:
        """The result folder."""
        return result_paths(self.spec)


def result_paths(spec: StudySpec) -> ResultPaths:
    """Return ``<storage_path>/<name>``.

    Raises
    ------
    InputError
        When the storage is a URL of an unknown kind, or one that holds a password.
    """
    paths = ResultPaths.of(spec.storage_path, spec.name)
    paths.storage  # noqa: B018 - a wrong URL is to be found before anything is done
    return paths


def assemble(spec: StudySpec, data_folder: Path, in_memory: Mapping[str, Any] | None = None) -> Study:
    """Read data and model configurations, load the spaces and make the plan.

    Parameters
    ----------
    spec:
        The study as loaded.
    data_folder:
        Where the prepared splits lie or are to be written.
    in_memory:
        Splits given as ``datasets.Dataset`` instead of files, by name.

    Raises
    ------
    InputError
        With all problems of models and spaces at once, or of the data.
    """
    wanted = needs(spec.task)
    problems = _unsupported(spec)
    infos: dict[str, ModelInfo] = {}
    spaces: dict[str, SearchSpace] = {}
    for model in spec.models:
        try:
            infos[model.name] = inspect(model)
            spaces[model.name] = _space(spec, model, infos[model.name].model_type, wanted)
        except InputError as error:
            problems.extend(error.problems)
    problems.extend([*_impossible(spaces), *_without_peft(spaces), *retention_problems(spec, wanted)])
    start = Start()
    try:
        start = make_start(spec.search, spaces) if len(spaces) == len(spec.models) else start
    except InputError as error:
        problems.extend(error.problems)
    if problems:
        raise InputError(list(dict.fromkeys(problems)))
    data = prepare(spec.task, seed=spec.seed, folder=data_folder, in_memory=in_memory, **wanted)
    other = None
    if spec.task.retention is not None:
        other = prepare_retention(spec, data_folder, str(wanted["kind"]))
    task = make_task(spec.task, data.facts)
    _refuse_useless(task, spaces)
    if spec.training.packing:
        _refuse_packing(task, spaces)
    plan = make_plan(
        spec,
        objective=task.objective,
        data_fingerprint=data.fingerprint,
        retention_fingerprint=other,
        weights={name: info.fingerprint for name, info in infos.items()},
        spaces=spaces,
        points=start.points,
        charged=start.charged,
    )
    return Study(spec=spec, data=data, task=task, models=infos, spaces=spaces, plan=plan)


@contextmanager
def provisional(spec: StudySpec, in_memory: Mapping[str, Any] | None = None) -> Iterator[Study]:
    """Assemble a study in a temporary folder: wrong input leaves nothing behind, `settle` keeps the rest."""
    with temporary_folder() as folder:
        yield assemble(spec, folder / "data", in_memory)


def settle(study: Study) -> Study:
    """Move the prepared data into the result folder, where lanes read it, unless the same lie there."""
    home, storage = study.paths.data, study.paths.storage
    if not storage.obtain(home) or _fingerprints(home) != _fingerprints(study.data.folder):
        home.parent.mkdir(parents=True, exist_ok=True)
        partial = home.with_name(home.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(study.data.folder, partial)
        shutil.rmtree(home, ignore_errors=True)
        partial.rename(home)
        storage.publish(home)
    return Study(**{**vars(study), "data": load_prepared(home)})


def _fingerprints(folder: Path) -> list[str]:
    """Return those of the prepared data in a folder and, where one is asked for, of the set that may be forgotten."""
    return [load_prepared(home).fingerprint for home in (folder, retention_folder(folder)) if home.exists()]


def _unsupported(spec: StudySpec) -> list[Problem]:
    problems = []
    if spec.cluster.profile != "local":
        remedy = "sweeper launch STUDY, or use `local` or {address: HOST:PORT} of a running Ray"
        rule = "a study for a cluster is launched, not run here"
        problems.append(Problem("cluster.profile", rule, spec.cluster.profile, remedy))
    if "split" in spec.confirm.vary and spec.task.data.time is not None:
        rule = "splits by time cannot be drawn anew"
        problems.append(Problem("confirm.vary", rule, "split", "remove it, or task.data.time"))
    return problems


def _space(spec: StudySpec, model: ModelSpec, model_type: str, wanted: Mapping[str, Any]) -> SearchSpace:
    own = spec.search.space or model.space
    if own is not None:
        return load_space(own, model.space_overrides)
    preset = preset_path(model_type, spec.task.type, wanted["kind"])
    return load_space(preset, model.space_overrides, without=not_applicable(**wanted))


def _impossible(spaces: Mapping[str, SearchSpace]) -> list[Problem]:
    """Return a problem for each end of a range, and each choice, that training would not take."""
    problems = []
    for model, space in spaces.items():
        for parameter in space:
            ends = parameter.choices if isinstance(parameter, Categorical) else (parameter.low, parameter.high)
            for value in ends:
                try:
                    Settings.from_params({"learning_rate": 1e-3, "batch_size": 1, parameter.name: value})
                except InfeasibleError as error:
                    rule = str(error).removeprefix(f"{parameter.name}: ").rpartition(", got ")[0]
                    problems.append(Problem(f"models.{model} {parameter.name}", rule, repr(value), "narrow the range"))
    return problems


def _without_peft(spaces: Mapping[str, SearchSpace]) -> list[Problem]:
    """Return a problem for each model whose space asks for adapters where peft is not installed."""
    if find_spec("peft") is not None:
        return []
    remedy = "install the extra: pip install 'fairsweep[lora]'"
    return [
        Problem(f"models.{model} unfreezing", "lora needs peft", "not installed", remedy)
        for model, space in spaces.items()
        for parameter in space
        if parameter.name == "unfreezing" and parameter.contains("lora")
    ]


def _refuse_useless(task: Task, spaces: Mapping[str, SearchSpace]) -> None:
    """Refuse spaces that search what the task cannot act on."""
    problems = [
        Problem(f"models.{model} {name}", reason, "a range or value", "remove it from the space")
        for model, space in spaces.items()
        for name, reason in task.not_applicable.items()
        if any(parameter.name == name for parameter in space)
        and not (isinstance(found := space[name], Categorical) and set(found.choices) <= {0, "none", None})
    ]
    if problems:
        raise InputError(problems)


def _refuse_packing(task: Task, spaces: Mapping[str, SearchSpace]) -> None:
    """Refuse rows shared by examples where the task knows none, or a space searches what they cannot have."""
    place = "training.packing"
    if not isinstance(task, Packing):
        raise InputError(Problem(place, "only text generation packs examples", task.type, "remove it"))
    rule = "token_dropout needs a row for each example"
    problems = [
        Problem(place, rule, f"true, and token_dropout in the space of {model}", "remove one of the two")
        for model, space in spaces.items()
        if any(parameter.name == "token_dropout" for parameter in space)
    ]
    if problems:
        raise InputError(problems)


def train_options(study: Study, *, uses_gpu: bool) -> TrainOptions:
    """Return how training runs on this hardware; a precision of ``auto`` is what an earlier session settled it to."""
    precision: str = study.spec.training.precision
    if precision == "auto" and study.paths.url:  # no folder in which lanes on several hosts could agree
        precision = "bf16" if uses_gpu else "fp32"
    elif precision == "auto" and study.paths.manifest.exists():
        precision = read_manifest(study.paths).machine.get("precision", {}).get("chosen", precision)
    return TrainOptions(
        device="cuda" if uses_gpu else "cpu",
        precision=precision,
        micro_batch_size=study.spec.training.micro_batch_size,
        balance=study.spec.task.balance,
        strategy=study.spec.training.strategy,
        gradient_checkpointing=study.spec.training.gradient_checkpointing,
        packing=study.spec.training.packing,
    )
