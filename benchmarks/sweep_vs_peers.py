"""The same fixed list of trials by sweeper, Ray's documented pattern, and the Hugging Face Trainer with Optuna or Ray.

    python benchmarks/sweep_vs_peers.py --json OUT.json
    python benchmarks/sweep_vs_peers.py --peers hf_ray --merge --json OUT.json
    python benchmarks/sweep_vs_peers.py --search --json OUT.json
    python benchmarks/sweep_vs_peers.py --work bert_base --device cuda --peers one_lane,ray_pattern --json OUT.json

Same models, data, epochs, seeds, new heads and batches; all five unfreezing schedules; no pruning. The scripts that run
stand in ``benchmarks/peers/``; each is a process of its own, one after the other, and gets the whole machine.
Wall-clock runs from its start to its end, with imports, data preparation and Ray's start; CPU seconds are those of it
and of everything that it started, as last seen twice a second (what a process used in its last half second is missing);
memory is the largest sum of proportional set sizes, sampled every three seconds. The splits are prepared before, for
sweeper also within. Scores are validation accuracies after the last epoch: of each schedule the paired mean difference
to sweeper must lie within two standard errors. Every call runs sweeper too, so that a ratio compares runs of the same
minutes; ``--merge`` adds the peers of a call to those that the JSON file holds already.
``--search``: sweeper's own search and early stopping against the Trainer's with Optuna's own sampler and pruner, over
one space and with as many trials; what counts is when a tool has reached, for every model, the validation accuracy
that both of them reach in the end. (A Ray Tune trial that builds a ``TorchTrainer`` cannot be pruned without leaking
its placement group, so that pattern takes no part.)
``digits``: the quickstart's three vision models; ``docstrings``: two encoders. Checkpoints that are missing are made
first, by the examples' ``pretrain.py`` (a minute or two). ``bert_base``: docstrings of up to 128 tokens for an encoder
of that size with random weights. ``--device cuda``: a trial of Ray's pattern has a GPU of its own, as documented,
sweeper's lanes share one as its memory allows (``GPU: auto``), and ``one_lane`` is sweeper with one trial at a time.
``in_trials_seconds`` is the time from the first trial's start to the last one's end. Needs the extra ``bench``.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from encoders import BERT_BASE, save_encoder
from machine import facts
from processes import descendants, memory

from sweeper.data.builtin import read_builtin
from sweeper.spec.load import load_study
from sweeper.workflows.study import provisional

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples"
SCHEDULES = ("full", "head_only", "last_blocks", "gradual", "head_then_full")
SEARCHES = {"sweeper": "search_sweeper", "hf_optuna": "search_optuna"}
ARMS = {
    "sweeper": "sweeper_lanes",
    "one_lane": "sweeper_lanes",
    "ray_pattern": "ray_pattern",
    "hf_optuna": "hf_optuna",
    "hf_ray": "hf_ray",
}
OPTIONS = {"one_lane": ["search.max_concurrent_trials=1"]}
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER: orphans of an arm become our children
SAMPLE_SECONDS, MEMORY_SECONDS = 0.5, 3.0

WORK = {
    "digits": ("quickstart", {"resnet": 1e-2, "vit": 3e-3, "convnext": 3e-3}, ["task.data.max_train_examples=300"]),
    "docstrings": ("docstrings", {"bert": 1e-3, "distilbert": 1e-3}, []),
    "bert_base": ("docstrings", {"bert": 3e-5}, ["task.max_length=128"]),
}


def write_work(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Write the list of trials, the study and the splits for all arms."""
    name, repeats, max_epochs = arguments.work, arguments.repeats, arguments.epochs
    example, rates, overrides = WORK[name]
    overrides = [*overrides, f"training.precision={arguments.precision}"]
    if arguments.device == "cuda":
        overrides.append("training.resources_per_worker={CPU: 1, GPU: auto}")
    if name == "bert_base":
        overrides.append(f"models=[{{name: bert, checkpoint: {_bert_base(folder / 'bert')}}}]")
    elif not all((EXAMPLES / example / "checkpoints" / model / "model.safetensors").is_file() for model in rates):
        print(f"making the checkpoints of examples/{example}", flush=True)
        subprocess.run([sys.executable, str(EXAMPLES / example / "pretrain.py")], check=True)
    spec = load_study(EXAMPLES / example / "study.yaml", overrides)
    (folder / "study.yaml").write_text(json.dumps(spec.model_dump(mode="json")))
    draws = random.Random(0)
    trials = []
    for _ in range(repeats):
        for schedule in SCHEDULES:
            for model, rate in rates.items():
                params: dict[str, Any] = {
                    "learning_rate": rate * 10 ** draws.uniform(-0.5, 0.25),
                    "batch_size": draws.choice([16, 32]),
                    "weight_decay": 0.01,
                    "warmup_ratio": 0.1,
                    "lr_scheduler_type": "linear",
                    "max_grad_norm": 1.0,
                    "dropout": 0.0,
                    "unfreezing": schedule,
                }
                if example == "docstrings":
                    params["attention_dropout"] = 0.0
                if schedule == "last_blocks":
                    params["num_unfrozen_blocks"] = 1
                trials.append({"index": len(trials), "model": model, "params": params, "seed": 2 * len(trials)})
    with provisional(spec) as study:
        for split, table in (("train", study.data.train()), ("validation", study.data.validation())):
            pq.write_table(table, folder / f"{split}.parquet")
        classes = list(study.data.classes)
    work = {
        "trials": trials,
        "checkpoints": {model.name: model.checkpoint for model in spec.models},
        "max_epochs": max_epochs,
        "max_length": spec.task.max_length or 256,
        "device": arguments.device,
        "precision": arguments.precision,
        "classes": classes,
        "search": {
            "learning_rates": {model: [rate / 10, rate * 3] for model, rate in rates.items()},
            "batch_sizes": [16, 32],
            "schedules": SCHEDULES,
        },
    }
    (folder / "work.json").write_text(json.dumps(work))
    return work


def _bert_base(folder: Path) -> Path:
    """Save an encoder of BERT base's size and a vocabulary of the docstrings."""
    sys.path.insert(0, str(EXAMPLES / "docstrings"))
    import pretrain

    texts = read_builtin("docstrings?per_class=300").column("text").to_pylist()
    save_encoder(folder, BERT_BASE, pretrain.train_tokenizer(texts))
    return folder


def run_arm(arm: str, script: str, folder: Path) -> dict[str, Any]:
    """Run one tool over the work in ``folder``; return what it took. What it writes lies in a folder of its own."""
    out = folder / arm
    out.mkdir()
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    own = [str(path.resolve()) for path in (HERE.parent, HERE, HERE / "peers")]
    paths = os.pathsep.join([*own, *filter(None, given)])
    environment = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "RAY_AUTH_MODE": "disabled"}
    environment["RAY_worker_niceness"] = "0"  # sweeper's own setting; without it a busy machine would starve Ray's arms
    environment["SEARCH_BEGAN"] = str(time.time())
    began = time.perf_counter()
    with (folder / f"{arm}.log").open("w") as log:
        command = [sys.executable, str(HERE / "peers" / f"{script}.py"), str(folder / "work.json"), str(out)]
        command += OPTIONS.get(arm, [])
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=out)
        peak, cpu, sampled_at = 0, {}, 0.0
        while process.poll() is None:
            living = descendants()
            cpu |= living
            if time.monotonic() - sampled_at > MEMORY_SECONDS:
                peak, sampled_at = max(peak, sum(memory(pid)["Pss"] for pid, _ in living)), time.monotonic()
            time.sleep(SAMPLE_SECONDS)
    ended = time.perf_counter()
    _reap(deadline=time.monotonic() + 60)
    if process.returncode:
        _give_up(arm, folder)
    facts_of_its_own = out / "facts.json"
    return {
        "wall_clock_seconds": ended - began,
        "cpu_seconds": sum(cpu.values()),
        "peak_memory_bytes": peak,
        **(json.loads(facts_of_its_own.read_text()) if facts_of_its_own.exists() else {}),
    }


def _give_up(arm: str, folder: Path) -> None:
    sys.exit(f"{arm} failed:\n" + (folder / f"{arm}.log").read_text()[-3000:])


def scores_of(arm: str, folder: Path, num_trials: int) -> list[float]:
    """Return an arm's scores in the order of the list of trials."""
    if len(list((folder / arm).glob("[0-9]*.json"))) != num_trials:
        _give_up(arm, folder)
    return [json.loads((folder / arm / f"{index}.json").read_text()) for index in range(num_trials)]


def searched(folder: Path, peers: list[str]) -> dict[str, Any]:
    """Let every tool search; compare the time that each took to what all of them reach."""
    arms, best, seen = {}, {}, {}
    for arm in ("sweeper", *peers):
        arms[arm] = run_arm(arm, SEARCHES[arm], folder)
        lines = (folder / arm / "events.jsonl").read_text().splitlines()
        seen[arm] = [json.loads(line) for line in lines]
        models = {event["model"] for event in seen[arm]}
        best[arm] = {m: max(event["accuracy"] for event in seen[arm] if event["model"] == m) for m in models}
        print(arm, {key: round(value, 1) for key, value in arms[arm].items()}, best[arm], flush=True)
    reached = {model: min(best[arm][model] for arm in arms) for model in best["sweeper"]}
    seconds = {
        arm: max(
            min(e["seconds"] for e in events if e["model"] == model and e["accuracy"] >= score)
            for model, score in reached.items()
        )
        for arm, events in seen.items()
    }
    return {
        "reached": reached,
        "best": best,
        "seconds_to_reached": seconds,
        "time_ratio": {arm: seconds[arm] / seconds["sweeper"] for arm in peers},
        "cpu_ratio": {arm: arms[arm]["cpu_seconds"] / arms["sweeper"]["cpu_seconds"] for arm in peers},
        "epochs_trained": {arm: len(events) for arm, events in seen.items()},
        "arms": arms,
    }


def _reap(deadline: float) -> None:
    """Wait for orphans that an arm left; those that outstay the deadline are ended."""
    while time.monotonic() < deadline:
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not descendants():
            return
        time.sleep(0.1)
    for pid, _ in descendants():
        with suppress(ProcessLookupError):
            os.kill(pid, 9)


def agreement(trials: list[dict[str, Any]], ours: list[float], theirs: list[float]) -> dict[str, Any]:
    """Compare scores by schedule: paired mean difference and its standard error."""
    found = {}
    for schedule in SCHEDULES:
        at = [trial["index"] for trial in trials if trial["params"]["unfreezing"] == schedule]
        differences = np.asarray([ours[i] - theirs[i] for i in at])
        error = float(differences.std(ddof=1) / np.sqrt(len(differences)))
        mean = float(differences.mean())
        found[schedule] = {"mean_difference": mean, "standard_error": error, "agrees": abs(mean) <= 2 * error + 1e-9}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", choices=list(WORK), default="digits")
    parser.add_argument("--repeats", type=int, default=3, help="trials for each model and schedule")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of all tools")
    parser.add_argument("--peers", help="hf_optuna,hf_ray,ray_pattern; also one_lane; of searches hf_optuna")
    parser.add_argument("--search", action="store_true", help="let every tool search by itself")
    parser.add_argument("--trials", type=int, default=12, help="of a search, for each model")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--merge", action="store_true", help="keep the other peers' figures that the JSON file holds")
    arguments = parser.parse_args()
    ctypes.CDLL(None, use_errno=True).prctl(SUBREAPER, 1, 0, 0, 0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        work = write_work(arguments, folder)
        if arguments.search:
            work["search"]["num_trials"] = arguments.trials
            (folder / "work.json").write_text(json.dumps(work))
            found = searched(folder, (arguments.peers or "hf_optuna").split(","))
            found |= {"work": arguments.work, "num_trials": arguments.trials, "machine": facts()}
            print(json.dumps({key: value for key, value in found.items() if key != "arms"}, indent=2))
            if arguments.json:
                arguments.json.write_text(json.dumps(found, indent=2) + "\n")
            return
        arms = {}
        for arm in ("sweeper", *(arguments.peers or "hf_optuna,hf_ray,ray_pattern").split(",")):
            arms[arm] = run_arm(arm, ARMS[arm], folder)
            arms[arm]["scores"] = scores_of(arm, folder, len(work["trials"]))
            shown = {key: round(value, 1) for key, value in arms[arm].items() if key != "scores"}
            print(arm, shown, f"mean score {np.mean(arms[arm]['scores']):.4f}", flush=True)
    result: dict[str, Any] = {"device": arguments.device, "precision": arguments.precision}
    result |= {"work": arguments.work, "num_trials": len(work["trials"]), "max_epochs": arguments.epochs}
    figures = compared(work["trials"], arms)
    if arguments.merge and arguments.json.exists():
        earlier = json.loads(arguments.json.read_text())
        if any(earlier[key] != value for key, value in result.items()):
            sys.exit(f"{arguments.json} holds other work: name another file")
        figures = {name: {**earlier[name], **by_peer} for name, by_peer in figures.items()}
    differences = [abs(found["mean_difference"]) for by in figures["agreement"].values() for found in by.values()]
    result |= {**figures, "max_abs_score_difference": max(differences), "machine": facts()}
    print(json.dumps({key: value for key, value in result.items() if key != "arms"}, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


def compared(trials: list[dict[str, Any]], arms: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Set every peer beside sweeper's run of the same call; each figure by peer."""
    ours = arms["sweeper"]
    peers = {name: arm for name, arm in arms.items() if name != "sweeper"}

    def ratio(key: str) -> dict[str, float]:
        return {name: arm[key] / ours[key] for name, arm in peers.items()}

    return {
        "wall_clock_ratio": ratio("wall_clock_seconds"),
        "cpu_ratio": ratio("cpu_seconds"),
        "peak_memory_ratio": ratio("peak_memory_bytes"),
        "agreement": {name: agreement(trials, ours["scores"], arm["scores"]) for name, arm in peers.items()},
        "arms": {name: {"peer": arm, "sweeper": ours} for name, arm in peers.items()},
    }


if __name__ == "__main__":
    main()
