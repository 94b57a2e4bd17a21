"""SLURM: a batch script that starts Ray on the job's nodes by ``ray symmetric-run`` and supervises the driver."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from sweeper.clusters.base import CopyFile, Launch, LaunchState, Run, Step, WriteFile, carry_out, copy_results
from sweeper.clusters.collect import node_of, questions
from sweeper.clusters.commands import attempt, run
from sweeper.clusters.doctor import ClusterFacts
from sweeper.clusters.facts import MARK, probe_names, remove_probe
from sweeper.clusters.local import follow_file, read_state
from sweeper.clusters.profiles import SlurmProfile
from sweeper.clusters.supervise import words
from sweeper.core.errors import InputError, RunFailedError

_STATES = {
    LaunchState.PENDING: {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED", "RESIZING"},
    LaunchState.RUNNING: {"RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "STOPPED"},
    LaunchState.SUCCEEDED: {"COMPLETED"},
    LaunchState.STOPPED: {"CANCELLED"},
}
"""SLURM's words; all others (FAILED, TIMEOUT, NODE_FAIL, OUT_OF_MEMORY, …) are a failure."""

QUEUE_SECONDS = 60
SCRIPT = """\
#!/bin/bash
{directives}
# Written by `sweeper launch`. Submit it again and it goes on where it was: sbatch {script}
set -euo pipefail
umask 077
{setup}
{environment}
{path}# The token lives in the environment of this job's processes: srun hands it to every node, no file holds it.
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$({python} -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN
export RAY_USAGE_STATS_ENABLED=0
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT={join_seconds}
export PYTHONPATH={study}${{PYTHONPATH:+:$PYTHONPATH}}

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{{print $1}}')
port=$((20000 + SLURM_JOB_ID % 20000))
echo "$(date -Is) job $SLURM_JOB_ID, restart ${{SLURM_RESTART_COUNT:-0}}, head $head, nodes $SLURM_JOB_NODELIST"

# The first node becomes the head and runs the driver; the others serve. A batch step that is told to stop
# (time limit, scancel) passes that on, so that the driver saves what it has.
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpus-per-task={cpus} \\
  --kill-on-bad-exit=1 \\
  ray symmetric-run --address "$address:$port" --min-nodes "$SLURM_JOB_NUM_NODES" {resources} \\
  -- {supervisor} &
steps=$!
trap 'kill -TERM "$steps" 2>/dev/null' TERM INT
code=0
wait "$steps" || code=$?
while kill -0 "$steps" 2>/dev/null; do wait "$steps" || code=$?; done
exit "$code"
"""


class SlurmCluster:
    """A `Cluster` by sbatch. The handle is ``NAME:JOB``."""

    def __init__(self, profile: SlurmProfile) -> None:
        self._profile = profile

    def steps(self, launch: Launch) -> Sequence[Step]:
        """Copy the package to the shared folder, write the script there and submit it."""
        home = self._home(launch.name)
        script = home / "job.sh"
        return [
            CopyFile(source=launch.package, target=str(home / "package.zip")),
            WriteFile(path=script, text=self._script(launch, home)),
            Run(words=(self._profile.sbatch, "--parsable", str(script))),
        ]

    def submit(self, launch: Launch) -> str:
        """Do so; sbatch answers with the job's number."""
        answer = ""
        for step in self.steps(launch):
            answer = carry_out(step)  # type: ignore[arg-type]
        return f"{launch.name}:{answer.strip().split(';')[0]}"

    def state(self, handle: str) -> LaunchState:
        """Ask the queue, then the records, then what the supervisor wrote into the shared folder."""
        name, job = handle.split(":")
        for command in (
            ("squeue", "--noheader", "--jobs", job, "--format", "%T"),
            ("sacct", "--noheader", "--allocations", "--parsable2", "--jobs", job, "--format", "State"),
        ):
            done = attempt([self._program(command[0]), *command[1:]])
            if done.returncode == 0 and done.stdout.split():
                return self._read(done.stdout.split()[0], name)
        shown = attempt([self._program("scontrol"), "show", "job", job])
        if found := re.search(r"JobState=(\w+)", shown.stdout):
            return self._read(found[1], name)
        record = read_state(self._home(name))
        known = record is not None and record["state"] != "RUNNING"
        return LaunchState(record["state"]) if known and record else LaunchState.LOST

    def logs(self, handle: str, *, follow: bool) -> Iterator[str]:
        """Yield the lines of the job's output file in the shared folder."""
        log = self._home(handle.split(":")[0]) / "log.txt"
        return follow_file(log, (lambda: self.state(handle).is_final) if follow else None)

    def cancel(self, handle: str) -> None:
        """Ask SLURM to signal the job and, after its KillWait, to end it."""
        if not self.state(handle).is_final:
            run([self._program("scancel"), "--full", handle.split(":")[1]])

    def fetch(self, handle: str, results: str, target: Path) -> None:
        """Copy the result folder, which this machine must see."""
        try:
            copy_results(results, target)
        except FileNotFoundError:
            name = handle.split(":")[0]
            raise RunFailedError(f"{results}: not on this machine; fetch {name} where the shared folder is") from None

    def facts(self, storage: str | None, wants: frozenset[str]) -> ClusterFacts:
        """Ask sinfo, the shared folder, and as many nodes as the profile takes, by a short srun."""
        profile = self._profile
        tools: dict[str, str] = {}
        partition = ["--partition", profile.partition] if profile.partition else []
        try:
            nodes = run([self._program("sinfo"), "--noheader", "--format", "%D %T", *partition]).split()
            tools["sinfo"] = "" if nodes else "the partition has no nodes; correct partition in the profile"
        except (RunFailedError, InputError) as error:
            return ClusterFacts(tools={"sinfo": f"{error}; run this where SLURM's programs are"}, storage=storage)
        folder = Path(profile.folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tools["folder"] = "" if os.access(folder, os.W_OK) else f"{folder} is not writable; name another folder"
        except OSError as error:
            tools["folder"] = f"{folder}: {error.strerror}; name a shared folder that you may write"
        asked = questions(storage)
        ask = [profile.python, "-m", "sweeper.clusters.facts", json.dumps(asked)]
        account = [f"--{key}={value}" for key, value in (("account", profile.account), ("qos", profile.qos)) if value]
        size = [f"--nodes={profile.nodes}", "--ntasks-per-node=1", "--time=5", f"--immediate={QUEUE_SECONDS}"]
        done = attempt([self._program("srun"), *size, *partition, *account, *ask], timeout_seconds=300)
        if done.returncode != 0:
            said = " ".join(done.stderr.split())[-200:]
            tools["srun"] = f"nodes gave no facts within {QUEUE_SECONDS} s: {said}; ask again when nodes are free"
        lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
        found = [json.loads(line[len(MARK) :]) for line in lines]
        seen = tuple(probe_names(storage, asked["nonce"])) if storage else None
        if storage:
            remove_probe(storage, asked["nonce"])
        # Ray's token is drawn inside the job: what a plain step says of it is beside the point.
        drop = {"auth_mode": "", "token_digest": None}
        facts = tuple(node_of(entry | drop | {"sees": seen, "is_head": n == 0}) for n, entry in enumerate(found))
        return ClusterFacts(nodes=facts, tools=tools, storage=storage, wants=wants, auth_expected=False)

    def _read(self, word: str, name: str) -> LaunchState:
        state = word.strip().rstrip("+")
        found = next((ours for ours, theirs in _STATES.items() if state in theirs), LaunchState.FAILED)
        record = read_state(self._home(name)) or {}
        # A job whose driver stopped on request ends with code 130, which SLURM calls a failure.
        return LaunchState.STOPPED if found is LaunchState.FAILED and record.get("state") == "STOPPED" else found

    def _home(self, name: str) -> Path:
        return Path(self._profile.folder) / name

    def _program(self, name: str) -> str:
        return str(Path(self._profile.sbatch).with_name(name)) if "/" in self._profile.sbatch else name

    def _script(self, launch: Launch, home: Path) -> str:
        profile = self._profile
        supervisor = words(
            profile.python,
            launch.name,
            package=str(home / "package.zip"),
            folder=str(home),
            max_restarts=profile.max_restarts,
            check=launch.storage_path if profile.check else None,
            overrides=launch.overrides,
        )
        resources = f"--num-cpus {profile.cpus_per_node}"
        resources += f" --num-gpus {profile.gpus_per_node}" if profile.gpus_per_node else ""
        has_folder = "/" in profile.python
        return SCRIPT.format(
            directives="\n".join(f"#SBATCH {option}" for option in self._options(launch.name, home)),
            script=shlex.quote(str(home / "job.sh")),
            setup="\n".join(profile.setup),
            environment="\n".join(f"export {name}={shlex.quote(text)}" for name, text in profile.environment.items()),
            python=shlex.quote(profile.python),
            join_seconds=profile.join_seconds,
            study=shlex.quote(str(home / "study")),
            # `ray symmetric-run` calls `ray` by its name
            path=f'export PATH={shlex.quote(str(Path(profile.python).parent))}:"$PATH"\n' if has_folder else "",
            cpus=profile.cpus_per_node,  # srun does not take it from sbatch
            resources=resources,
            supervisor=shlex.join(supervisor),
        )

    def _options(self, name: str, home: Path) -> list[str]:
        profile = self._profile
        found = [
            f"--job-name={name}",
            f"--nodes={profile.nodes}",
            "--ntasks-per-node=1",
            f"--cpus-per-task={profile.cpus_per_node}",
            f"--time={profile.time}",
            "--requeue",  # a lost node puts the job back into the queue; the ledger lets it go on
            "--open-mode=append",
            f"--output={home / 'log.txt'}",
            "--signal=B:TERM@120",  # two minutes before the limit: the driver saves what it has
        ]
        found += [f"--gpus-per-node={profile.gpus_per_node}"] if profile.gpus_per_node else []
        found += [f"--mem={profile.memory_per_node}"] if profile.memory_per_node else []
        found += ["--exclusive"] if profile.exclusive else []
        named = {"partition": profile.partition, "account": profile.account, "qos": profile.qos}
        found += [f"--{key}={value}" for key, value in named.items() if value]
        return found + profile.options
