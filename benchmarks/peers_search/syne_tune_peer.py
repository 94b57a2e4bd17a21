"""Syne Tune behind a pipe: run by the Python of an environment of its own, driven by `benchmarks/lcbench.py`.

One JSON object a line. ``{"new": {"method", "space", "max_epochs", "seed"}}`` begins a search (``method`` names a
class of `syne_tune.optimizer.baselines`, used with its own defaults), ``{"ask": N}`` is answered by ``{"params"}``,
``{"epoch", "trial", "value"}`` by ``{"stop"}``. Values are maximised.

    python3 -m venv ENV && ENV/bin/pip install 'syne-tune==0.16.*' huggingface_hub
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

logging.disable(logging.WARNING)

from syne_tune.backend.trial_status import Trial  # noqa: E402
from syne_tune.config_space import choice, lograndint, loguniform, randint, uniform  # noqa: E402
from syne_tune.optimizer import baselines  # noqa: E402


class Search:
    """One scheduler of Syne Tune with its trials."""

    def __init__(self, method: str, space: list[dict[str, Any]], max_epochs: int, seed: int) -> None:
        self._scheduler = getattr(baselines, method)(
            config_space={parameter["name"]: _domain(parameter) for parameter in space},
            metric="value",
            time_attr="epoch",
            max_t=max_epochs,
            do_minimize=False,
            random_seed=seed,
        )
        self._max_epochs = max_epochs
        self._trials: dict[str, Trial] = {}

    def ask(self, number: int) -> dict[str, Any]:
        """Suggest a configuration."""
        config = self._scheduler.suggest().config
        trial = Trial(number, config, datetime.now(UTC))
        self._trials[str(number)] = trial
        self._scheduler.on_trial_add(trial)
        return dict(config)

    def told(self, number: str, epoch: int, value: float) -> bool:
        """Take a value; whether the trial is stopped."""
        trial, result = self._trials[number], {"value": value, "epoch": epoch}
        decision = self._scheduler.on_trial_result(trial, result)
        if epoch >= self._max_epochs:
            self._scheduler.on_trial_complete(trial, result)
            return True
        return bool(decision == "STOP")


def _domain(parameter: dict[str, Any]) -> Any:
    if "choices" in parameter:
        return choice(parameter["choices"])
    kinds = {("int", False): randint, ("int", True): lograndint, ("float", False): uniform, ("float", True): loguniform}
    return kinds[parameter["type"], parameter["log"]](parameter["low"], parameter["high"])


def main() -> None:
    """Answer line by line until the pipe ends."""
    search: Search | None = None
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # nothing that a library prints may get among the answers
        for line in sys.stdin:
            request = json.loads(line)
            if "new" in request:
                search, answer = Search(**request["new"]), {}
            elif "ask" in request:
                assert search is not None
                answer = {"params": search.ask(request["ask"])}
            else:
                assert search is not None
                answer = {"stop": search.told(request["trial"], request["epoch"], request["value"])}
            print(json.dumps(answer, default=float), file=answers, flush=True)


if __name__ == "__main__":
    main()
