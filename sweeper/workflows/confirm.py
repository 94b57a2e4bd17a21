"""Confirmation: which runs, and which of them gives the weights to export."""

from __future__ import annotations

from dataclasses import replace

from sweeper.core.seeds import confirmation_seed
from sweeper.core.selection import best_measurement, best_trial
from sweeper.core.trial import TrialKind, TrialRecord, TrialSpec, TrialState
from sweeper.search.effective import effective_key
from sweeper.store.state import StudyState
from sweeper.workflows.study import Study

CONFIGS = ("tuned", "default")


def search_winner(study: Study, state: StudyState, model: str) -> TrialRecord | None:
    """Return the best COMPLETE search trial of ``model`` by validation, or None when none completed."""
    return best_trial(
        (r for r in state.trials.values() if r.spec.model == model and r.spec.kind is TrialKind.SEARCH),
        study.objective,
    )


def more_runs(study: Study, state: StudyState, num_seeds: int) -> list[TrialSpec]:
    """List the confirmation runs of ``num_seeds`` further seeds: the same configurations, nothing chosen anew."""
    first = [state.trials[trial_id].spec for trial_id in state.freezings[0]]
    per_seed = [spec for spec in first if spec.seed == first[0].seed]
    index = len({state.trials[trial_id].spec.seed for trial_id in state.frozen or ()})
    runs: list[TrialSpec] = []
    for at in range(index, index + num_seeds):
        seed = confirmation_seed(study.plan.seed, at)
        runs.extend(
            replace(
                spec,
                trial_id=f"{spec.model}-{spec.config}-c{at:02d}",
                number=2 * at + CONFIGS.index(spec.config),
                seed=seed,
                split_seed=None if spec.split_seed is None else seed,
            )
            for spec in per_seed
        )
    return runs


def confirmation_runs(study: Study, state: StudyState) -> list[TrialSpec]:
    """List winner and default of each model x fresh seeds; the seeds are the same for all, so that runs pair.

    Where the winner would train as the default does, its runs count for both: see `StudyState.shared`. Runs of one
    seed stand together and models alternate, so that an interrupted confirmation is as complete as it can be for every
    model.
    """
    runs = []
    for index, seed in enumerate(study.plan.confirmation_seeds):
        for model in study.plan.models:
            winner = search_winner(study, state, model.name)
            if winner is None:
                continue
            space, max_epochs = study.spaces[model.name], study.plan.budget.max_epochs
            wanted = {"tuned": winner.spec.params, "default": space.active(space.default)}
            if len({effective_key(params, max_epochs) for params in wanted.values()}) == 1:
                del wanted["default"]
            for config, params in wanted.items():
                runs.append(
                    TrialSpec(
                        trial_id=f"{model.name}-{config}-c{index:02d}",
                        number=2 * index + CONFIGS.index(config),
                        model=model.name,
                        params=params,
                        seed=seed,
                        max_epochs=max_epochs,
                        kind=TrialKind.CONFIRM,
                        config=config,
                        split_seed=seed if "split" in study.spec.confirm.vary else None,
                    )
                )
    return runs


def export_run(study: Study, state: StudyState, model: str) -> TrialRecord | None:
    """Return the tuned confirmation run whose weights ``best/`` gets: the median one on validation.

    The median, not the best: the exported checkpoint should be as good as the report says, not a lucky seed.
    Never chosen by a test score, and not chosen again when seeds are added.
    """
    first = [state.trials[trial_id] for trial_id in state.freezings[0]] if state.freezings else []
    runs = [
        record
        for record in first
        if record.spec.model == model and record.spec.config == "tuned" and record.state is TrialState.COMPLETE
    ]

    def loss(record: TrialRecord) -> tuple[float, str]:
        best = best_measurement(record.measurements, study.objective)
        assert best is not None, "a COMPLETE run has measurements"
        return study.objective.loss(best.metrics[study.objective.metric]), record.spec.trial_id

    ordered = sorted(runs, key=loss)
    return ordered[(len(ordered) - 1) // 2] if ordered else None
