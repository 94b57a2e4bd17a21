"""Search strategies on a recorded fine-tuning space with conditional unfreezing schedules.

    python benchmarks/recorded_space.py --seeds 20 --json OUT

The space is that of `examples/quickstart`; `record_space.py` trained two small encoders to the end at the default and
at random configurations of it. What lies between the recorded ones is predicted by extremely randomised trees (Geurts
et al. 2006), the logit of the metric after each epoch at once: the nearest recorded configuration would be one of few
in so many dimensions, and a smooth surrogate would favour searchers that assume smoothness. ``fit`` in the report says
how far the trees can be believed: Spearman's correlation and R² of predicted final values, by ten-fold
cross-validation. Methods are compared by it only where R² is at least 0.5 and Spearman's correlation at least 0.7
(``ranks_methods``): where more is explained than is not. A configuration that diverged is a curve at 0.

Methods and options are those of `lcbench.py`; a task is one of the two models. Regret: final value of the best of
20,000 random configurations minus the best value seen so far, in points. Peers are not told of warm-up and unfreezing
events; sweeper judges no trial before they lie behind.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from scipy.special import expit, logit
from scipy.stats import spearmanr
from search_methods import Grid, load_known, publish, run
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.model_selection import cross_val_predict

from sweeper.core.objective import Objective
from sweeper.core.space import Params, SearchSpace
from sweeper.core.trial import Measurement, TrialSpec
from sweeper.search.encoding import Encoder
from sweeper.spec.space import load_space
from sweeper.train.settings import Settings
from sweeper.train.unfreezing import stages

HERE = Path(__file__).parent
EXAMPLE = HERE.parent / "examples" / "quickstart"
RECORDED = HERE / "data" / "digits.parquet"
MODELS = ("resnet", "vit")
EPOCHS, METRIC = 9, "macro_f1"
NUM_TREES, LEAF, NUM_DRAWS = 100, 2, 20_000
NUM_BLOCKS = {"resnet": 4, "vit": 3}
METHODS = "random,tpe,random_asha,ray,sweeper"
LEAST = 0.005  # of the metric, so that its logit is finite
LEAST_R2, LEAST_SPEARMAN = 0.5, 0.7


class Recorded:
    """Learning curves of one model."""

    max_epochs = EPOCHS
    objective = Objective(metric=METRIC, goal="maximize")

    def __init__(self, path: Path, model: str) -> None:
        rows = [row for row in pq.read_table(path).to_pylist() if row["model"] == model]
        self.space = load_space(str(EXAMPLE / "space.yaml"))
        self._model = model
        self._encoder = Encoder(self.space)
        self._points = self._features([json.loads(row["params"]) for row in rows])
        curves = [row["metric"] if len(row["metric"]) == EPOCHS else [0.0] * EPOCHS for row in rows]
        self._values = logit(np.clip(curves, LEAST, 1 - LEAST))
        self._trees = self._new_trees().fit(self._points, self._values)

    def _new_trees(self) -> ExtraTreesRegressor:
        return ExtraTreesRegressor(NUM_TREES, min_samples_leaf=LEAF, random_state=0, n_jobs=1)

    def _features(self, configurations: Sequence[Params]) -> np.ndarray:
        return self._encoder.features(self._encoder.units(configurations))

    def fit(self) -> dict[str, float]:
        """Say how well final values of left-out trials are predicted."""
        predicted = cross_val_predict(self._new_trees(), self._points, self._values, cv=10)[:, -1]
        actual = self._values[:, -1]
        unexplained = float(((predicted - actual) ** 2).sum() / ((actual - actual.mean()) ** 2).sum())
        r2, spearman = 1 - unexplained, float(spearmanr(predicted, actual).statistic)
        return {
            "trials": len(actual),
            "spearman": spearman,
            "r2": r2,
            "ranks_methods": r2 >= LEAST_R2 and spearman >= LEAST_SPEARMAN,
            "best_recorded": float(expit(actual.max())),
        }

    def reference(self) -> float:
        """Return the best final value of 20,000 random configurations."""
        rows = np.random.default_rng(0).random((NUM_DRAWS, self._encoder.num_parameters))
        return float(expit(self._trees.predict(self._encoder.features(rows))[:, -1].max()) * 100)

    def effective(self, trial: TrialSpec) -> Mapping[str, Any]:
        """Return the unfreezing events of a trial."""
        found = stages(Settings.from_params(trial.params), NUM_BLOCKS[self._model], EPOCHS)
        return {"stages": [{"from_epoch": stage.from_epoch} for stage in found]}

    def curve(self, trial: TrialSpec) -> Iterator[Measurement]:
        """Return what training would measure, in percent."""
        values = expit(self._trees.predict(self._features([trial.params]))[0]) * 100
        for epoch, value in enumerate(values.tolist(), 1):
            yield Measurement(
                epoch=epoch, train_loss=0, validation_loss=0, metrics={METRIC: value}, elapsed_seconds=float(epoch)
            )

    def for_peers(self) -> WithoutEvents:
        """Return the same without what sweeper knows of warm-up and unfreezing."""
        return WithoutEvents(self)


class WithoutEvents:
    """The same curves; the warm-up goes by another name, and no unfreezing events are read back."""

    max_epochs = EPOCHS
    objective = Recorded.objective
    name, other = "warmup_ratio", "warmup"

    def __init__(self, recorded: Recorded) -> None:
        self._recorded = recorded
        parameters = tuple(replace(p, name=self.other) if p.name == self.name else p for p in recorded.space.parameters)
        default = {self.other if key == self.name else key: value for key, value in recorded.space.default.items()}
        self.space = SearchSpace(parameters=parameters, default=default)

    def effective(self, trial: TrialSpec) -> Mapping[str, Any]:  # noqa: ARG002
        return {}

    def curve(self, trial: TrialSpec) -> Iterator[Measurement]:
        params = {self.name if key == self.other else key: value for key, value in trial.params.items()}
        return self._recorded.curve(replace(trial, params=params))

    def reference(self) -> float:
        return self._recorded.reference()

    def for_peers(self) -> WithoutEvents:
        return self


@cache
def load(path: str, model: str) -> Recorded:
    """Return the curves of a model, fitted once a process."""
    return Recorded(Path(path), model)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all methods on both models and all seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recorded", type=Path, default=RECORDED)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--budgets", default="10,20,50")
    parser.add_argument("--lanes", type=int, default=4)
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=math.inf, help="start no further search after so long")
    parser.add_argument("--resume", action="store_true", help="run only what the file of --json does not hold")
    parser.add_argument("--again", default="", help="with --resume: methods to run anew")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    grid = Grid(
        load=load,
        where=str(options.recorded),
        tasks=options.models.split(","),
        methods=options.methods.split(","),
        seeds=options.seeds,
        budgets=[int(n) for n in options.budgets.split(",")],
        lanes=options.lanes,
        unit=f"points of {METRIC} on validation",
    )
    known = load_known(options.json, resume=options.resume, without=options.again.split(","))
    result = run(grid, known, options.processes, options.seconds, options.json)
    result["fit"] = {model: load(str(options.recorded), model).fit() for model in grid.tasks}
    publish(result, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
