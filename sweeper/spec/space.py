"""Search-space files: sweeper's own spelling and W&B's; presets by model family and task."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from sweeper.core.errors import InputError, Problem
from sweeper.core.space import Categorical, Float, Int, Parameter, Scalar, SearchSpace
from sweeper.spec.yaml import Document, read_yaml

HYPERPARAMETERS = (
    "learning_rate",
    "batch_size",
    "weight_decay",
    "warmup_ratio",
    "lr_scheduler_type",
    "max_grad_norm",
    "optimizer",
    "momentum",
    "dropout",
    "attention_dropout",
    "drop_path",
    "label_smoothing",
    "layer_decay",
    "unfreezing",
    "num_unfrozen_blocks",
    "epochs_per_stage",
    "head_fraction",
    "head_learning_rate",
    "lora_rank",
    "lora_alpha",
    "lora_dropout",
    "lora_learning_rate",
    "num_adapted_blocks",
    "num_reinitialised_blocks",
    "balance",
    "focal_gamma",
    "patience",
    "random_crop",
    "horizontal_flip",
    "mixup_alpha",
    "cutmix_alpha",
    "token_dropout",
    "token_deletion",
)
_KEYS = {"type", "low", "high", "log", "step", "choices", "when", "source"}
_WANDB_KEYS = {"distribution", "min", "max", "values", "value", "q"}
_WANDB_TYPES = {
    "uniform": ("float", False),
    "log_uniform_values": ("float", True),
    "log_uniform": ("float", True),  # bounds are exponents of e
    "q_uniform": ("int", False),  # in whole steps of q
    "int_uniform": ("int", False),
    "categorical": ("categorical", False),
    "constant": ("categorical", False),
}
_ON_ENCODERS = ("regression", "multi-label-classification")
_TOP = {"parameters", "default", "source", "family", "task"}
FAMILIES = {
    "bert": "bert",
    "roberta": "roberta",
    "xlm-roberta": "roberta",
    "camembert": "roberta",
    "deberta": "deberta",
    "deberta-v2": "deberta",
    "electra": "electra",
    "distilbert": "distilbert",
    "resnet": "resnet",
    "vit": "vit",
    "deit": "vit",
    "convnext": "convnext",
    "convnextv2": "convnext",
    "swin": "swin",
    "swinv2": "swin",
    "detr": "detr",
    "conditional_detr": "detr",
    "deformable_detr": "detr",
    "yolos": "detr",
    "rt_detr": "rt_detr",
    "rt_detr_v2": "rt_detr",
    "d_fine": "rt_detr",
}
"""Preset family by transformers ``model_type``; others take the task's ``generic`` preset."""


def preset_path(model_type: str, task: str, kind: str = "text") -> Path:
    """Return the preset of a model family and task; other tasks on encoders take those of classification.

    Parameters
    ----------
    model_type, task:
        As transformers and the study name them.
    kind:
        What the input is, ``text`` or ``image``.

    Raises
    ------
    InputError
        When there is no preset for the task: the study must name a space.
    """
    tasks = [task, f"{kind}-classification"] if task in _ON_ENCODERS else [task]
    for wanted in tasks:
        for family in (FAMILIES.get(model_type, "generic"), "generic"):
            path = _preset_folder() / f"{family}-{wanted}.yaml"
            if path.is_file():
                return path
    known = ", ".join(path.stem for path in sorted(_preset_folder().glob("*.yaml")))
    remedy = "name a search-space file under search.space"
    raise InputError(Problem("models", f"presets are {known}", f"{model_type} for {task}", remedy))


def _preset_folder() -> Path:
    package = Path(__file__).resolve().parent.parent
    inside = package / "search_spaces"  # in a wheel
    return inside if inside.is_dir() else package.parent / "search_spaces"


def load_space(
    path: str | Path, overrides: Mapping[str, Mapping[str, Any]] | None = None, without: Iterable[str] = ()
) -> SearchSpace:
    """Load and check a search-space file.

    Parameters
    ----------
    path:
        The YAML file.
    overrides:
        By parameter: keys to set, such as ``{"learning_rate": {"high": 1e-4}}``; ``default`` sets the default.
    without:
        Parameters to leave out: what a preset holds and the task cannot use.

    Raises
    ------
    InputError
        With every problem at once.
    """
    document = read_yaml(path)
    for name in without:
        for part in ("parameters", "default"):
            if isinstance(document.data, dict) and isinstance(document.data.get(part), dict):
                document.data[part].pop(name, None)
    loader = _Loader(document, overrides or {})
    return loader.load()


def space_as_dict(space: SearchSpace) -> dict[str, Any]:
    """Return a space as JSON: for the manifest, its hash and the report."""
    return {
        "parameters": {parameter.name: _parameter_as_dict(parameter) for parameter in space},
        "default": dict(space.default),
        "source": space.source,
    }


def _parameter_as_dict(parameter: Parameter) -> dict[str, Any]:
    when = {"when": {name: list(values) for name, values in parameter.when.items()}} if parameter.when else {}
    if isinstance(parameter, Categorical):
        return {"type": "categorical", "choices": list(parameter.choices), **when}
    kind = "int" if isinstance(parameter, Int) else "float"
    step = {"step": parameter.step} if isinstance(parameter, Int) and parameter.step != 1 else {}
    return {"type": kind, "low": parameter.low, "high": parameter.high, "log": parameter.log, **step, **when}


def space_from_dict(entry: Mapping[str, Any]) -> SearchSpace:
    """Return the space that `space_as_dict` wrote; an entry without ranges, as of an import, has no parameters."""
    parameters: list[Parameter] = []
    for name, fields in entry.get("parameters", {}).items():
        when = {parent: tuple(values) for parent, values in fields.get("when", {}).items()}
        if fields["type"] == "categorical":
            parameters.append(Categorical(name=name, choices=tuple(fields["choices"]), when=when))
        else:
            low, high, log = fields["low"], fields["high"], fields["log"]
            if fields["type"] == "int":
                parameters.append(Int(name=name, low=low, high=high, log=log, step=fields.get("step", 1), when=when))
            else:
                parameters.append(Float(name=name, low=low, high=high, log=log, when=when))
    return SearchSpace(
        parameters=tuple(parameters), default=dict(entry.get("default", {})), source=str(entry.get("source", ""))
    )


class _Loader:
    """Collects the problems of one space file."""

    def __init__(self, document: Document, overrides: Mapping[str, Mapping[str, Any]]) -> None:
        self._document = document
        self._overrides = overrides
        self._problems: list[Problem] = []

    def load(self) -> SearchSpace:
        data = self._document.data
        if not isinstance(data, dict) or not isinstance(data.get("parameters"), dict):
            self._add((), "must be a mapping with `parameters`", type(data).__name__, "see search_spaces/ for examples")
            raise InputError(self._problems)
        self._unknown((), data, _TOP)
        parameters = {}
        for name, entry in data["parameters"].items():
            parameter = self._parameter(str(name), entry)
            if parameter is not None:
                parameters[parameter.name] = parameter
        for name in self._overrides:
            if name not in data["parameters"]:
                self._add(("parameters",), "an override must name a parameter of the space", name, "correct the name")
        ordered = self._ordered(parameters, set(data["parameters"]))
        default = data.get("default", {})
        if not isinstance(default, dict):
            self._add(("default",), "must be a mapping", str(default), "give a value for each parameter")
            default = {}
        default = {**default, **{n: o["default"] for n, o in self._overrides.items() if "default" in o}}
        complete = self._default(ordered, parameters, default)
        if self._problems:
            raise InputError(self._problems)
        return SearchSpace(parameters=tuple(ordered), default=complete, source=self._source(data))

    # -- parameters ----------------------------------------------------------------------------------------

    def _parameter(self, name: str, entry: Any) -> Parameter | None:
        path = ("parameters", name)
        if name not in HYPERPARAMETERS:
            near = difflib.get_close_matches(name, HYPERPARAMETERS, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"known are {', '.join(HYPERPARAMETERS)}"
            self._add(path, "must be a hyperparameter that training knows", name, remedy)
            return None
        if not isinstance(entry, dict):
            if isinstance(entry, list):
                self._add(path, "a list is written {type: categorical, choices: [...]}", str(entry), "write it so")
                return None
            return Categorical(name=name, choices=(entry,))
        entry = {**entry, **{k: v for k, v in self._overrides.get(name, {}).items() if k != "default"}}
        self._unknown(path, entry, _KEYS | _WANDB_KEYS)
        entry = _from_wandb(entry)
        when = self._when(path, entry.get("when", {}))
        kind = entry.get("type") or ("categorical" if "choices" in entry else None)
        if kind == "categorical":
            return self._categorical(name, path, entry, when)
        if kind in ("float", "int"):
            return self._number(name, path, entry, when, kind)
        self._add((*path, "type"), "must be float, int or categorical", str(kind), "choose one of them")
        return None

    def _categorical(self, name: str, path: tuple[str, ...], entry: Any, when: Any) -> Parameter | None:
        choices = entry.get("choices")
        if not isinstance(choices, list) or not choices or not all(isinstance(c, Scalar) for c in choices):
            self._add((*path, "choices"), "must be a list of at least one plain value", str(choices), "list them")
            return None
        if len({(type(choice), choice) for choice in choices}) < len(choices):
            self._add((*path, "choices"), "must be different", str(choices), "remove the repetition")
            return None
        return Categorical(name=name, choices=tuple(choices), when=when)

    def _number(self, name: str, path: tuple[str, ...], entry: Any, when: Any, kind: str) -> Parameter | None:
        low, high, log = entry.get("low"), entry.get("high"), entry.get("log", False)
        fits = (int,) if kind == "int" else (int, float)
        for key, value in (("low", low), ("high", high)):
            if not isinstance(value, fits) or isinstance(value, bool) or value != value:
                self._add((*path, key), f"must be {'a whole' if kind == 'int' else 'a'} number", str(value), "give one")
                return None
        if low >= high:
            self._add((*path, "low"), "low must be below high", f"{low} and {high}", "swap or widen them")
            return None
        if not isinstance(log, bool):
            self._add((*path, "log"), "must be true or false", str(log), "write true or false")
            return None
        if log and low <= 0:
            self._add((*path, "low"), "a log range must begin above 0", str(low), "raise low or drop log")
            return None
        step = entry.get("step", 1)
        if kind == "float" and "step" in entry:
            self._add((*path, "step"), "only whole numbers have steps", str(step), "remove it, or use type int")
            return None
        if not isinstance(step, int) or isinstance(step, bool) or step < 1 or (log and step > 1):
            rule = "must be 1 on a log range" if log else "must be a whole number of at least 1"
            self._add((*path, "step"), rule, str(step), "correct it")
            return None
        if kind == "int":
            return Int(name=name, low=low, high=high, log=log, step=step, when=when)
        return Float(name=name, low=float(low), high=float(high), log=log, when=when)

    def _when(self, path: tuple[str, ...], when: Any) -> dict[str, tuple[Scalar, ...]]:
        if not isinstance(when, dict):
            self._add((*path, "when"), "must be a mapping of parameter to value", str(when), "write {unfreezing: full}")
            return {}
        return {str(name): tuple(value) if isinstance(value, list) else (value,) for name, value in when.items()}

    # -- between parameters --------------------------------------------------------------------------------

    def _ordered(self, parameters: Mapping[str, Parameter], named: AbstractSet[str]) -> list[Parameter]:
        """Return parents before children; report unknown parents, values that are no choices, and cycles.

        ``named`` are all parameters of the file, also those with mistakes of their own.
        """
        for name, parameter in parameters.items():
            for parent, values in parameter.when.items():
                place = ("parameters", name, "when", parent)
                if parent not in parameters and parent in named:
                    continue
                if parent not in parameters:
                    self._add(place, "a condition must name a parameter of the space", parent, "correct the name")
                    continue
                other = parameters[parent]
                wrong = [value for value in values if not other.contains(value)]
                if wrong:
                    self._add(place, f"must be a value that {parent} can take", str(wrong[0]), "correct it")
        ordered: list[Parameter] = []
        left = dict(parameters)
        while left:
            ready = [p for p in left.values() if not any(parent in left for parent in p.when)]
            if not ready:
                first = next(iter(left))
                names = ", ".join(left)
                self._add(("parameters", first, "when"), "conditions must not form a circle", names, "break it")
                return ordered
            ordered.extend(ready)
            for parameter in ready:
                del left[parameter.name]
        return ordered

    def _default(
        self, ordered: Iterable[Parameter], parameters: Mapping[str, Parameter], default: Mapping[str, Any]
    ) -> dict[str, Scalar]:
        """Check the default and complete it with fixed parameters."""
        for name in default:
            if name not in parameters and name in HYPERPARAMETERS and name not in self._document.data["parameters"]:
                self._add(("default", name), "must be a parameter of the space", name, "add it or remove it here")
            elif name not in HYPERPARAMETERS:
                self._add(("default", name), "must be a parameter of the space", name, "correct the name")
        complete: dict[str, Scalar] = {}
        for parameter in ordered:
            if not parameter.is_active(complete):
                continue
            name = parameter.name
            if name in default:
                if parameter.contains(default[name]):
                    complete[name] = default[name]
                else:
                    self._add(
                        ("default", name), "must lie in its range", str(default[name]), "move it or widen the range"
                    )
                    complete[name] = default[name]
            elif isinstance(parameter, Categorical) and len(parameter.choices) == 1:
                complete[name] = parameter.choices[0]
            else:
                self._add(("default",), f"must give {name}: it is active under the default", "nothing", f"add {name}")
        return complete

    # -- messages ------------------------------------------------------------------------------------------

    def _unknown(self, path: tuple[str, ...], entry: Mapping[Any, Any], known: set[str]) -> None:
        for key in entry:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                remedy = f"did you mean {near[0]}?" if near else f"known keys are {', '.join(sorted(known))}"
                self._add((*path, str(key)), "no such key", str(key), remedy)

    def _add(self, path: tuple[str, ...], rule: str, value: str, remedy: str) -> None:
        self._problems.append(Problem(self._document.place(path), rule, value, remedy))

    def _source(self, data: Mapping[str, Any]) -> str:
        own = [str(data["source"])] if data.get("source") else []
        entries = data["parameters"].items()
        return "; ".join(own + [f"{n}: {e['source']}" for n, e in entries if isinstance(e, dict) and e.get("source")])


def _from_wandb(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Translate W&B's spelling; keys of ours are kept."""
    found = {key: value for key, value in entry.items() if key in _KEYS}
    distribution = entry.get("distribution")
    if distribution in _WANDB_TYPES:
        found["type"], found["log"] = _WANDB_TYPES[distribution]
    elif distribution is not None:
        found["type"] = f"distribution {distribution}"
    for theirs, ours in (("min", "low"), ("max", "high"), ("values", "choices"), ("q", "step")):
        if theirs in entry:
            found[ours] = entry[theirs]
    if distribution == "log_uniform":
        bounds = {end: found[end] for end in ("low", "high") if isinstance(found.get(end), int | float)}
        found.update({end: math.exp(exponent) for end, exponent in bounds.items()})
    if "value" in entry:
        found["choices"] = [entry["value"]]
    if "type" not in found and "low" in found and "high" in found:
        whole = isinstance(found["low"], int) and isinstance(found["high"], int)
        found["type"] = "int" if whole else "float"
    if found.get("type") == "categorical":
        found.pop("log", None)
    return found
