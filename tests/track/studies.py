"""Made-up result folders with a ledger, and what a `wandb` folder holds of them."""

from __future__ import annotations

import json
import random

from sweeper.core.objective import Objective
from sweeper.core.trial import Measurement, TrialKind, TrialSpec, TrialState
from sweeper.store.ledger import Ledger
from sweeper.store.manifest import Manifest, write_manifest
from sweeper.store.paths import ResultPaths
from sweeper.store.state import StudyState, encode_measurement, encode_spec
from sweeper.store.tables import write_tables
from sweeper.track.wandb_files import run_files

OBJECTIVE = Objective("accuracy", "maximize")


def manifest(name="demo", data=None):
    content = {
        "seed": 0,
        "objective": {"metric": "accuracy", "goal": "maximize"},
        "task": {"type": "text-classification"},
        "models": [{"name": m, "checkpoint": f"org/{m}", "weights": "w" * 16} for m in ("bert", "minilm")],
        "search": {"max_epochs": 4, "num_trials": 4, "scheduler": {"type": "asha", "reduction_factor": 2}},
    }
    facts = {"fingerprint": "f" * 16, "source": {"train": str(data)} if data else {}}
    return Manifest(name, "p" * 64, content, {"sweeper": "0.1.0"}, facts, {}, "now", code="c" * 64)


def prepare(root, name="demo", study="{}"):
    """Write what stands before the first event; ``study`` is the tracking section as JSON."""
    paths = ResultPaths(root)
    root.mkdir(parents=True, exist_ok=True)
    (root / "train.csv").write_text("text,intent\n")
    write_manifest(paths, manifest(name, root / "train.csv"))
    paths.study.write_text(
        f"schema: 1\nname: {name}\ntask: {{type: text-classification, data: {{train: 'builtin:x'}}}}\n"
        f"models: [{{name: bert, checkpoint: bert}}]\ntracking: {study}\n"
    )
    return paths


def measurement(epoch, value):
    metrics = {"accuracy": value, "f1": value / 2}
    return Measurement(
        epoch=epoch, train_loss=1 / epoch, validation_loss=2 / epoch, metrics=metrics, elapsed_seconds=epoch * 1.5
    )


def story(num_trials=4, seed=0, confirm=True):
    """Return the events of a study in order, trials interleaved: ``(kind, payload)``."""
    rng = random.Random(seed)
    lives = []
    for model in ("bert", "minilm"):
        for number in range(num_trials):
            spec = TrialSpec(
                trial_id=f"{model}-t{number:04d}", number=number, model=model, seed=number, max_epochs=4,
                params={"learning_rate": 10 ** -rng.uniform(2, 5), "unfreezing": rng.choice(["full", "head_only"])},
            )  # fmt: skip
            state = TrialState.COMPLETE if number == 0 else rng.choice(list(TrialState)[2:])
            lives.append(life(spec, state, rng))
    events = [("study_opened", {"plan_hash": "p" * 64, "reason": "run"}), *interleave(lives, rng)]
    if not confirm:
        return events
    asked, best = {p["trial_id"]: p for kind, p in events if kind == "trial_asked"}, {}
    for payload in (p for kind, p in events if kind == "trial_ended" and p["value"] is not None):
        model = asked[payload["trial_id"]]["model"]
        if model not in best or payload["value"] > best[model]["value"]:
            best[model] = payload
    lives = []
    for model in ("bert", "minilm"):
        for index, config in enumerate(("tuned", "default")):
            spec = TrialSpec(
                trial_id=f"{model}-{config}-c00", number=0, model=model, seed=99 + index, max_epochs=4,
                params=asked[best[model]["trial_id"] if config == "tuned" else f"{model}-t0000"]["params"],
                kind=TrialKind.CONFIRM, config=config,
            )  # fmt: skip
            lives.append(life(spec, TrialState.COMPLETE, rng))
    ids = [one[0][1]["trial_id"] for one in lives]
    events += [one.pop(0) for one in lives]
    events += [("confirmation_frozen", {"trial_ids": ids}), *interleave(lives, rng)]
    events += [("test_opened", {"reason": "confirmation", "num_runs": len(ids)})]
    for name in ids:
        events.append(
            ("tested", {"trial_id": name, "metrics": {"accuracy": 0.7}, "num_examples": 9, "elapsed_seconds": 0.1})
        )
    return events


def life(spec, state, rng):
    epochs = {TrialState.COMPLETE: 4, TrialState.PRUNED: 2, TrialState.FAIL: 1}.get(state, 0)
    name, values = spec.trial_id, [rng.random() for _ in range(epochs)]
    events = [
        ("trial_asked", {**encode_spec(spec), "attributes": {}}),
        ("segment_started", {"trial_id": name, "attempt": 0, "from_epoch": 0, "node": "n1",
                             "effective": {"learning_rate": spec.params["learning_rate"]}}),
    ]  # fmt: skip
    for epoch, value in enumerate(values, start=1):
        events.append(
            ("measurement", {"trial_id": name, "attempt": 0, **encode_measurement(measurement(epoch, value))})
        )
    done = state is TrialState.COMPLETE
    events.append(
        ("trial_ended", {"trial_id": name, "state": state.value, "value": max(values) if done else None,
                         "best_epoch": 1 if values else None, "reason": "why" if state is TrialState.FAIL else "",
                         "trace": "", "elapsed_seconds": epochs * 1.5, "device_seconds": epochs * 1.5})
    )  # fmt: skip
    return events


def interleave(lives, rng, lanes=2):
    """Two lanes work through the trials."""
    waiting, busy, events = list(lives), [], []
    while waiting or busy:
        while waiting and len(busy) < lanes:
            busy.append(list(waiting.pop(0)))
        lane = rng.choice(busy)
        events.append(lane.pop(0))
        busy = [one for one in busy if one]
    return events


def write(paths, events):
    """Append events as a run would."""
    with Ledger.open(paths) as ledger:
        for kind, payload in events:
            ledger.append(kind, **payload)


def finish(paths):
    """Write tables, a report and best configurations, as a run does at its end."""
    state = StudyState.replay(Ledger.read(paths))
    write_tables(paths, state, OBJECTIVE)
    paths.report.mkdir(exist_ok=True)
    (paths.report / "index.html").write_text("<html><body>the report</body></html>")
    scores = {"mean": 0.7, "ci_low": 0.6, "ci_high": 0.8, "scores": [0.7], "seeds": [1]}
    verdict = {"other": "minilm", "verdict": "tie", "difference": 0.0, "ci_low": -1, "ci_high": 1, "p_value": 1.0,
               "unit": "accuracy", "more_seeds": 3}  # fmt: skip
    board = [
        {"model": m, "rank": r, "tuned": scores, "default": scores, "best_params": {"learning_rate": 1e-3},
         "num_trials": 4, "device_seconds": 9.0, "verdicts": [verdict] if r == 1 else []}
        for r, m in enumerate(("bert", "minilm"), start=1)
    ]  # fmt: skip
    (paths.report / "leaderboard.json").write_text(json.dumps(board))
    for model in ("bert", "minilm"):
        (paths.best(model) / "checkpoint").mkdir(parents=True, exist_ok=True)
        (paths.best(model) / "config.yaml").write_text("name: x\n")
        (paths.best(model) / "checkpoint" / "model.safetensors").write_bytes(b"x" * 1000)


def expected(paths):
    """The epochs of every trial that began, from the ledger."""
    state = StudyState.replay(Ledger.read(paths))
    began = [r for r in state.trials.values() if r.state is not TrialState.WAITING]
    return {r.spec.trial_id: [m.epoch for m in r.measurements] for r in began}


def offline(root):
    """The epochs of every trial's run in the order of the files, from W&B's own files."""
    found = {}
    for file in run_files(root / "wandb"):
        if file.job_type != "report":
            found.setdefault(file.name, []).extend(row["epoch"] for row in file.rows)
    return found
