"""A running Ray cluster, by Ray's Jobs API over the dashboard's port."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import shlex
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from sweeper.clusters.base import Launch, LaunchState, Request, Step, copy_results, unpack_results
from sweeper.clusters.carry import MARK
from sweeper.clusters.collect import facts_of, questions, this_machine
from sweeper.clusters.doctor import ClusterFacts
from sweeper.clusters.profiles import ExistingProfile, TokenSpec
from sweeper.clusters.supervise import words
from sweeper.core.errors import InputError, Problem, RunFailedError

POLL_SECONDS = 1.0
CARRY_SECONDS = 600.0
_ADDRESSES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS")


def token_of(spec: TokenSpec | None) -> str | None:
    """Return the token that a profile points to.

    Raises
    ------
    InputError
        When the variable or the file is not there.
    """
    if spec is None:
        return None
    if spec.environment is not None:
        value, place = os.environ.get(spec.environment, "").strip(), f"${spec.environment}"
    else:
        path = Path(str(spec.path)).expanduser()
        value, place = path.read_text().strip() if path.is_file() else "", str(path)
    if not value:
        remedy = "set it to the token of the cluster (`ray get-auth-token` on its head), or leave token out"
        raise InputError(Problem("token", f"{place} must hold the cluster's token", "nothing", remedy))
    return value


class JobsCluster:
    """A `Cluster` by the Jobs API. The handle is the submission id.

    Parameters
    ----------
    profile:
        Address, token and storage.
    token:
        In the place of the one that the profile points to.
    """

    def __init__(self, profile: ExistingProfile, token: str | None = None) -> None:
        self._profile = profile
        self._token = token
        self._made: Any = None

    @property
    def client(self) -> Any:
        """Ray's client, connected.

        Raises
        ------
        RunFailedError
            When nothing answers at the address, or it refuses the token.
        """
        if self._made is None:
            from ray.job_submission import JobSubmissionClient

            token = self._token or token_of(self._profile.token)
            headers = {"Authorization": f"Bearer {token}"} if token else None
            with _without_ray_address():
                try:
                    self._made = JobSubmissionClient(
                        self._profile.address, headers=headers, verify=self._profile.verify
                    )
                except Exception as error:
                    raise RunFailedError(self._unreachable(error)) from None
        return self._made

    def steps(self, launch: Launch) -> Sequence[Step]:
        """One request; Ray's client uploads the package before it."""
        return [Request(address=self._profile.address, body=self._body(launch))]

    def submit(self, launch: Launch) -> str:
        """Upload and submit."""
        [request] = self.steps(launch)
        assert isinstance(request, Request)
        return str(self._ask(lambda: self.client.submit_job(**request.body)))

    def state(self, handle: str) -> LaunchState:
        """Ask for the job."""
        try:
            status = str(self._ask(lambda: self.client.get_job_info(handle)).status.value)
        except RunFailedError as error:
            if "does not exist" in str(error):
                return LaunchState.LOST
            raise
        return LaunchState(status)

    def logs(self, handle: str, *, follow: bool) -> Iterator[str]:
        """Yield the job's output so far; it is asked for anew until the job has ended."""
        given = 0
        while True:
            ended = not follow or self.state(handle).is_final
            lines = str(self._ask(lambda: self.client.get_job_logs(handle))).splitlines(keepends=True)
            whole = [line for line in lines if ended or line.endswith("\n")]
            yield from (line.rstrip("\n") for line in whole[given:])
            given = len(whole)
            if ended:
                return
            time.sleep(POLL_SECONDS)

    def cancel(self, handle: str) -> None:
        """Stop the job: Ray asks the supervisor first, and kills it after ``RAY_JOB_STOP_WAIT_TIME_S`` (3 s)."""
        if not self.state(handle).is_final:
            self._ask(lambda: self.client.stop_job(handle))

    def fetch(self, handle: str, results: str, target: Path) -> None:  # noqa: ARG002 - the protocol's signature
        """Copy the results: from where they lie when this machine sees that, else through the output of small jobs."""
        if "://" in results or Path(results).is_dir():
            copy_results(results, target)
        else:
            self._carry(results, target)

    def facts(self, storage: str | None, wants: frozenset[str]) -> ClusterFacts:
        """Ask the dashboard, then every node by a small job."""
        here = this_machine(questions(None, network=False))
        command = [self._profile.python, "-m", "sweeper.clusters.collect", *(["--storage", storage] if storage else [])]
        try:
            output = self.run_job(shlex.join(command))
            return replace(facts_of(output), here=here, wants=wants)
        except (RunFailedError, InputError) as error:
            problem = self._remedied(str(error))
            return ClusterFacts(here=here, tools={"dashboard": problem}, storage=storage, wants=wants)

    def _remedied(self, problem: str) -> str:
        """Say what to do about an address that gives no facts."""
        if "ModuleNotFoundError" in problem or "No module named" in problem:
            return f"{problem}; install sweeper on the head, or name the interpreter that has it (python)"
        if "oken" in problem:
            return problem
        return f"{problem}; start the head with its dashboard (pip install 'ray[default]'), and forward its port"

    def run_job(self, entrypoint: str, **options: Any) -> str:
        """Run a small job to its end and return its output.

        Raises
        ------
        RunFailedError
            With the end of its output, when it fails or does not end.
        """
        job = self._ask(lambda: self.client.submit_job(entrypoint=entrypoint, **options))
        deadline = time.monotonic() + CARRY_SECONDS
        while not (state := self.state(job)).is_final and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS / 4)
        output = str(self._ask(lambda: self.client.get_job_logs(job)))
        if state is not LaunchState.SUCCEEDED:
            tail = " ".join(output.split())[-300:]
            raise RunFailedError(f"a job on {self._profile.address} ended as {state.value}: {tail}")
        return output

    def _body(self, launch: Launch) -> dict[str, Any]:
        profile = self._profile
        command = words(
            profile.python,
            launch.name,
            max_restarts=profile.max_restarts,
            check=launch.storage_path if profile.check else None,
            overrides=launch.overrides,
        )
        runtime: dict[str, Any] = {"working_dir": str(launch.package)}
        if profile.environment:
            runtime["env_vars"] = dict(profile.environment)
        return {
            "entrypoint": shlex.join(command),  # without resources a job runs on the head, which is never preempted
            "submission_id": launch.name,
            "runtime_env": runtime,
            "metadata": {"study": launch.study, "results": launch.results, "started_by": "sweeper launch"},
        }

    def _carry(self, results: str, target: Path) -> None:
        """Fetch a folder that only the cluster sees: a job writes a part of it as text, until all is here."""
        parts: list[bytes] = []
        total, digest = 1, ""
        while len(parts) < total:
            name = f"carry-{uuid.uuid4().hex[:12]}"
            command = [self._profile.python, "-m", "sweeper.clusters.carry", results, str(len(parts))]
            output = self.run_job(shlex.join(command), submission_id=name)
            marked = [line[len(MARK) :].split() for line in output.splitlines() if line.startswith(MARK)]
            if not marked:
                raise RunFailedError(f"{results}: the cluster sent nothing; is the storage mounted on its head?")
            total, digest = int(marked[0][0]), marked[0][1]
            parts.append(base64.b64decode("".join(line[0] for line in marked[1:])))
        content = b"".join(parts)
        if hashlib.sha256(content).hexdigest() != digest:
            raise RunFailedError(f"{results}: changed while it was fetched; fetch it again")
        unpack_results(io.BytesIO(content), target)

    def _ask(self, call: Any) -> Any:
        try:
            return call()
        except RunFailedError:
            raise
        except Exception as error:
            raise RunFailedError(self._unreachable(error)) from None

    def _unreachable(self, error: Exception) -> str:
        text = " ".join(str(error).split())[:300]
        if "uthenticat" in text or "401" in text or "403" in text:
            text += "; name the cluster's token under `token` of the profile"
        return f"{self._profile.address}: {type(error).__name__}: {text}"


@contextmanager
def _without_ray_address() -> Iterator[None]:
    """Hide variables that would make Ray's client ask another cluster than the profile's."""
    kept = {name: os.environ.pop(name) for name in _ADDRESSES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
