"""What tracking costs a sweep, and whether it loses or doubles anything.

    python benchmarks/tracking.py --json OUT.json

``cost``: 300 trials of three epochs on as many lanes as there are cores, or ``--lanes``. Lanes are processes that
compute, so a tracking process that takes processor time is felt. The driver writes the real ledger (fsync an event)
and starts the real tracking process; the arms named by ``--arms`` run in alternation: no tracking (off), W&B offline,
W&B online against a stub of the server, and online with a fault from the middle on: a fifth of all requests answered
by 429, 500 or a dropped connection (429, 500, drop), all of them (down), a server that never answers (hang) or is gone
(dies). A ratio is the best wall-clock time over that without tracking, the wait at the end included. After each arm
the server is well again, ``sweeper track`` replays the study, and every run must hold every epoch once. Memory is the
sum of the peaks of the tracking process and its client. ``processor_ratio`` counts processor seconds of training,
driver and tracking in the place of wall-clock time: it says the same of a machine that is kept busy, and is not moved
by what else runs there. With ``--idle`` trials wait in the place of computing, as the processor does while a GPU
trains; the arms then run at once, each in a process of its own.

``rounds``: a sweep in a process of its own is killed (SIGKILL, at a random moment) and started again; after each kill
``sweeper track`` replays it. The epochs of every trial in W&B's files must be those of ``measurements.parquet``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / "track"), str(Path(__file__).parents[1])]

import studies  # noqa: E402
from machine import facts  # noqa: E402
from wandb_stub import Stub  # noqa: E402

from sweeper.core.objective import Objective  # noqa: E402
from sweeper.core.trial import TrialKind, TrialSpec, TrialState  # noqa: E402
from sweeper.spec.study import TrackingSpec  # noqa: E402
from sweeper.store.ledger import Ledger  # noqa: E402
from sweeper.store.paths import ResultPaths  # noqa: E402
from sweeper.store.state import StudyState, encode_measurement, encode_spec  # noqa: E402
from sweeper.store.tables import read_tables, write_tables  # noqa: E402
from sweeper.track.wandb_files import run_files  # noqa: E402
from sweeper.workflows.tracking import Tracking, replay  # noqa: E402

EPOCHS = 3
OBJECTIVE = Objective("accuracy", "maximize")


def burn(trial: int, loops: int, answers: Any) -> int:
    """Train: compute, or wait for minus ``loops`` milliseconds, and report after each epoch."""
    for epoch in range(1, EPOCHS + 1):
        total = 0
        time.sleep(max(0, -loops) / 1000)
        for i in range(loops):
            total += i * i % 7
        answers.put((trial, epoch))
    return trial


def sweep(
    root: Path, num_trials: int, work: tuple[int, int], tracking: dict[str, Any], halfway: Any = None
) -> dict[str, float]:
    """Run a sweep of trials that only burn time, and return what it took."""
    paths = studies.prepare(root)
    lanes, loops = work
    manager = multiprocessing.Manager()
    answers = manager.Queue()
    peak: dict[int, tuple[int, float]] = {}
    said: list[str] = []
    ended = threading.Event()
    with multiprocessing.Pool(lanes) as pool:
        pool.map(abs, range(lanes))
        began, before = time.monotonic(), os.times()
        with (
            Ledger.open(paths) as ledger,
            Tracking(paths, TrackingSpec.model_validate(tracking), said.append) as tracker,
        ):
            ledger.append("study_opened", plan_hash="p" * 64, reason="run")
            tracker.start()
            if tracker._process:
                threading.Thread(target=watch, args=(tracker._process.pid, peak, ended), daemon=True).start()
            waiting, left = list(range(num_trials)), num_trials * EPOCHS

            def start() -> None:
                number = waiting.pop(0)
                spec = TrialSpec(
                    trial_id=f"bert-t{number:04d}",
                    number=number,
                    model="bert",
                    params={"learning_rate": 1e-3},
                    seed=number,
                    max_epochs=EPOCHS,
                )
                ledger.append("trial_asked", **encode_spec(spec), attributes={})
                ledger.append(
                    "segment_started", trial_id=spec.trial_id, attempt=0, from_epoch=0, node="n", effective={}
                )
                pool.apply_async(burn, (number, loops, answers))

            for _ in range(lanes):
                start()
            while left:
                number, epoch = answers.get()
                left -= 1
                name = f"bert-t{number:04d}"
                measurement = encode_measurement(studies.measurement(epoch, 0.5 + epoch / 10))
                ledger.append("measurement", trial_id=name, attempt=0, **measurement)
                if halfway and left == num_trials * EPOCHS // 2:
                    halfway()
                if epoch == EPOCHS:
                    ledger.append(
                        "trial_ended", trial_id=name, state="COMPLETE", value=0.8, best_epoch=3, reason="", trace="",
                        elapsed_seconds=4.5, device_seconds=4.5,
                    )  # fmt: skip
                    if waiting:
                        start()
            search_seconds = time.monotonic() - began
            studies.finish(paths)
            tracker.finish()
            ended.set()
        seconds = time.monotonic() - began
        pool.close()
        pool.join()
    spent = [after - earlier for after, earlier in zip(os.times()[:3], before[:3], strict=True)]
    return {
        "seconds": seconds,
        "search_seconds": search_seconds,
        "processor_seconds": sum(spent),
        "end_wait_seconds": seconds - search_seconds,
        "peak_megabytes": sum(memory for memory, _ in peak.values()) / 1024,
        "tracking_processor_seconds": sum(processor for _, processor in peak.values()),
        "num_processes": len(peak),
        "said": said,  # type: ignore[dict-item]
    }


def watch(child: int, peak: dict[int, tuple[int, float]], ended: threading.Event) -> None:
    """Note the peak memory (KiB) and processor time (s) of the tracking process and of its children, to the end."""
    while not ended.wait(0.2):
        try:
            threads = Path(f"/proc/{child}/task").glob("*/children")
            family = [child, *(int(pid) for thread in threads for pid in thread.read_text().split())]
            for pid in family:
                fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
                ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
                if "VmHWM" in fields:
                    processor = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
                    peak[pid] = (int(fields["VmHWM"].split()[0]), processor)
        except OSError:  # it is gone
            continue


@contextmanager
def server() -> Iterator[Stub]:
    """A stub whose address and key are in the environment."""
    with Stub() as stub:
        os.environ |= {"WANDB_BASE_URL": stub.url, "WANDB_API_KEY": "0" * 40}
        yield stub


def strike(stub: Stub, fault: str) -> None:
    """Let the server fail from now on."""
    if fault == "dies":
        stub.die()
    elif fault == "hang":
        stub.fault = "hang"
    elif fault == "down":
        stub.fault = 500
    else:
        stub.fault, stub.fault_share = (fault if fault == "drop" else int(fault)), 0.2


def heal(stub: Stub, fault: str) -> None:
    """End a fault."""
    if fault == "dies":
        stub.revive()
    stub.fault, stub.fault_share = None, 1.0


def loops_in(seconds: float) -> int:
    """Return how often this machine turns `burn`'s loop in that processor time: the best of five tries."""
    took = []
    for _ in range(5):
        began, total = time.process_time(), 0
        for i in range(200_000):
            total += i * i % 7
        took.append(time.process_time() - began)
    return int(200_000 * seconds / min(took))


def cost(num_trials: int, work: tuple[int, int], repeats: int, names: Sequence[str]) -> dict[str, Any]:
    """Compare the arms; ``work`` is the number of lanes, and the loops of an epoch."""
    arms: dict[str, Any] = {name: [] for name in names}
    for _ in range(repeats):
        for name in names:
            with tempfile.TemporaryDirectory() as folder, server() as stub:
                root = Path(folder) / name
                mode = {"off": "disabled", "offline": "offline"}.get(name, "online")
                fault = None if name in ("off", "offline", "online") else partial(strike, stub, name)
                run = sweep(root, num_trials, work, {"wandb": {"project": "p", "mode": mode}}, fault)
                run["server_processor_seconds"] = stub.seconds
                if name == "offline":
                    replay(root, mode="offline")
                    run["epochs_compared"] = lost(root)
                elif mode == "online":
                    heal(stub, name)
                    run["epochs_compared"] = lost_online(root, stub)
            arms[name].append(run)
            print(name, json.dumps(run), flush=True)
    return {"num_trials": num_trials, "lanes": work[0], "loops": work[1], **arms}


def ratios(arms: dict[str, Any]) -> dict[str, Any]:
    """Compare the best run of every arm with the best without tracking: wall-clock and processor time."""

    def processor(run: dict[str, Any]) -> float:
        """Return seconds of training, driver and tracking, without the stub of the server."""
        total: float = run["processor_seconds"] + run["tracking_processor_seconds"] - run["server_processor_seconds"]
        return total

    def best(measure: Any) -> dict[str, float]:
        found = {name: min(map(measure, runs)) for name, runs in arms.items()}
        return {name: value / found["off"] for name, value in found.items()} if "off" in found else {}

    return {"ratio": best(lambda run: run["seconds"]), "processor_ratio": best(processor)}


def at_once(num_trials: int, work: tuple[int, int], names: Sequence[str]) -> dict[str, Any]:
    """Run the arms at once; ``work``: the lanes of each, and minus the milliseconds of an epoch."""
    numbers = ["--rounds=0", f"--trials={num_trials}", f"--lanes={work[0]}", f"--loops={work[1]}", "--repeats=1"]
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / name for name in names}
        started = [
            subprocess.Popen([sys.executable, __file__, *numbers, f"--arms={name}", f"--json={path}"])
            for name, path in files.items()
        ]
        assert [process.wait() for process in started] == [0] * len(started)
        found = {name: json.loads(path.read_text())["cost"][name] for name, path in files.items()}
    return {"num_trials": num_trials, "lanes": work[0], "epoch_seconds": -work[1] / 1000, **found}


def lost_online(root: Path, stub: Stub) -> int:
    """Replay, and compare the server's runs with the ledger; fail on any difference. Return the number of epochs."""
    replay(root, mode="online")
    expected = studies.expected(ResultPaths(root))
    found = {run["display"]: stub.epochs(key) for key, run in stub.runs.items() if run["job"] == "trial"}
    assert found == expected, {name for name in found | expected if found.get(name) != expected.get(name)}
    return sum(len(epochs) for epochs in found.values())


def lost(root: Path) -> int:
    """Compare W&B's files with measurements.parquet; fail on any difference. Return the number of epochs."""
    paths = ResultPaths(root)
    state = StudyState.replay(Ledger.read(paths))
    write_tables(paths, state, OBJECTIVE)
    expected: dict[str, list[int]] = {
        record.spec.trial_id: []
        for record in state.trials.values()
        if record.state is not TrialState.WAITING and record.spec.kind is TrialKind.SEARCH
    }
    for row in read_tables(paths).measurements.to_pylist():
        expected[row["trial_id"]].append(row["epoch"])
    found: dict[str, list[int]] = {}
    for file in run_files(paths.wandb):
        if file.job_type == "trial":
            found.setdefault(file.name, []).extend(int(row["epoch"]) for row in file.rows)
    assert found == expected, {name for name in found | expected if found.get(name) != expected.get(name)}
    return sum(len(epochs) for epochs in found.values())


def rounds(count: int) -> dict[str, Any]:
    """Kill, replay, compare; then go on."""
    from test_process import DRIVER

    rng, num_epochs, studies_done, kills = random.Random(0), 0, 0, 0
    tracking = {"wandb": {"project": "p", "mode": "offline"}}
    homes = [str(Path(__file__).parents[1] / "tests" / "track"), str(Path(__file__).parents[1])]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "0"
        studies.prepare(root)
        for number in range(count):
            arguments = [json.dumps(homes), str(root), json.dumps(tracking), "30", "0.01"]
            driver = subprocess.Popen([sys.executable, "-c", DRIVER, *arguments], stdout=subprocess.PIPE)
            assert driver.stdout is not None
            driver.stdout.readline()  # the tracking process has been started
            timer = threading.Timer(rng.uniform(0.1, 3.0), driver.kill)
            timer.start()
            kills += driver.wait() != 0
            timer.cancel()
            replay(root, mode="offline")
            num_epochs += lost(root)
            if driver.returncode == 0:
                studies_done += 1
                root = Path(folder) / str(number + 1)
                studies.prepare(root)
    return {
        "rounds": count,
        "kills": kills,
        "studies_completed": studies_done,
        "epochs_compared": num_epochs,
        "lost": 0,
        "doubled": 0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--epoch-seconds", type=float, default=0.1, help="processor seconds of an epoch")
    parser.add_argument("--loops", type=int, help="work of an epoch, in the place of --epoch-seconds")
    parser.add_argument("--lanes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument(
        "--arms", type=lambda text: [*filter(None, text.split(","))], default=["off", "offline", "online", "hang"]
    )
    parser.add_argument("--idle", action="store_true", help="trials wait for --epoch-seconds in the place of computing")
    options = parser.parse_args()
    os.environ |= {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}
    result = {"machine": facts()}
    result["rounds"] = rounds(options.rounds)
    print(json.dumps(result["rounds"]), flush=True)
    if options.idle:
        work = (options.lanes, -round(1000 * options.epoch_seconds))
        result["cost"] = at_once(options.trials, work, options.arms)
    else:
        loops = options.loops or loops_in(options.epoch_seconds)
        result["cost"] = cost(options.trials, (options.lanes, loops), options.repeats, options.arms)
    result["cost"] |= ratios({name: result["cost"][name] for name in options.arms})
    print(json.dumps(result["cost"], indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
