"""The manifest: what a study is (plan, versions, data, seeds) and each opening of its test split."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sweeper.core.errors import InputError, Problem
from sweeper.store.paths import ResultPaths, replace_file

SCHEMA = 1


@dataclass
class Manifest:
    """The content of ``manifest.json``.

    Parameters
    ----------
    content:
        Everything that determines the results: the study's plan, from which ``plan_hash`` is made.
    versions:
        Of sweeper, Python and the packages that compute.
    data:
        Fingerprint, class counts and notes of the prepared splits; ``trivial`` scores of the test split, once known.
    test_openings:
        One entry per opening of the test split: when, why, how many runs.
    accepted_changes:
        Differences that a resume was told to accept.
    checkpoints:
        By model: ``model_type`` and ``licence`` of its checkpoint, as far as known.
    costs:
        By model: what using its confirmed checkpoint costs, see `sweeper.train.inference`.
    retention:
        By tested run, where the study asks for it: ``model``, ``config``, ``seed``, ``schedule``, ``metric``,
        ``before``, ``after``; see `sweeper.train.retention`.
    search_ends:
        By model whose search ended before its number of trials was reached: why.
    code:
        Fingerprint of sweeper's own source, and of a task's own module, with which the study began.
    imported:
        For trials that sweeper did not run: ``source``, ``format``, ``sha256``, ``columns``; else empty.
    """

    name: str
    plan_hash: str
    content: dict[str, Any]
    versions: dict[str, str]
    data: dict[str, Any]
    seeds: dict[str, Any]
    created_at: str
    machine: dict[str, Any] = field(default_factory=dict)
    test_openings: list[dict[str, Any]] = field(default_factory=list)
    accepted_changes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    checkpoints: dict[str, dict[str, str]] = field(default_factory=dict)
    costs: dict[str, dict[str, Any]] = field(default_factory=dict)
    search_ends: dict[str, str] = field(default_factory=dict)
    retention: list[dict[str, Any]] = field(default_factory=list)
    code: str = ""
    imported: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA


def write_manifest(paths: ResultPaths, manifest: Manifest) -> None:
    """Write the manifest; readers see the old one or the new one."""
    text = json.dumps(asdict(manifest), indent=2, allow_nan=False) + "\n"
    replace_file(paths.manifest, lambda partial: partial.write_text(text))
    paths.storage.publish(paths.manifest)


def read_manifest(paths: ResultPaths) -> Manifest:
    """Read the manifest.

    Raises
    ------
    InputError
        When it is missing, is not JSON, or was written by another schema.
    """
    place = f"{paths.place}/{paths.manifest.name}"
    if not paths.storage.obtain(paths.manifest):
        remedy = "name the folder of a study that has run"
        raise InputError(Problem(place, "a result folder must hold it", "no such file", remedy))
    try:
        fields = json.loads(paths.manifest.read_text())
    except ValueError as error:
        raise InputError(Problem(place, "must be JSON", str(error), "restore it from a backup")) from None
    if not isinstance(fields, Mapping) or fields.get("schema") != SCHEMA:
        value = str(fields.get("schema")) if isinstance(fields, Mapping) else type(fields).__name__
        raise InputError(Problem(place, f"schema must be {SCHEMA}", value, "use the version of sweeper that wrote it"))
    try:
        return Manifest(**fields)
    except TypeError as error:
        raise InputError(Problem(place, "its keys must be the known ones", str(error), "restore it")) from None
