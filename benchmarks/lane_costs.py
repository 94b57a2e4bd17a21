"""What a sweep's processes cost: processor seconds and memory of each, and what a lane holds of the data for itself.

    python benchmarks/lane_costs.py --json OUT.json

A study on Ray with two lanes, started as ``sweeper run --profile`` with ``training.precision=auto``: a small BERT on
random texts. All processes below it are looked at once a second: processor seconds as last seen, memory
(``smaps_rollup``) at the moment at which the workers of the lanes hold most. A further lane costs what its worker,
controller, synchronisation actor and Tune actor have for themselves (``Private``); the bare training process, for
comparison, trains the same model on the same encoded data in one process without Ray. ``data`` are the files of
encoded examples that a worker maps: what of them it has changed is private to it, and ``arrays`` is what opening them
adds to a process.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from machine import facts
from processes import descendants, mapped, memory, role

LANES = 2
PER_LANE = ("RayTrainWorker", "TrainController", "SynchronizationActor", "LaneTrainable")
ALSO_CALLED = {"ResourceTrainable": "LaneTrainable"}  # what Tune wraps it in names the process between two calls
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(996))]


def write_study(folder: Path, num_rows: int, num_words: int) -> Path:
    """Write random texts, a small BERT and the study; return the study's path."""
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers

    rng = np.random.default_rng(0)
    for split, count in (("train", num_rows), ("test", 60)):
        words = rng.choice(WORDS[4:], (count, num_words))
        lines = [f"{' '.join(row)},{'ab'[i % 2]}" for i, row in enumerate(words)]
        (folder / f"{split}.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    config = hf.BertConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, vocab_size=len(WORDS)
    )
    hf.BertModel(config).save_pretrained(folder / "bert")
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    hf.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(
        folder / "bert"
    )
    space = {
        "parameters": {"learning_rate": {"type": "float", "low": 1e-5, "high": 1e-3, "log": True}},
        "default": {"learning_rate": 1e-4},
    }
    study = {
        "schema": 1,
        "name": "costs",
        "storage_path": str(folder / "results"),
        "task": {
            "type": "text-classification",
            "data": {"train": str(folder / "train.csv"), "validation": 0.02, "test": str(folder / "test.csv")},
            "columns": {"input": "text", "target": "label"},
        },
        "models": [{"name": "bert", "checkpoint": str(folder / "bert")}],
        "search": {"space": space, "num_trials": 2, "max_epochs": 1, "max_concurrent_trials": LANES},
        "training": {"precision": "auto"},
        "confirm": {"num_seeds": 2},
    }
    (folder / "space.yaml").write_text(json.dumps(space))
    study["search"] |= {"space": str(folder / "space.yaml")}
    (folder / "study.yaml").write_text(json.dumps(study))
    return folder / "study.yaml"


def watched(command: list[str], log: Path, data: str) -> dict[str, Any]:
    """Run a command and look at its processes once a second."""
    seconds: dict[tuple[int, int], float] = {}
    roles: dict[tuple[int, int], str] = {}
    best: dict[str, Any] = {"held": -1}
    began = time.perf_counter()
    first: float | None = None
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
        while process.poll() is None:
            living = descendants()
            seconds |= living
            by_role: dict[str, list[dict[str, int]]] = defaultdict(list)
            files: list[dict[str, int]] = []
            for key in living:
                found = role(key[0])
                found = ALSO_CALLED.get(found, found)
                if found:
                    roles[key] = found
                name = roles.get(key, "other")
                by_role[name].append(memory(key[0]))
                if name == "RayTrainWorker":
                    files.extend(numbers for _, numbers in mapped(key[0], data))
            workers = by_role.get("RayTrainWorker", [])
            if files and first is None:
                first = time.perf_counter() - began
            held = sum(one["Private"] for one in workers) if len(workers) == LANES else 0
            if held > best["held"] and len(files) >= LANES:
                best = {"held": held, "memory": dict(by_role), "files": files}
            time.sleep(1)
    if process.returncode:
        sys.exit(f"the study failed:\n{log.read_text()[-3000:]}")
    cpu: dict[str, list[float]] = defaultdict(list)
    for key, value in seconds.items():
        cpu[roles.get(key, "other")].append(value)
    return {
        "wall_clock_seconds": time.perf_counter() - began,
        "data_mapped_after_seconds": first,
        "cpu": dict(cpu),
        **best,
    }


def bare(folder: Path) -> dict[str, int]:
    """Train a while in this process alone; return its memory, and what opening the data added to it."""
    from sweeper.core.trial import TrialSpec
    from sweeper.data.encoded import map_table
    from sweeper.data.prepare import load_prepared
    from sweeper.models.load import load
    from sweeper.spec.load import load_study
    from sweeper.store.paths import ResultPaths
    from sweeper.tasks.registry import make_task
    from sweeper.train.loop import TrainData, train
    from sweeper.train.options import TrainOptions

    spec = load_study(folder / "study.yaml")
    paths = ResultPaths(folder / "results" / "costs")
    task = make_task(spec.task, load_prepared(paths.data).facts)
    model = load(spec.models[0], task.head)
    files = {path.name.split("-")[0]: path for path in paths.encoded.glob("*.arrow")}
    opened = {name: task.open(map_table(files[name]), model.preprocessor) for name in ("train", "validation")}
    gc.collect()
    before = memory(os.getpid())["Private"]
    again = task.open(map_table(files["train"]), model.preprocessor)  # without what the first opening imports
    added = memory(os.getpid())["Private"] - before
    assert len(again.targets) == len(opened["train"].targets)
    trial = TrialSpec(trial_id="t", number=0, model="bert", params={"learning_rate": 1e-4}, seed=0, max_epochs=1)
    data = TrainData(train=opened["train"], validation=opened["validation"], key="k")
    next(train(trial, task, model, data, TrainOptions()))
    return {**memory(os.getpid()), "data_bytes": files["train"].stat().st_size, "data_added": added}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--words", type=int, default=200)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare:
        print(json.dumps(bare(arguments.bare)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        study = write_study(folder, arguments.rows, arguments.words)
        command = [sys.executable, "-m", "sweeper.cli", "run", str(study), "--profile"]
        run = watched(command, folder / "log", str(folder / "results"))
        manifest = json.loads((folder / "results" / "costs" / "manifest.json").read_text())
        profile = folder / "results" / "costs" / "profile"
        events = json.loads((profile / "trace.json").read_text())["traceEvents"]
        output = subprocess.run(
            [sys.executable, __file__, "--bare", str(folder)], capture_output=True, text=True, check=True
        ).stdout
        table = (profile / "table.txt").read_text()
    print(table)
    print(f"precision settled by the lanes: {manifest['machine'].get('precision')}; trace: {len(events)} events")
    alone = json.loads(output.splitlines()[-1])
    roles = {
        name: {
            "count": len(run["cpu"].get(name, [])),
            "cpu_seconds": sum(run["cpu"].get(name, [])),
            **{key: sum(one[key] for one in found) / len(found) for key in ("Private", "Pss", "Rss")},
        }
        for name, found in run["memory"].items()
    }
    for name in run["cpu"].keys() - roles.keys():
        roles[name] = {"count": len(run["cpu"][name]), "cpu_seconds": sum(run["cpu"][name]), "Private": 0, "Pss": 0}
    for name, row in sorted(roles.items(), key=lambda item: -item[1]["cpu_seconds"]):
        print(
            f"{name:28} {row['count']:3}  {row['cpu_seconds']:6.1f} s in all"
            f"  each: own {row['Private'] / 1e6:6.0f} MB, shared pages by share {row['Pss'] / 1e6:6.0f} MB"
        )
    lane = {name: roles[name]["Private"] for name in PER_LANE if name in roles}
    share = alone["data_added"] / alone["data_bytes"]
    dirty = sum(file["Private_Dirty"] for file in run["files"])
    print(f"a further lane: {sum(lane.values()) / 1e6:.0f} MB of its own; bare process {alone['Private'] / 1e6:.0f} MB")
    print(f"data: {alone['data_bytes'] / 1e6:.1f} MB; {dirty} bytes of it changed by workers; opening adds {share:.1%}")
    result = {
        "machine": facts(),
        "wall_clock_seconds": run["wall_clock_seconds"],
        "data_mapped_after_seconds": run["data_mapped_after_seconds"],
        "roles": roles,
        "further_lane": lane,
        "bare": alone,
        "data_private_dirty": dirty,
        "data_added_share": share,
        "precision": manifest["machine"].get("precision"),
        "profile": table,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
