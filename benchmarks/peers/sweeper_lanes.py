"""sweeper's own run of the work list, on its lanes and with its ledger: WORK.json FOLDER [OVERRIDE...]."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

from sweeper.engine.environment import prepare

prepare(own_ray=True)

from sweeper.core.trial import TrialSpec  # noqa: E402
from sweeper.engine.cluster import Connection  # noqa: E402
from sweeper.spec.load import load_study  # noqa: E402
from sweeper.workflows.study import provisional, settle  # noqa: E402


def main() -> None:
    work, folder = Path(sys.argv[1]), Path(sys.argv[2])
    listed = json.loads(work.read_text())
    spec = load_study(work.with_name("study.yaml"), [f"storage_path={folder / 'results'}", *sys.argv[3:]])
    with provisional(spec) as draft:
        study = settle(draft)
    with Connection() as connection:
        connection.begin()  # as `sweeper run` does: Ray comes up while the rest is imported
        from sweeper.engine.tune import run_assignments
        from sweeper.store.ledger import Ledger
        from sweeper.store.state import StudyState
        from sweeper.workflows.book import Book
        from sweeper.workflows.conductors import ConfirmConductor
        from sweeper.workflows.execute import study_lanes

        trials = [
            TrialSpec(
                trial_id=f"{trial['model']}-t{trial['index']:04d}",
                number=trial["index"],
                model=trial["model"],
                params=trial["params"],
                seed=trial["seed"],
                max_epochs=listed["max_epochs"],
            )
            for trial in listed["trials"]
        ]
        connection.wait()
        with Ledger.open(study.paths) as ledger, study_lanes(study, Counter(trial.model for trial in trials)) as lanes:
            state = StudyState.replay(ledger.events())
            conductor = ConfirmConductor(Book(ledger, state, study.objective, 1, []), trials, lambda: False)
            run_assignments(lanes, conductor, scratch=study.paths.scratch, max_retries=0, epoch_timeout_seconds=600)
    measured = [event for event in Ledger.read(study.paths) if event.kind == "measurement"]
    began = min(event.s - event.payload["elapsed_seconds"] for event in measured)
    found = {"in_trials_seconds": max(event.s for event in measured) - began, "num_lanes": lanes.count}
    (folder / "facts.json").write_text(json.dumps(found))
    for trial in trials:
        accuracy = state.trials[trial.trial_id].measurements[-1].metrics["accuracy"]
        (folder / f"{trial.number}.json").write_text(json.dumps(accuracy))


if __name__ == "__main__":
    main()
