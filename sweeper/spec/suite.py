"""A suite file: several studies, one leaderboard."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sweeper.core.errors import InputError, Problem
from sweeper.spec.load import validate
from sweeper.spec.study import Name
from sweeper.spec.yaml import read_yaml


class SuiteEntry(BaseModel):
    """One study of a suite: a study file, or the result folder of a study that has run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    study: str | None = Field(None, description="study file; run where it has no results yet")
    results: str | None = Field(None, description="result folder, in the place of a study file")
    task: str | None = Field(None, description="the task's name in the suite; None: the study's name")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        """Take a plain path for what it is."""
        if not isinstance(value, str):
            return value
        return {"study": value} if value.endswith((".yaml", ".yml")) else {"results": value}

    @model_validator(mode="after")
    def _one(self) -> SuiteEntry:
        if (self.study is None) == (self.results is None):
            raise ValueError("must name either a study file or a result folder")
        return self


class SuiteSpec(BaseModel):
    """Several studies that share models, and how their scores are put on one scale."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    schema_version: Literal[1] = Field(1, alias="schema")
    name: Name
    studies: list[SuiteEntry] = Field(min_length=1)
    overrides: list[str] = Field(default_factory=list, description="for every study file, such as search.num_trials=8")
    normalise: Literal["none", "range"] = Field(
        "none", description="range: by task, 0 is the lowest and 1 the highest mean of any model, tuned or default"
    )


def load_suite(path: str | Path) -> SuiteSpec:
    """Load a suite file; its paths are relative to it and come back absolute.

    Raises
    ------
    InputError
        With every problem and its place.
    """
    document = read_yaml(path)
    if not isinstance(document.data, dict):
        kind = type(document.data).__name__
        raise InputError(Problem(document.place(()), "must be a mapping of keys", kind, "name and studies are needed"))
    spec = validate(SuiteSpec, document)
    base = Path(path).resolve().parent
    entries = [
        entry.model_copy(
            update={
                key: str(base / value) for key in ("study", "results") if (value := getattr(entry, key)) is not None
            }
        )
        for entry in spec.studies
    ]
    return spec.model_copy(update={"studies": entries})
