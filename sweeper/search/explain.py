"""What a finished search has to say about its space: which hyperparameters mattered, and what led from default to best.

Both read COMPLETE trials alone: a stopped trial has no value at the full budget.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from scipy.stats import spearmanr

from sweeper.core.objective import Objective
from sweeper.core.space import Categorical, Params, Scalar, SearchSpace
from sweeper.search.encoding import Encoder
from sweeper.search.samplers import distribution

MIN_COMPLETE = 50  # PED-ANOVA wants at least five trials above its quantile of .1 (Optuna's documentation)
MIN_RELIABILITY = 0.5  # rank correlation below which a forest's predictions are not worth a figure
NUM_TREES = 100


@dataclass(frozen=True)
class Completed:
    """A COMPLETE trial: its active parameters and its validation score."""

    params: Params
    value: float


@dataclass(frozen=True)
class Flip:
    """One step of an ablation path: a parameter takes the best configuration's value.

    Parameters
    ----------
    name, before, after:
        Which one, and its values. What its condition switches on or off goes with it.
    predicted:
        The score that is predicted after this step.
    gain:
        How much better that is than the step before; positive is better, whatever the goal.
    """

    name: str
    before: Scalar
    after: Scalar
    predicted: float
    gain: float


@dataclass(frozen=True)
class Ablation:
    """The path from the default to the best configuration, by what a model of the trials predicts.

    Parameters
    ----------
    flips:
        In order: each time the parameter whose flip promises most.
    predicted_default:
        Where the path begins; it ends at the last flip's ``predicted``.
    measured_default, measured_best:
        What the two trials really scored.
    reliability:
        Spearman's rank correlation of predicted and real scores of trials that a tree has not seen.
    num_trials:
        What the model was made from.
    """

    flips: tuple[Flip, ...]
    predicted_default: float
    measured_default: float
    measured_best: float
    reliability: float
    num_trials: int

    @property
    def words(self) -> str:
        """What the figures are, for whoever reads them."""
        return (
            f"Predicted by a random forest of {self.num_trials} completed trials, not trained anew: rank correlation "
            f"{self.reliability:.2f} on trials that its trees had not seen. Each step takes over the one value of the "
            "best configuration that promises most; the order is greedy, and a small step may be noise."
        )


def importance(space: SearchSpace, trials: Sequence[Completed], objective: Objective) -> dict[str, float]:
    """Return how much each hyperparameter decided about reaching the best tenth of trials, the largest first.

    Conditional PED-ANOVA (Watanabe et al. 2023, arXiv 2304.10255; its extension to conditions, arXiv 2601.20800) as
    in Optuna, relative to what was sampled. Shares add up to 1. Empty below 50 completed trials, or where no
    parameter made a difference.
    """
    names = [p.name for p in space if not (isinstance(p, Categorical) and len(p.choices) == 1)]
    if len(trials) < MIN_COMPLETE or not names:
        return {}
    study = optuna.create_study(direction=objective.goal)
    known = {parameter.name: distribution(parameter) for parameter in space}
    study.add_trials(
        [
            optuna.trial.create_trial(
                params={name: trial.params[name] for name in known if name in trial.params},
                distributions={name: d for name, d in known.items() if name in trial.params},
                value=trial.value,
            )
            for trial in trials
        ]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    return {name: float(share) for name, share in found.items() if name in names and share > 0}


def ablation(
    space: SearchSpace, trials: Sequence[Completed], default: Completed, best: Completed, objective: Objective
) -> Ablation | None:
    """Return the path of single changes from ``default`` to ``best``, or None where too little is known for one.

    Training the steps in between would cost as many runs as there are parameters and give this model more effort than
    others; so they are predicted, and the prediction says how reliable it is. None below 50 completed trials, below a
    rank correlation of .5, or where the default is the best.
    """
    if len(trials) < MIN_COMPLETE or dict(default.params) == dict(best.params):
        return None
    from sklearn.ensemble import RandomForestRegressor  # slow to import, and rarely needed

    encoder = Encoder(space)
    losses = np.array([objective.loss(trial.value) for trial in trials])
    forest = RandomForestRegressor(NUM_TREES, oob_score=True, min_samples_leaf=2, random_state=0)

    def features(configurations: Sequence[Params]) -> NDArray[np.float64]:
        return encoder.features(encoder.units(configurations))

    forest.fit(features([trial.params for trial in trials]), losses)
    reliability = float(spearmanr(forest.oob_prediction_, losses).statistic)
    if not reliability >= MIN_RELIABILITY:
        return None

    def predict(configurations: Sequence[Params]) -> list[float]:
        rows = features(configurations).astype(
            np.float32
        )  # each tree by itself: the forest's own way costs 50 times more
        predicted: list[float] = np.mean(
            [tree.predict(rows, check_input=False) for tree in forest.estimators_], axis=0
        ).tolist()
        return predicted

    current = dict(default.params)
    loss = start = predict([current])[0]
    flips: list[Flip] = []
    while options := _flips(space, current, best.params):
        after, name = min(zip(predict(list(options.values())), options, strict=True))
        flips.append(Flip(name, current.get(name), options[name].get(name), objective.loss(after), loss - after))
        current, loss = options[name], after
    return Ablation(
        flips=tuple(flips),
        predicted_default=objective.loss(start),
        measured_default=default.value,
        measured_best=best.value,
        reliability=reliability,
        num_trials=len(trials),
    )


def _flips(space: SearchSpace, current: Params, best: Mapping[str, Scalar]) -> dict[str, dict[str, Scalar]]:
    """Return the configurations that one flip leads to, by the parameter flipped; conditions stay met."""
    found: dict[str, dict[str, Scalar]] = {}
    for parameter in space:
        name = parameter.name
        if name not in current or name not in best or current[name] == best[name]:
            continue
        params: dict[str, Scalar] = {}
        for other in space:
            if other.is_active(params):
                source = best if other.name == name or other.name not in current else current
                if other.name in source:
                    params[other.name] = source[other.name]
        found[name] = params
    return found
