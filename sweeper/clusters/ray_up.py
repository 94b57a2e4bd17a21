"""Virtual machines by ``ray up``: the head is reached over ssh, and jobs are submitted on it."""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from shutil import which

from ruamel.yaml import YAML

from sweeper.clusters.base import Launch, LaunchState, Run, Step, WriteFile, carry_out, copy_results, unpack_results
from sweeper.clusters.commands import attempt, run
from sweeper.clusters.doctor import ClusterFacts
from sweeper.clusters.launches import home_of
from sweeper.clusters.profiles import RayUpProfile
from sweeper.clusters.supervise import words
from sweeper.core.errors import RunFailedError
from sweeper.core.node_types import NODE_TYPES

UP_SECONDS = 1800.0
CONFIG_ON_HEAD = "~/ray_bootstrap_config.yaml"
"""Where `ray up` puts the configuration, with what the cloud said of each machine type filled in."""
_STATUS = re.compile(r"Status for job '[^']+': (\w+)|Job '[^']+' (succeeded|failed|was stopped)")
_ENDS = {"succeeded": LaunchState.SUCCEEDED, "failed": LaunchState.FAILED, "was stopped": LaunchState.STOPPED}


class RayUpCluster:
    """A `Cluster` on a cloud. The handle is the submission id on the head."""

    def __init__(self, profile: RayUpProfile) -> None:
        self._profile = profile

    def steps(self, launch: Launch) -> Sequence[Step]:
        """Write Ray's configuration, start the head where it does not run, bring the package, submit a job there."""
        profile, config = self._profile, self._config(launch.name)
        package = f"{profile.folder}/{launch.name}.zip"
        command = words(
            profile.python,
            launch.name,
            max_restarts=profile.max_restarts,
            check=launch.storage_path if profile.check else None,
            overrides=launch.overrides,
        )
        submit = ["ray", "job", "submit", "--no-wait", "--submission-id", launch.name]
        submit += ["--working-dir", package.replace("~", "$HOME", 1)]
        variables = {NODE_TYPES: CONFIG_ON_HEAD, **profile.environment}
        submit += ["--runtime-env-json", json.dumps({"env_vars": variables})]
        remote = " ".join(w if w.startswith("$HOME") else shlex.quote(w) for w in [*submit, "--", *command])
        return [
            WriteFile(path=config, text=self._text()),
            Run(words=(profile.ray, "up", "--yes", "--no-config-cache", str(config))),
            Run(words=(profile.ray, "exec", str(config), f"mkdir -p {profile.folder}")),
            Run(words=(profile.ray, "rsync-up", str(config), str(launch.package), package)),
            Run(words=(profile.ray, "exec", str(config), self._on_head(remote))),
        ]

    def submit(self, launch: Launch) -> str:
        """Do so; starting virtual machines takes minutes."""
        for step in self.steps(launch):
            if isinstance(step, Run):
                run(step.words, timeout_seconds=UP_SECONDS)
            else:
                carry_out(step)  # type: ignore[arg-type]
        return launch.name

    def state(self, handle: str) -> LaunchState:
        """Ask the head."""
        done = self._exec(handle, f"ray job status {handle}")
        said = done.stdout + done.stderr
        found = _STATUS.search(said)
        if found is None:
            if "does not exist" in said or "Head node" in said:
                return LaunchState.LOST
            raise RunFailedError(f"ray exec: {' '.join(said.split())[-300:]}")
        return _ENDS[found[2]] if found[2] else LaunchState(found[1])

    def logs(self, handle: str, *, follow: bool) -> Iterator[str]:
        """Yield the job's output, over ssh."""
        command = f"ray job logs {'--follow ' if follow else ''}{handle}"
        words = [self._profile.ray, "exec", str(self._config(handle)), self._on_head(command)]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdout is not None
            yield from (line.rstrip("\n") for line in process.stdout)

    def cancel(self, handle: str) -> None:
        """Stop the job; the machines stay: ``ray down CONFIG`` ends them."""
        if not self.state(handle).is_final:
            done = self._exec(handle, f"ray job stop {handle}")
            if done.returncode:
                raise RunFailedError(f"ray job stop: {' '.join((done.stdout + done.stderr).split())[-300:]}")

    def fetch(self, handle: str, results: str, target: Path) -> None:
        """Copy from object storage, or from the head over ssh."""
        if "://" in results:
            copy_results(results, target)
            return
        target.mkdir(parents=True, exist_ok=True)
        bundle = f"/tmp/{handle}.tar.gz"  # noqa: S108 - on the head, its name is the launch's own
        pack = ["tar", "--create", "--gzip", "--file", bundle, "--directory", results, "--exclude=./.scratch", "."]
        config = str(self._config(handle))
        run([self._profile.ray, "exec", config, shlex.join(pack)], timeout_seconds=UP_SECONDS)
        here = target.with_name(f"{target.name}.tar.gz")
        run([self._profile.ray, "rsync-down", config, bundle, str(here)], timeout_seconds=UP_SECONDS)
        try:
            with here.open("rb") as stream:
                unpack_results(stream, target)
        finally:
            here.unlink()

    def facts(self, storage: str | None, wants: frozenset[str]) -> ClusterFacts:
        """Look at what ``ray up`` needs on this machine; the nodes are examined by the job itself before it starts."""
        cluster = self._profile.cluster
        library = {"aws": "boto3", "gcp": "googleapiclient"}.get(cluster["provider"]["type"])
        tools = {
            "ray": "" if which(self._profile.ray) else f"no program {self._profile.ray}; pip install 'ray[default]'"
        }
        if library:
            there = find_spec(library) is not None
            tools["cloud"] = "" if there else f"{library} is not installed; pip install it beside ray"
        for target, source in cluster.get("file_mounts", {}).items():
            if not Path(source).expanduser().exists():
                remedy = "ray get-auth-token --generate" if "token" in target else "make it, or correct file_mounts"
                tools[f"file {source}"] = f"does not exist; {remedy}"
        return ClusterFacts(tools=tools, storage=storage, wants=wants)

    def _exec(self, handle: str, command: str) -> subprocess.CompletedProcess[str]:
        return attempt([self._profile.ray, "exec", str(self._config(handle)), self._on_head(command)])

    def _on_head(self, command: str) -> str:
        """Return a command as it runs on the head: with its token, which lies in a file only there."""
        return f"RAY_AUTH_MODE=token {command}"

    def _config(self, name: str) -> Path:
        return home_of(name) / "cluster.yaml"

    def _text(self) -> str:
        yaml = YAML(typ="safe", pure=True)
        yaml.default_flow_style = False
        yaml.width = 4096
        stream = io.StringIO()
        yaml.dump(self._profile.cluster, stream)
        return stream.getvalue()
