"""Real sweeps on Ray with tracking on: what W&B's files hold, where a key could have leaked, and what it costs.

    python benchmarks/tracked_sweep.py --check --kills 3 --json OUT.json
    python benchmarks/tracked_sweep.py --cost off,offline,online --trials 150 --json OUT.json

``--check``: two small models on scikit-learn's digits, W&B offline, a planted key in ``WANDB_API_KEY``. The driver is
ended by SIGKILL at random moments and the study resumed until it is done. Then W&B's files are read back record by
record and compared with the tables: every trial and confirmation run once, every epoch once, configuration, summary,
group, job type, tags and lineage. Every file of the result folder, of Ray's session folders and all output is searched
for the key, and a hook in every Python process notes who imports wandb.

``--cost``: the same study with ``--trials`` trials a model (two models, random search, no early stopping: the same work
in every arm) without tracking, with W&B offline, and online against a stub of the server on loopback. Wall-clock
seconds of the whole ``sweeper run``, memory of the tracking process and its client.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HOME = Path(__file__).parents[1]
sys.path[:0] = [str(HOME / "tests"), str(HOME / "tests" / "track"), str(HOME)]
KEY = "0badc0de" * 5
HOOK = """
import os, sys
def imported(name):
    # libraries ask whether wandb is installed (importlib.util.find_spec); that is no import
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "_find_and_load" and frame.f_locals.get("name") == name:
            return True
        frame = frame.f_back
    return False
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "wandb" and imported(name):
            with open(os.environ["IMPORTS_LOG"], "a") as log:
                log.write(" ".join(open(f"/proc/{os.getpid()}/cmdline").read().split("\\0"))[:200] + "\\n")
sys.meta_path.insert(0, Finder())
"""

import tiny  # noqa: E402
from machine import facts  # noqa: E402
from wandb_stub import Stub  # noqa: E402

from sweeper.core.trial import TrialState  # noqa: E402
from sweeper.store.ledger import Ledger  # noqa: E402
from sweeper.store.paths import ResultPaths  # noqa: E402
from sweeper.store.state import StudyState  # noqa: E402
from sweeper.store.tables import read_tables  # noqa: E402
from sweeper.track.wandb_files import run_files  # noqa: E402


def study(folder: Path, checkpoints: dict[str, Path], tracking: str, **search: Any) -> Path:
    """Write a study with a tracking section."""
    folder.mkdir()
    path = tiny.write_study(folder, checkpoints, **search)
    path.write_text(path.read_text() + f"tracking: {tracking}\n")
    return path


def start(folder: Path, *arguments: Any) -> subprocess.Popen[str]:
    """Start ``sweeper`` with its output in a file."""
    with (folder / "output.txt").open("a") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "sweeper.cli", *map(str, arguments)], stdout=output, stderr=output, text=True
        )


def check(folder: Path, checkpoints: dict[str, Path], kills: int, seed: int) -> dict[str, Any]:
    """Kill, resume, read back."""
    (folder / "hook").mkdir()
    (folder / "hook" / "sitecustomize.py").write_text(HOOK)
    imports = folder / "imports.log"
    os.environ |= {
        "IMPORTS_LOG": str(imports),
        "PYTHONPATH": os.pathsep.join([str(folder / "hook"), str(HOME)]),
        "WANDB_API_KEY": KEY,
        "WANDB_BASE_URL": "http://127.0.0.1:9",
    }
    sessions = set(Path("/tmp/ray").glob("session_*"))
    path = study(folder / "check", checkpoints, "{wandb: {project: p, mode: offline, tags: [mine]}}", num_trials=8)
    paths, rng, killed = ResultPaths(folder / "check" / "results" / "tiny"), random.Random(seed), 0
    target = 8
    while True:
        driver = start(folder, "run", path)
        target += rng.randrange(8, 40)
        while driver.poll() is None:
            lines = paths.ledger.read_bytes().count(b"\n") if paths.ledger.exists() else 0
            if killed < kills and lines >= target:
                os.kill(driver.pid, signal.SIGKILL)
                killed += 1
                break
            time.sleep(0.02)
        if driver.wait() == 0:
            break
        assert driver.returncode == -signal.SIGKILL, (folder / "output.txt").read_text()
    assert killed == kills, f"the study ended after {killed} kills: choose another --seed"
    in_time = "tracking is incomplete" not in (folder / "output.txt").read_text()
    if not in_time:  # a busy machine: the end waits for tracking 10 s at least, and says what to call then
        assert start(folder, "track", paths.root).wait() == 0, (folder / "output.txt").read_text()
    output = (folder / "output.txt").read_text()
    assert f"wandb sync {paths.wandb}" in output, output
    found = compare(paths)
    new = set(Path("/tmp/ray").glob("session_*")) - sessions
    files = [p for home in (folder, *new) for p in home.rglob("*") if p.is_file() and not p.is_symlink()]
    leaks = [str(p) for p in files if KEY.encode() in p.read_bytes()]
    assert not leaks, leaks
    importers = sorted(set(imports.read_text().splitlines()))
    # the driver: Ray Tune looks which of its own callbacks a run uses, and imports them all for that
    assert all("sweeper.workflows.follow" in line or "sweeper.cli run" in line for line in importers), importers
    return {
        "kills": killed,
        "tracked_in_time": in_time,
        **found,
        "files_searched_for_the_key": len(files),
        "leaks": 0,
        "importers": importers,
    }


def compare(paths: ResultPaths) -> dict[str, Any]:
    """Compare W&B's files with the tables and the ledger, record by record; fail on any difference."""
    tables, state = read_tables(paths), StudyState.replay(Ledger.read(paths))
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in tables.measurements.to_pylist():
        rows.setdefault(row["trial_id"], []).append(row)
    trials = {row["trial_id"]: row for row in tables.trials.to_pylist()}
    confirmed = [state.trials[name] for name in state.frozen or ()]
    files = run_files(paths.wandb)
    by_name = {file.name: file for file in files}
    assert len(files) == len(by_name) == len({file.run_id for file in files}), "one run each"
    assert by_name.keys() == {*trials, *(r.spec.trial_id for r in confirmed), paths.root.name}
    assert {file.group for file in files} == {"tiny"}
    num_epochs = 0
    for name, trial in trials.items():
        file, measured = by_name[name], rows.get(name, [])
        assert [row["epoch"] for row in file.rows] == [row["epoch"] for row in measured], name
        for row, logged in zip(measured, file.rows, strict=True):
            shared = row.keys() & logged.keys()
            assert {"train_loss", "validation_loss", "accuracy"} <= shared
            assert all(row[key] == logged[key] for key in shared), (name, row, logged)
        num_epochs += len(measured)
        assert file.job_type == "trial"
        assert file.config["params"] == json.loads(trial["params"])
        assert file.config["effective"] == json.loads(trial["effective"])
        assert {trial["model"], trial["state"], "mine"} <= set(file.tags)
        assert ("default" in file.tags) == (trial["number"] == 0)
        assert (file.summary["state"], file.summary.get("value")) == (trial["state"], trial["value"])
        assert file.summary["pruned"] == (trial["state"] == "PRUNED")
        assert file.summary["device_seconds"] == trial["device_seconds"]
    for record in confirmed:
        file = by_name[record.spec.trial_id]
        assert [row["epoch"] for row in file.rows] == [m.epoch for m in record.measurements]
        assert file.job_type == "confirm"
        num_epochs += len(record.measurements)
        if record.state is TrialState.COMPLETE:
            assert file.summary["test/accuracy"] == state.tested[record.spec.trial_id].metrics["accuracy"]
        if record.spec.config == "tuned":
            winner = by_name[file.config["trial"]["found_by"]]
            assert "best" in winner.tags
            assert winner.config["params"] == file.config["params"]
            assert file.inputs == [winner.artifacts[0][1]]
    last = by_name[paths.root.name]
    assert {"leaderboard", "verdicts", "trials", "report", "tuning_curves_table"} <= last.rows[-1].keys()
    return {
        "trials": len(trials),
        "confirmations": len(confirmed),
        "wandb_runs": len(files),
        "epochs_compared": num_epochs,
        "states": {state: sum(t["state"] == state for t in trials.values()) for state in ("COMPLETE", "PRUNED")},
        "lost": 0,
        "doubled": 0,
    }


def cost(folder: Path, checkpoints: dict[str, Path], arms: list[str], num_trials: int) -> list[dict[str, Any]]:
    """Time the arms in the order given."""
    found = []
    for index, arm in enumerate(arms):
        tracking = "{}" if arm == "off" else f"{{wandb: {{project: p, mode: {arm}}}}}"
        home = folder / f"{index}-{arm}"
        path = study(
            home, checkpoints, tracking, num_trials=num_trials, max_epochs=2, max_concurrent_trials="auto",
            sampler="random", scheduler="{type: none}",
        )  # fmt: skip
        with server() as stub:
            began, peak = time.monotonic(), {}
            driver = start(home, "run", path)
            while driver.poll() is None:
                sample(driver.pid, peak)
                time.sleep(0.5)
            seconds = time.monotonic() - began
        assert driver.returncode == 0, (home / "output.txt").read_text()
        state = StudyState.replay(events := Ledger.read(ResultPaths(home / "results" / "tiny")))
        assert len(state.log) == 4 * num_trials
        times = [event.t for event in events if event.kind == "trial_ended"]
        if arm == "online":
            held = {
                run["display"]: sorted(stub.epochs(key)) for key, run in stub.runs.items() if run["job"] != "report"
            }
            assert held == {name: [m.epoch for m in r.measurements] for name, r in state.trials.items()}
        found.append(
            {
                "arm": arm,
                "seconds": round(seconds, 1),
                "search_seconds": round(times[2 * num_trials - 1] - times[0], 1),
                "num_trials": 2 * num_trials,
                "peak_megabytes": round(sum(memory for memory, _ in peak.values()) / 1024),
                "tracking_processor_seconds": round(sum(processor for _, processor in peak.values()), 1),
                "processes": len(peak),
                "said": [line for line in (home / "output.txt").read_text().splitlines() if "W&B" in line][-2:],
            }
        )
        print(json.dumps(found[-1]), flush=True)
    return found


def sample(driver: int, peak: dict[int, tuple[int, float]]) -> None:
    """Note peak memory (KiB) and processor time (s) of the driver's tracking process and of its client."""
    fields: dict[int, tuple[int, str, Path]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            after = (folder / "stat").read_text().rpartition(")")[2].split()
            fields[int(folder.name)] = (int(after[1]), (folder / "cmdline").read_text(), folder)
        except OSError:
            continue
    tracking = {pid for pid, (parent, line, _) in fields.items() if parent == driver and "workflows.follow" in line}
    for pid, (parent, _, folder) in fields.items():
        if pid in tracking or parent in tracking:
            try:
                status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
                ticks = (folder / "stat").read_text().rpartition(")")[2].split()[11:13]
            except OSError:
                continue
            if "VmHWM" in status:
                peak[pid] = (int(status["VmHWM"].split()[0]), sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"))


@contextmanager
def server() -> Iterator[Stub]:
    """A stub whose address and key are in the environment."""
    with Stub() as stub:
        os.environ |= {"WANDB_BASE_URL": stub.url, "WANDB_API_KEY": KEY}
        yield stub


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cost", type=lambda text: text.split(","), default=[], help="off,offline,online in any order")
    parser.add_argument("--trials", type=int, default=150, help="of each of two models")
    options = parser.parse_args()
    os.environ |= {"PYTHONPATH": str(HOME), "RAY_AUTH_MODE": "disabled", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    result: dict[str, Any] = {"machine": facts()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoints = tiny.save_checkpoints(folder / "checkpoints")
        if options.check:
            result["check"] = check(folder, checkpoints, options.kills, options.seed)
            print(json.dumps(result["check"], indent=1), flush=True)
        result["cost"] = cost(folder, checkpoints, options.cost, options.trials)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
