"""A study as one zip file: what `sweeper launch` ships.

The folder of the study file goes in, without what ``.sweeperignore`` names (the syntax of ``.gitignore``), and so do
the files outside that folder that the study uses. The study file inside is the resolved one, with overrides applied
and paths relative to the package.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pathspec import GitIgnoreSpec

from sweeper.core.errors import InputError, Problem
from sweeper.spec.load import dump_study
from sweeper.spec.study import StudySpec

MAX_BYTES = 512 * 2**20  # the most that Ray's Jobs API takes
IGNORE_FILE = ".sweeperignore"
ALWAYS_LEFT_OUT = (
    ".git/",
    ".venv/",
    "venv/",
    "__pycache__/",
    "*.pyc",
    "*.egg-info/",
    ".*_cache/",
    "node_modules/",
    "wandb/",
    "mlruns/",
    ".env",
    ".env.*",
    "*.pem",
    "*.key",
    ".netrc",
    "auth_token",
)
"""What never belongs to a study, and what usually holds secrets; ``!NAME`` in `IGNORE_FILE` brings one back."""


@dataclass(frozen=True, kw_only=True)
class Package:
    """What was packed: ``files`` by name in the zip, their size before packing, and a hash of names and contents."""

    path: Path
    files: dict[str, int]
    digest: str

    @property
    def num_bytes(self) -> int:
        """Sum of the files' sizes."""
        return sum(self.files.values())


def build_package(
    spec: StudySpec,
    folder: Path,
    target: Path,
    *,
    storage_path: str,
    shared_paths: Sequence[str] = (),
    prefix: str = "",
) -> Package:
    """Write the zip of a study.

    Parameters
    ----------
    spec:
        The study as loaded: paths are absolute.
    folder:
        The study file's folder.
    target:
        The zip file to write.
    storage_path:
        Where results go, as the cluster sees it.
    shared_paths:
        Folders that the cluster sees too: files below them are named, not packed.
    prefix:
        Put before every name, such as ``study/``: remote ``working_dir`` URIs need one folder at the top.

    Raises
    ------
    InputError
        When a file does not exist, or everything together is over `MAX_BYTES`.
    """
    packed = _Packed(folder.resolve(), tuple(Path(path).resolve() for path in shared_paths))
    inside = packed.study(spec, storage_path)
    files = dict(packed.files())
    total = sum(path.stat().st_size for path in files.values())
    if total > MAX_BYTES:
        largest = sorted(files, key=lambda name: -files[name].stat().st_size)[:3]
        named = ", ".join(f"{name} ({files[name].stat().st_size / 2**20:.0f} MiB)" for name in largest)
        rule = f"a package must be at most {MAX_BYTES // 2**20} MiB; the largest files are {named}"
        remedy = f"name them in {IGNORE_FILE}, or put them where all nodes see them and list that under shared_paths"
        raise InputError(Problem(str(folder), rule, f"{total / 2**20:.0f} MiB", remedy))
    text = dump_study(inside).encode()
    digest = hashlib.blake2b(text, digest_size=16)
    sizes = {"study.yaml": len(text)}
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        _add(archive, prefix + "study.yaml", text)
        for name, path in sorted(files.items()):
            content = path.read_bytes()
            digest.update(name.encode() + b"\0" + hashlib.blake2b(content).digest())
            _add(archive, prefix + name, content)
            sizes[name] = len(content)
    return Package(path=target, files=sizes, digest=digest.hexdigest())


def unpack(package: Path, folder: Path) -> None:
    """Unpack a package of ours; names that lead out of ``folder`` are refused."""
    with zipfile.ZipFile(package) as archive:
        for name in archive.namelist():
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise InputError(Problem(str(package), "names in a package must stay inside it", name, "pack it anew"))
        archive.extractall(folder)


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Add a file without its times and owner: the same study gives the same package."""
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, content)


class _Packed:
    """Collects what a study needs and how each thing is called inside the package."""

    def __init__(self, folder: Path, shared: tuple[Path, ...]) -> None:
        self._folder = folder
        self._shared = shared
        self._outside: dict[str, Path] = {}
        self._used: list[PurePosixPath] = []
        self._problems: list[Problem] = []

    def study(self, spec: StudySpec, storage_path: str) -> StudySpec:
        """Return the study with the package's paths, and note what it uses."""
        data = spec.task.data
        splits = {
            name: self._data(f"task.data.{name}", getattr(data, name)) for name in ("train", "validation", "test")
        }
        models = [
            model.model_copy(
                update={
                    "checkpoint": self._checkpoint(f"models.{model.name}.checkpoint", model.checkpoint),
                    "space": self._path(f"models.{model.name}.space", model.space),
                }
            )
            for model in spec.models
        ]
        task = spec.task.model_copy(update={"data": data.model_copy(update=splits)})
        search = spec.search.model_copy(update={"space": self._path("search.space", spec.search.space)})
        local = spec.cluster.model_copy(update={"profile": "local", "address": None})
        changed = {"task": task, "models": models, "search": search, "cluster": local, "storage_path": storage_path}
        if self._problems:
            raise InputError(self._problems)
        return spec.model_copy(update=changed)

    def files(self) -> Iterator[tuple[str, Path]]:
        """Yield every file to pack with its name; what the study itself names is never left out."""
        lines = list(ALWAYS_LEFT_OUT)
        own = self._folder / IGNORE_FILE
        if own.is_file():
            lines += own.read_text().splitlines()
        left_out = GitIgnoreSpec.from_lines(lines)
        for path in _walk(self._folder, left_out, self._used):
            if path.name != "study.yaml" or path.parent != self._folder:
                yield path.relative_to(self._folder).as_posix(), path
        for name, path in self._outside.items():
            if path.is_dir():
                for file in _walk(path, GitIgnoreSpec.from_lines(ALWAYS_LEFT_OUT), []):
                    yield f"{name}/{file.relative_to(path).as_posix()}", file
            else:
                yield name, path

    def _data(self, place: str, value: str | float) -> str | float:
        if not isinstance(value, str) or value.startswith("builtin:") or "://" in value:
            return value
        if value.startswith("memory:"):
            remedy = "write the data to files, and name those"
            self._problems.append(Problem(place, "data in memory cannot be launched", value, remedy))
            return value
        return str(self._path(place, value)) if value.startswith("/") else value

    def _checkpoint(self, place: str, value: str) -> str:
        return str(self._path(place, value)) if value.startswith("/") else value

    def _path(self, place: str, value: str | None) -> str | None:
        """Return a path's name inside the package; noted, so that it is packed."""
        if value is None or "://" in value:
            return value
        path = Path(value)
        if any(path.resolve().is_relative_to(shared) for shared in self._shared):
            return value
        if not path.exists():
            self._problems.append(Problem(place, "must exist to be packaged", value, "correct the path"))
            return value
        if path.resolve().is_relative_to(self._folder):
            name = path.resolve().relative_to(self._folder).as_posix()
            self._used.append(PurePosixPath(name))
            return name if path.is_dir() or "/" in name or PurePosixPath(name).suffix else f"./{name}"
        key = hashlib.blake2b(str(path.resolve()).encode(), digest_size=4).hexdigest()
        name = f"outside/{key}/{re.sub(r'[^A-Za-z0-9._-]', '_', path.name)}"
        self._outside[name] = path.resolve()
        return name


def _walk(folder: Path, left_out: GitIgnoreSpec, used: Sequence[PurePosixPath]) -> Iterator[Path]:
    """Yield the files below a folder in order, without results of studies and without what is left out."""

    def wanted(name: PurePosixPath) -> bool:
        return any(name.is_relative_to(one) or one.is_relative_to(name) for one in used)

    def visit(at: Path) -> Iterator[Path]:
        for path in sorted(at.iterdir()):
            name = PurePosixPath(path.relative_to(folder).as_posix())
            is_folder = path.is_dir()
            needed = wanted(name)
            if not needed and left_out.match_file(f"{name}/" if is_folder else str(name)):
                continue
            if not is_folder:
                yield path
            elif needed or not (path.is_symlink() or _is_results(path)):
                yield from visit(path)

    yield from visit(folder)


def _is_results(folder: Path) -> bool:
    """Whether a folder holds results of studies: they are fetched, never shipped."""
    return (folder / "ledger.jsonl").is_file() or any((child / "ledger.jsonl").is_file() for child in folder.iterdir())
