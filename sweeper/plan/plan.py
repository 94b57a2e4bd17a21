"""The plan of a study: everything that determines its results, hashed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sweeper.core.budget import Budget
from sweeper.core.objective import Objective
from sweeper.core.seeds import confirmation_seed
from sweeper.core.space import Params, SearchSpace
from sweeper.spec.space import space_as_dict
from sweeper.spec.study import StudySpec

ALPHA = 0.05
_FEWEST_SEEDS = 6  # an exact two-sided sign-flip test needs six pairs for p < .05


@dataclass(frozen=True, kw_only=True)
class ModelPlan:
    """One model of the plan: its checkpoint, the hash of its weights, its space, its first trials after the default."""

    name: str
    checkpoint: str
    weights: str
    space: SearchSpace
    points: tuple[Params, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """Models x budget, seeds, and a hash of all that determines the results.

    ``content`` is what the hash is made of (JSON); storage, tracking, cluster and number of lanes are not in it.
    """

    name: str
    seed: int
    models: tuple[ModelPlan, ...]
    budget: Budget
    confirmation_seeds: tuple[int, ...]
    content: dict[str, Any]

    @property
    def plan_hash(self) -> str:
        """SHA-256 of the content in canonical JSON."""
        text = json.dumps(self.content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def make_plan(
    spec: StudySpec,
    *,
    objective: Objective,
    data_fingerprint: str,
    weights: Mapping[str, str],
    spaces: Mapping[str, SearchSpace],
    retention_fingerprint: str | None = None,
    points: Mapping[str, tuple[Params, ...]] | None = None,
    charged: Mapping[str, Any] | None = None,
) -> StudyPlan:
    """Make the plan of a study.

    Parameters
    ----------
    spec:
        The study as loaded.
    objective:
        The task's metric and direction.
    data_fingerprint:
        Hash of the prepared splits.
    retention_fingerprint:
        The same of the set that may be forgotten, where one is asked for.
    weights, spaces, points:
        By model name; ``points`` are first trials after the default.
    charged:
        What an earlier study spent on them, where they come from one.
    """
    asked = spec.confirm.num_seeds
    num_seeds = confirmation_seed_count(len(spec.models)) if asked == "auto" else int(asked)
    models = tuple(
        ModelPlan(
            name=m.name,
            checkpoint=m.checkpoint,
            weights=weights[m.name],
            space=spaces[m.name],
            points=(points or {}).get(m.name, ()),
        )
        for m in spec.models
    )
    seeds = tuple(confirmation_seed(spec.seed, index) for index in range(num_seeds))
    task = spec.task.model_dump(mode="json", exclude={"data": True, "retention": {"data"}})
    search = spec.search.model_dump(
        mode="json", exclude={"max_concurrent_trials", "space", "points_to_evaluate", "warm_start"}
    )
    training = spec.training.model_dump(
        mode="json", include={"num_workers", "precision", "micro_batch_size", "activation_cache"}
    )
    # Named only where they were asked for: studies that began before there were such settings stay the same.
    task = {
        key: value for key, value in task.items() if value is not None or key not in ("retention", "max_new_tokens")
    }
    if spec.training.strategy != "ddp":
        training["strategy"] = spec.training.strategy
    if spec.training.gradient_checkpointing:
        training["gradient_checkpointing"] = True
    if spec.training.packing:
        training["packing"] = True
    content = {
        "seed": spec.seed,
        "objective": {"metric": objective.metric, "goal": objective.goal},
        "task": task,
        "data_fingerprint": data_fingerprint,
        "models": [
            {"name": m.name, "checkpoint": m.checkpoint, "weights": m.weights, "space": space_as_dict(m.space)}
            | ({"points": [dict(point) for point in m.points]} if m.points else {})
            for m in models
        ],
        "search": search,
        "training": training,
        "confirm": {"seeds": list(seeds), "vary": list(spec.confirm.vary), "delta": spec.confirm.delta},
    }
    if retention_fingerprint is not None:
        content["retention_fingerprint"] = retention_fingerprint
    if charged:
        content["warm_start"] = dict(charged)
    return StudyPlan(
        name=spec.name,
        seed=spec.seed,
        models=models,
        budget=spec.search.budget,
        confirmation_seeds=seeds,
        content=content,
    )


def confirmation_seed_count(num_models: int) -> int:
    """Return the fewest paired seeds with which the exact sign-flip test can reach 5% for every pair after Holm.

    With n pairs its smallest two-sided p value is 2 ** (1 - n); Holm's first step asks for .05 / (number of pairs of
    models).
    """
    pairs = max(1, num_models * (num_models - 1) // 2)
    count = _FEWEST_SEEDS
    while 2.0 ** (1 - count) > ALPHA / pairs:
        count += 1
    return count


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Name what differs between two contents, as ``search.num_trials: 8, now 16``."""
    before, after = dict(_flat(old)), dict(_flat(new))
    return [
        f"{key}: {before.get(key, 'nothing')}, now {after.get(key, 'nothing')}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for index, item in enumerate(value):
            name = item.get("name", index) if isinstance(item, Mapping) else index
            yield from _flat(item, f"{prefix}.{name}")
    else:
        yield prefix, value
