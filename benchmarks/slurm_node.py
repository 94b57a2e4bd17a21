"""A study launched on a real SLURM: one node on this machine, from doctor to fetch, with a cancel in the middle.

    sudo python benchmarks/slurm_node.py --json OUT.json

Needs root, and Debian's ``slurm-wlm`` and ``munge`` (22.05 or newer; the services need not run). The daemons live in
namespaces of their own for processes, network and mounts, with a configuration in a temporary folder: nothing of this
machine's SLURM or Ray is touched, and all of it goes with the script. The study is ``examples/quickstart`` with a
small budget. Exit code 1 when anything is not as it should be.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from machine import facts, publish
from namespace import ADDRESS, bring_up, enter, is_inside

NODE = "node1"
STUDY = Path(__file__).parents[1] / "examples" / "quickstart" / "study.yaml"
BUDGET = ("search.max_epochs=3", "confirm.num_seeds=1")
PATIENCE_SECONDS = 420.0
CONFIGURATION = """\
ClusterName=sweeper
SlurmctldHost={node}({address})
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
KillWait=60
NodeName={node} NodeAddr={address} CPUs={cpus} RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes={node} Default=YES MaxTime=INFINITE State=UP
"""


def set_up(folder: Path) -> dict[str, str]:
    """Start the daemons; return the environment of the clients."""
    bring_up(NODE, folder)
    for name in ("state", "spool", "munge"):
        (folder / name).mkdir(mode=0o700)
    folder.chmod(0o755)
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    conf = folder / "slurm.conf"
    conf.write_text(CONFIGURATION.format(node=NODE, address=ADDRESS, folder=folder, cpus=len(os.sched_getaffinity(0))))
    environment = os.environ | {
        "SLURM_CONF": str(conf),
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "offline",
        "SWEEPER_STATE": str(folder / "launches"),
        "RAY_TMPDIR": str(folder / "r"),
    }
    at = [f"--{name}={folder}/munge/{name}" for name in ("pid-file", "log-file", "seed-file")]
    munge = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={key}", *at]
    for words in (munge, ["slurmctld", "-D"], ["slurmd", "-D", "-N", NODE]):
        with (folder / f"{words[0]}.out").open("wb") as log:
            subprocess.Popen(words, env=environment, stdout=log, stderr=log)
        time.sleep(1)
    deadline = time.monotonic() + 60
    while "idle" not in (said := text(["sinfo", "--noheader", "--format", "%T"], environment)):
        if time.monotonic() > deadline:
            logs = "\n".join(path.read_text(errors="replace")[-800:] for path in folder.glob("slurm*.log"))
            raise RuntimeError(f"the node is {said!r}\n{logs}")
        time.sleep(0.5)
    return environment


def text(words: list[str], environment: dict[str, str], code: int = 0) -> str:
    """Run a command and return what it printed."""
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    if done.returncode != code:
        raise RuntimeError(f"{' '.join(words)}: code {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout


def cancelled(sweeper: Callable[..., str], launch: list[str], results: Path, tell: Callable[[str], None]) -> str:
    """Launch, cancel once a trial has ended, and return the state in which that leaves the launch."""
    name = json.loads(sweeper(*launch, "--json"))["name"]

    def state() -> str:
        return str(json.loads(sweeper("status", name, "--json"))["state"])

    tell(f"launched {name}: {state()}")
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (ended := count(results)):
        assert time.monotonic() < deadline, sweeper("logs", name)
        assert state() in ("PENDING", "RUNNING"), sweeper("logs", name)
        time.sleep(0.5)
    sweeper("cancel", name)
    while (found := state()) == "RUNNING":
        assert time.monotonic() < deadline, sweeper("logs", name)
        time.sleep(1)
    tell(f"cancelled after {ended} trials: {found}, {count(results)} trials ended")
    return found


def campaign(folder: Path, trials: int, *, cancel: bool) -> dict[str, Any]:
    """Go through the life of a launch."""
    environment = set_up(folder)
    story: list[str] = []
    began = time.monotonic()

    def tell(words: str) -> None:
        story.append(f"{time.monotonic() - began:5.1f} s: {words}")
        print(story[-1], flush=True)

    def sweeper(*words: str) -> str:
        return text([sys.executable, "-m", "sweeper.cli", *words], environment)

    def state(name: str) -> str:
        return str(json.loads(sweeper("status", name, "--json"))["state"])

    tell("slurmctld and slurmd answer: " + " ".join(text(["sinfo", "--noheader"], environment).split()))
    profile = folder / "slurm.yaml"
    profile.write_text(
        f"type: slurm\nfolder: {folder}/shared/launches\nstorage_path: {folder}/shared/results\n"
        f"python: {sys.executable}\nnodes: 1\ncpus_per_node: {len(os.sched_getaffinity(0))}\ntime: '00:10:00'\n"
        "check: false\n"  # it is examined by hand below
        f"setup: ['export RAY_TMPDIR={folder}/r']\n"
    )
    (folder / "shared" / "results").mkdir(parents=True)
    doctor = json.loads(sweeper("doctor", "--cluster", str(profile), "--json"))
    tell(f"doctor: {sum(finding['level'] == 'fine' for finding in doctor['findings'])} checks fine, no error")
    launch = ["launch", str(STUDY), f"search.num_trials={trials}", *BUDGET, "--cluster", str(profile)]
    print(sweeper(*launch, "--dry-run"))
    results = folder / "shared" / "results" / "quickstart"

    states = [cancelled(sweeper, launch, results, tell)] if cancel else []
    second = json.loads(sweeper(*launch, "--json"))["name"]
    log = sweeper("logs", second, "--follow")
    tell(f"launched {'again ' * cancel}as {second}: {state(second)}")
    home = folder / "home"
    sweeper("fetch", second, "-o", str(home))
    table = pq.read_table(home / "trials.parquet").to_pylist()
    tell(f"fetched: {len(table)} trials on {sorted({row['node'] for row in table})}")
    board = json.loads((home / "report" / "leaderboard.json").read_text())
    return {
        "slurm": text(["sinfo", "--version"], environment).strip(),
        "states": [*states, state(second)],
        "trials": len(table),
        "models": [entry["model"] for entry in board],
        "log": log.splitlines()[:3] + log.splitlines()[-3:],
        "story": story,
    }


def count(results: Path) -> int:
    """Count the search trials that the ledger holds as ended."""
    ledger = results / "ledger.jsonl"
    return ledger.read_text().count('"kind":"trial_ended"') if ledger.is_file() else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=3, help="search trials for each of the three models")
    parser.add_argument("--no-cancel", dest="cancel", action="store_false", help="straight to the end")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    if os.geteuid():
        parser.error("namespaces need root")
    if not is_inside():
        return enter()
    with tempfile.TemporaryDirectory(prefix="sws-") as name:
        report = campaign(Path(name), arguments.trials, cancel=arguments.cancel) | {"machine": facts()}
    publish(report, arguments.json)
    return (
        report["states"] != ["STOPPED"] * arguments.cancel + ["SUCCEEDED"] or report["trials"] != 3 * arguments.trials
    )


if __name__ == "__main__":
    sys.exit(main())
