"""Several studies, run or gathered, as one leaderboard."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeper.core.errors import InputError, Problem
from sweeper.report.source import Source, read_source
from sweeper.report.suite import gather, sentences, summarise
from sweeper.report.suite_page import suite_markdown, suite_page
from sweeper.spec.load import load_study
from sweeper.spec.suite import SuiteEntry, SuiteSpec, load_suite
from sweeper.store.paths import ResultPaths, replace_file


@dataclass(frozen=True)
class SuiteResult:
    """Where the suite's files are and what they say: ``found`` is the content of ``suite.json``."""

    folder: Path
    found: dict[str, Any]

    @property
    def sentences(self) -> list[str]:
        """What may be said, the sentence that can be quoted first."""
        return sentences(self.found)


def run_suite(path: Path, output: Path | None = None, *, only_gather: bool = False) -> SuiteResult:
    """Run the studies of a suite that have not run yet, and write its leaderboard.

    Parameters
    ----------
    path:
        The suite file.
    output:
        Where ``index.html``, ``suite.md`` and ``suite.json`` go; None: ``suites/NAME`` beside the suite file.
    only_gather:
        Run nothing: every study must have its results.

    Raises
    ------
    InputError
        When the suite or a study is wrong, results are missing, or no model is common to all tasks.
    RunFailedError, StopRequested
        As `sweeper.run`; what is done is kept, and the same call goes on.
    """
    spec = load_suite(path)
    sources: dict[str, Source] = {}
    for place in _places(spec, only_gather=only_gather):
        source = read_source(place)
        entry = spec.studies[len(sources)]
        task = entry.task or source.manifest.name
        if task in sources:
            remedy = "give it a name of its own with `task`"
            raise InputError(Problem(str(path), "tasks must have different names", task, remedy))
        sources[task] = source
    found = {"name": spec.name, **summarise(gather(sources, spec.normalise))}
    folder = output or path.resolve().parent / "suites" / spec.name
    places = {task: source.paths.root for task, source in sources.items()}
    _write(folder / "suite.json", json.dumps(found, indent=2, allow_nan=False) + "\n")
    _write(folder / "suite.md", suite_markdown(spec.name, found))
    _write(folder / "index.html", suite_page(spec.name, found, places, folder))
    return SuiteResult(folder, found)


def _places(spec: SuiteSpec, *, only_gather: bool) -> list[Path]:
    """Return the result folder of each study, after running those that have to be."""
    studies = [load_study(entry.study, spec.overrides) if entry.study else None for entry in spec.studies]
    if only_gather:
        missing = [problem for entry in spec.studies if (problem := _missing(spec, entry)) is not None]
        if missing:
            raise InputError(missing)
    places = []
    for entry, study in zip(spec.studies, studies, strict=True):
        if study is None:
            places.append(Path(str(entry.results)))
        elif only_gather:
            places.append(_folder(spec, entry).root)
        else:
            from sweeper.workflows.sweep import run

            places.append(run(study).path)
    return places


def _folder(spec: SuiteSpec, entry: SuiteEntry) -> ResultPaths:
    if entry.results is not None:
        return ResultPaths(Path(entry.results))
    from sweeper.workflows.study import result_paths

    return result_paths(load_study(str(entry.study), spec.overrides))


def _missing(spec: SuiteSpec, entry: SuiteEntry) -> Problem | None:
    paths = _folder(spec, entry)
    if paths.manifest.exists():
        return None
    remedy = "run it, or leave out --gather" if entry.study else "correct the path"
    return Problem(str(entry.study or entry.results), "must have results", "none", remedy)


def _write(path: Path, text: str) -> None:
    replace_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))
