"""sweeper's own search with its early stopping, on its lanes and with its ledger: WORK.json FOLDER."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from sweeper.engine.environment import prepare

prepare(own_ray=True)

from sweeper.engine.cluster import Connection  # noqa: E402
from sweeper.spec.load import load_study  # noqa: E402
from sweeper.workflows.study import provisional, settle  # noqa: E402


def main() -> None:
    from events import Events

    work, folder = Path(sys.argv[1]), Path(sys.argv[2])
    events = Events(folder)
    listed = json.loads(work.read_text())
    search = listed["search"]
    models = []
    for name, rates in search["learning_rates"].items():
        space: dict[str, Any] = {
            "parameters": {
                "learning_rate": {"type": "float", "low": rates[0], "high": rates[1], "log": True},
                "batch_size": {"type": "categorical", "choices": search["batch_sizes"]},
                "unfreezing": {"type": "categorical", "choices": search["schedules"]},
            },
            "default": {
                "learning_rate": (rates[0] * rates[1]) ** 0.5,
                "batch_size": search["batch_sizes"][0],
                "unfreezing": search["schedules"][0],
            },
        }
        path = folder / f"{name}.yaml"
        path.write_text(json.dumps(space))
        models.append({"name": name, "checkpoint": listed["checkpoints"][name], "space": str(path)})
    study_file = json.loads(work.with_name("study.yaml").read_text())
    study_file |= {"storage_path": str(folder / "results"), "models": models}
    study_file["search"] |= {"space": None, "num_trials": search["num_trials"], "max_epochs": listed["max_epochs"]}
    (folder / "study.yaml").write_text(json.dumps(study_file))
    with provisional(load_study(folder / "study.yaml")) as draft:
        study = settle(draft)
    with Connection() as connection:
        connection.begin()
        from sweeper.engine.messages import Measured, StepReport
        from sweeper.engine.tune import run_assignments
        from sweeper.store.ledger import Ledger
        from sweeper.store.state import StudyState
        from sweeper.workflows.book import Book
        from sweeper.workflows.conductors import resumed_search
        from sweeper.workflows.execute import study_lanes

        connection.wait()
        with Ledger.open(study.paths) as ledger, study_lanes(study) as lanes:
            state = StudyState.replay(ledger.events())
            book = Book(ledger, state, study.objective, 1, [])
            conductor = resumed_search(book, study.plan, study.spec.search, lambda: False, lanes.count)
            take = conductor.take

            def noted(report: StepReport) -> bool:
                if isinstance(report.outcome, Measured):
                    model = state.trials[report.trial_id].spec.model
                    events.add(model, report.outcome.measurement.metrics["accuracy"])
                return take(report)

            conductor.take = noted  # type: ignore[method-assign]
            run_assignments(lanes, conductor, scratch=study.paths.scratch, max_retries=0, epoch_timeout_seconds=600)


if __name__ == "__main__":
    main()
