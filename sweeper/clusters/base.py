"""What a cluster is to sweeper: something a packaged study is submitted to, asked about, and fetched from.

A `Cluster` says beforehand, as `Step`s, exactly what it will do; `submit` carries out those steps and nothing else, so
that ``--dry-run`` cannot differ from the real thing. No step holds a secret.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import IO, Any, Protocol, TypeAlias

from sweeper.clusters.commands import run
from sweeper.clusters.doctor import ClusterFacts
from sweeper.core.errors import RunFailedError
from sweeper.store.storage import SEALS, below, filesystem_of, is_url


class LaunchState(Enum):
    """Where a launched study stands."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"
    LOST = "LOST"  # the cluster knows nothing of it any more

    @property
    def is_final(self) -> bool:
        """Whether it will never change again."""
        return self not in (LaunchState.PENDING, LaunchState.RUNNING)


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One submission.

    Parameters
    ----------
    name:
        Names the launch everywhere: lower-case letters, digits and dashes, at most 47 characters.
    study:
        The study's own name; its results lie in ``<storage_path>/<study>``.
    package:
        The zip file on this machine.
    storage_path:
        Folder or URL of the results, as the cluster sees it.
    overrides:
        Given to ``sweeper run`` on the cluster, beside the packaged ``study.yaml``.
    """

    name: str
    study: str
    package: Path
    storage_path: str
    overrides: tuple[str, ...] = ()

    @property
    def results(self) -> str:
        """The result folder, as the cluster sees it."""
        return below(self.storage_path, self.study)


@dataclass(frozen=True, kw_only=True)
class WriteFile:
    """Step: write a text file that only its owner reads."""

    path: Path
    text: str

    def __str__(self) -> str:
        return f"# write {self.path}\n{self.text}"


@dataclass(frozen=True, kw_only=True)
class CopyFile:
    """Step: copy a file of this machine."""

    source: Path
    target: str

    def __str__(self) -> str:
        return f"# copy {self.source.name} ({self.source.stat().st_size:,} bytes) to {self.target}"


@dataclass(frozen=True, kw_only=True)
class Run:
    """Step: run a command, with text on its standard input where given; its output is the step's answer."""

    words: tuple[str, ...]
    stdin: str = ""

    def __str__(self) -> str:
        command = shlex.join(self.words)
        return f"# run\n{command}" + (f" <<'END'\n{self.stdin.rstrip()}\nEND" if self.stdin else "")


@dataclass(frozen=True, kw_only=True)
class Request:
    """Step: a call of the Ray Jobs API; the cluster's own code carries it out."""

    address: str
    body: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"# submit a Ray job to {self.address}\n{json.dumps(dict(self.body), indent=2)}"


@dataclass(frozen=True, kw_only=True)
class Start:
    """Step: start a process of this machine that outlives this one."""

    words: tuple[str, ...]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"# start in the background, output to {self.log}\n{shlex.join(self.words)}"


NOT_FETCHED = (".scratch", "lock.json", SEALS)
"""What of a result folder stays where it is."""

Step: TypeAlias = WriteFile | CopyFile | Run | Request | Start


class Cluster(Protocol):
    """A plug-in point; `sweeper.testing.cluster` is its conformance suite."""

    def steps(self, launch: Launch) -> Sequence[Step]:
        """Return what `submit` will do, in its order; changes nothing."""
        ...

    def submit(self, launch: Launch) -> str:
        """Carry out the steps and return a handle by which the cluster knows the launch."""
        ...

    def state(self, handle: str) -> LaunchState:
        """Return where it stands; ``LOST`` when the cluster knows nothing of it."""
        ...

    def logs(self, handle: str, *, follow: bool) -> Iterator[str]:
        """Yield the lines of its output so far; with ``follow`` until it has ended."""
        ...

    def cancel(self, handle: str) -> None:
        """Ask it to stop; finished work is kept. Nothing happens where it has ended."""
        ...

    def fetch(self, handle: str, results: str, target: Path) -> None:
        """Copy the result folder ``results`` into ``target``, a new folder of this machine.

        Scratch files (``.scratch``) are left where they are.
        """
        ...

    def facts(self, storage: str | None, wants: frozenset[str]) -> ClusterFacts:
        """Return what can be learnt of the cluster before a launch; see `doctor.diagnose`.

        What cannot be reached is a fact (``tools``), not an error.
        """
        ...


def carry_out(step: WriteFile | CopyFile | Run | Start) -> str:
    """Do one step and return its answer: a command's output, a process's id, or nothing."""
    match step:
        case WriteFile(path=path, text=text):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            path.write_text(text)
            return ""
        case CopyFile(source=source, target=target):
            copy_file(source, target)
            return ""
        case Run(words=words, stdin=stdin):
            return run(words, stdin=stdin)
        case Start():
            return str(_start(step))


def copy_file(source: Path, target: str) -> None:
    """Copy a local file to a path or to an ``s3://`` or ``gs://`` URL."""
    if not is_url(target):
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        return
    system, path = filesystem_of(target)
    with source.open("rb") as reading, system.open_output_stream(path) as writing:
        shutil.copyfileobj(reading, writing)


def copy_results(results: str, target: Path) -> None:
    """Copy a result folder that this machine can read, a path or a URL, without its scratch files.

    Raises
    ------
    FileNotFoundError
        When there is no such folder here.
    """
    from pyarrow import fs

    system, root = filesystem_of(results) if is_url(results) else (fs.LocalFileSystem(), results)
    if system.get_file_info(root).type is not fs.FileType.Directory:
        raise FileNotFoundError(results)
    target.mkdir(parents=True, exist_ok=True)
    for entry in system.get_file_info(fs.FileSelector(root, recursive=True)):
        relative = entry.path[len(root.rstrip("/")) + 1 :]
        if relative.split("/")[0] in NOT_FETCHED or entry.type is not fs.FileType.File:
            continue
        (target / relative).parent.mkdir(parents=True, exist_ok=True)
        with system.open_input_stream(entry.path) as reading, (target / relative).open("wb") as writing:
            shutil.copyfileobj(reading, writing)


def _start(step: Start) -> int:
    step.log.parent.mkdir(parents=True, exist_ok=True)
    with step.log.open("ab") as log:
        process = subprocess.Popen(
            step.words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **step.environment},
            start_new_session=True,
        )
    return process.pid


def unpack_results(stream: IO[bytes], target: Path) -> None:
    """Write the files of a tar.gz that came from a cluster, with no rights, owners or times of its own.

    Raises
    ------
    RunFailedError
        When it is damaged or ends too early, and at the first entry that is neither file nor folder, or leads out of
        ``target``. (Python's own filter for that is missing from 3.11.0 to 3.11.3.)
    """
    inside = target.resolve()
    inside.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(fileobj=stream, mode="r|gz") as archive:
            for entry in archive:
                _write_entry(archive, entry, inside)
    except tarfile.TarError as error:
        raise RunFailedError(f"what came from the cluster cannot be unpacked ({error}); fetch it again") from None


def _write_entry(archive: tarfile.TarFile, entry: tarfile.TarInfo, inside: Path) -> None:
    place = (inside / entry.name).resolve()
    content = archive.extractfile(entry) if entry.isfile() else None
    if not place.is_relative_to(inside) or (content is None and not entry.isdir()):
        raise RunFailedError(f"{entry.name!r} came from the cluster: a file below {inside} was expected")
    if content is None:
        place.mkdir(parents=True, exist_ok=True)
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    with content, place.open("wb") as file:
        shutil.copyfileobj(content, file)
