"""Looking without running: the data check, the plan with its probe, and the status of a run."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sweeper.core.objective import Objective
from sweeper.core.trial import TrialKind, TrialRecord, TrialSpec, TrialState
from sweeper.data.checks import DataReport, Scan, check
from sweeper.data.clean import clean
from sweeper.data.prepare import prepare
from sweeper.models.load import load
from sweeper.plan.cost import ModelCost, Probe, estimate
from sweeper.search.schedulers import make_stopping
from sweeper.spec.study import StudySpec
from sweeper.store.ledger import Ledger
from sweeper.store.logs import log_of
from sweeper.store.manifest import read_manifest
from sweeper.store.paths import ResultPaths
from sweeper.store.state import StudyState
from sweeper.store.temporary import temporary_folder
from sweeper.tasks.registry import needs
from sweeper.train.loop import TrainData, train
from sweeper.train.options import TrainOptions
from sweeper.workflows.study import Study, provisional

PROBE_EPOCHS = 2  # the first one is slower: caches and allocators warm up


def check_data(spec: StudySpec) -> DataReport:
    """Check a study's data; nothing is written."""
    with temporary_folder() as folder:
        wanted = needs(spec.task)
        return check(prepare(spec.task, seed=spec.seed, folder=folder, drop_missing=True, **wanted))


def fix_data(spec: StudySpec) -> tuple[DataReport, list[Path]]:
    """Check a study's data and write a cleaned copy beside the original; return the findings and what was written.

    Raises
    ------
    InputError
        When the data are no local files, or a cleaned copy stands there already.
    """
    with temporary_folder() as folder:
        wanted = needs(spec.task)
        prepared = prepare(spec.task, seed=spec.seed, folder=folder, drop_missing=True, **wanted)
        scan = Scan(prepared)
        return scan.report(), clean(spec.task, scan)


@dataclass(frozen=True)
class PlanReport:
    """What a study will do and cost; ``costs`` per model, the hash that names it."""

    name: str
    plan_hash: str
    num_examples: dict[str, int]
    num_confirmation_seeds: int
    rungs: tuple[int, ...]
    costs: tuple[ModelCost, ...]
    num_workers: int

    def as_dict(self) -> dict[str, Any]:
        """JSON for machines: seconds are lane-seconds, device-hours count every worker of a lane."""
        models = []
        for cost in self.costs:
            entry = asdict(cost)
            if cost.lane_seconds is not None:
                expected, low, high = (seconds * self.num_workers / 3600 for seconds in cost.lane_seconds)
                entry["device_hours"] = {"expected": expected, "low": low, "high": high}
            models.append(entry)
        return {
            "name": self.name,
            "plan_hash": self.plan_hash,
            "num_examples": self.num_examples,
            "num_confirmation_seeds": self.num_confirmation_seeds,
            "rungs": list(self.rungs),
            "models": models,
        }

    def as_text(self) -> str:
        """A few lines for people."""
        splits = ", ".join(f"{split} {count}" for split, count in self.num_examples.items())
        lines = [f"{self.name}  plan {self.plan_hash[:12]}  examples: {splits}"]
        lines.append(f"rungs after epoch {', '.join(map(str, self.rungs)) or 'none'}")
        for cost in self.costs:
            line = (
                f"{cost.model}: {cost.num_trials} trials + {cost.num_confirmations} confirmation runs, "
                f"about {cost.expected_epochs:.0f} epochs, at most {cost.most_epochs}"
            )
            if cost.lane_seconds is not None:
                expected, low, high = cost.lane_seconds
                line += f"; {_time(expected)} of one lane ({_time(low)} to {_time(high)})"
            lines.append(line)
        return "\n".join(lines)


def plan_study(spec: StudySpec, *, probe: bool) -> PlanReport:
    """Plan a study, measuring two epochs of each model's default where ``probe``; nothing is written."""
    with provisional(spec) as study:
        probes = _probe(study) if probe else {}
        stopping = make_stopping(spec.search.scheduler, study.objective, spec.search.max_epochs)
        return PlanReport(
            name=spec.name,
            plan_hash=study.plan.plan_hash,
            num_examples=study.data.num_examples,
            num_confirmation_seeds=len(study.plan.confirmation_seeds),
            rungs=stopping.rungs,
            costs=tuple(estimate(study.plan, stopping.expected_epochs(spec.search.max_epochs), probes)),
            num_workers=spec.training.num_workers,
        )


def _probe(study: Study) -> dict[str, Probe]:
    """Train two epochs of each model's default in this process."""
    probes = {}
    for model in study.spec.models:
        pretrained = load(model, study.task.head)
        raw = {"train": study.data.train(), "validation": study.data.validation()}
        splits = {
            split: study.task.open(study.task.encode(table, pretrained.preprocessor), pretrained.preprocessor)
            for split, table in raw.items()
        }
        space = study.spaces[model.name]
        trial = TrialSpec(
            trial_id="probe",
            number=0,
            model=model.name,
            params=space.active(space.default),
            seed=study.spec.seed,
            max_epochs=max(PROBE_EPOCHS, study.spec.search.max_epochs),
        )
        run = train(
            trial,
            study.task,
            pretrained,
            TrainData(train=splits["train"], validation=splits["validation"]),
            TrainOptions(),
        )
        times = [next(run).elapsed_seconds for _ in range(PROBE_EPOCHS)]
        probes[model.name] = Probe(tuple(later - earlier for earlier, later in zip([0.0, *times], times, strict=False)))
    return probes


@dataclass(frozen=True)
class StatusReport:
    """Where a run stands."""

    name: str
    phase: str
    running_in: str
    models: dict[str, dict[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        """JSON for machines."""
        return asdict(self)

    def as_text(self) -> str:
        """A few lines for people."""
        lines = [f"{self.name}: {self.phase}" + (f", running in {self.running_in}" if self.running_in else "")]
        for model, facts in self.models.items():
            states = ", ".join(f"{count} {state.lower()}" for state, count in facts["states"].items())
            best = f"; best {facts['best']:.4g} ({facts['best_trial']})" if facts["best"] is not None else ""
            lines.append(f"{model}: {states or 'no trials yet'}; {facts['confirmed']} confirmed{best}")
        return "\n".join(lines)


def study_status(root: str | Path) -> StatusReport:
    """Read where a run stands, without disturbing it.

    Raises
    ------
    InputError
        When the folder holds no study.
    """
    paths = ResultPaths.at(root, purpose="readers")
    manifest = read_manifest(paths)
    state = StudyState.replay(Ledger.read(paths))
    objective = Objective(**manifest.content["objective"])
    models = {
        entry["name"]: _model_status([r for r in state.trials.values() if r.spec.model == entry["name"]], objective)
        for entry in manifest.content["models"]
    }
    held = log_of(paths).holder()
    paths.storage.obtain(paths.report)
    return StatusReport(
        name=manifest.name,
        phase=_phase(state, has_report=(paths.report / "index.html").is_file()),
        running_in=f"process {held['pid']} on {held['host']}" if held else "",
        models=models,
    )


def _model_status(records: list[TrialRecord], objective: Objective) -> dict[str, Any]:
    search = [r for r in records if r.spec.kind is TrialKind.SEARCH]
    done = [r for r in search if r.value is not None]
    best = min(done, key=lambda r: objective.loss(r.value or 0.0), default=None)
    confirmed = [r for r in records if r.spec.kind is TrialKind.CONFIRM and r.state is TrialState.COMPLETE]
    return {
        "states": dict(Counter(r.state.value for r in search)),
        "best": best.value if best else None,
        "best_trial": best.spec.trial_id if best else None,
        "confirmed": len(confirmed),
    }


def _phase(state: StudyState, *, has_report: bool) -> str:
    if state.frozen is None:
        return "search"
    if len(state.test_openings) < len(state.freezings):
        return "confirmation"
    left = [
        trial_id
        for trial_id in state.frozen
        if state.trials[trial_id].state is TrialState.COMPLETE and trial_id not in state.tested
    ]
    return "test" if left else "done" if has_report else "report"


def _time(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
