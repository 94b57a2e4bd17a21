"""Where the truth of a result folder lies: in the folder itself, or in an object store of which it is a working copy.

Everyone above works with files in a folder. `Storage` is what they say beside that: this is whole now (`publish`),
I need that (`obtain`). On a local or mounted folder there is nothing to do. On ``s3://`` and ``gs://`` a file becomes
an object, whole or not at all, and a folder becomes its files and then a *seal*, an object that lists sizes and
checksums: a folder without its seal does not exist, one with a wrong size or checksum is never used. The ledger has a
format of its own there, see `sweeper.store.segments`.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import json
import os
import shutil
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

from sweeper.core.errors import InputError, Problem

T = TypeVar("T")

SCHEMES = ("s3", "gs", "gcs")
SEALS = ".seals"
CHUNK_BYTES = 8 << 20
PAUSES = (0.2, 1.0, 3.0)
"""Seconds before each further try of a request that failed, beside the tries of the client library itself."""
GCS_RETRY_SECONDS = 5  # Google's client would try for 15 minutes


class Storage(Protocol):
    """What a result folder needs beside its files. Paths are those of the local folder, absolute."""

    def publish(self, path: Path) -> None:
        """Make a file or folder of the local folder durable as it is now; on return it survives this machine.

        Raises
        ------
        OSError
            When the store is out of reach, after a bounded number of tries.
        """
        ...

    def obtain(self, path: Path) -> bool:
        """Bring the published file or folder to ``path``; whether there is one.

        Raises
        ------
        OSError
            When the store is out of reach, or what it holds is not what was published.
        """
        ...

    def names(self, folder: Path) -> list[str]:
        """List the published folders directly below ``folder``, sorted."""
        ...

    def remove(self, path: Path) -> None:
        """Remove a file or folder here and in the store; absent is fine."""
        ...


class LocalFolder:
    """A folder on a local or mounted disk: what is written there is there."""

    def publish(self, path: Path) -> None:
        """Nothing to do: writers put files and folders in place whole."""

    def obtain(self, path: Path) -> bool:
        """Whether it is there."""
        return path.exists()

    def names(self, folder: Path) -> list[str]:
        """List the folders that were put in place whole."""
        try:
            found = list(folder.iterdir())
        except FileNotFoundError:
            return []
        return sorted(path.name for path in found if path.is_dir() and path.suffix != ".partial")

    def remove(self, path: Path) -> None:
        """Remove it."""
        _remove(path)


class ObjectStore:
    """A prefix of an object store, mirrored by a local folder. Keys are relative to the prefix, with ``/``.

    Parameters
    ----------
    root:
        The local working copy.
    filesystem:
        A `pyarrow.fs.FileSystem` whose writes become visible whole when their stream is closed.
    prefix:
        Bucket and path.
    url:
        How users know it; stands in messages.
    """

    def __init__(self, root: Path, filesystem: Any, prefix: str, url: str) -> None:
        self.url = url
        self._root = root
        self._filesystem = filesystem
        self._prefix = prefix.rstrip("/")

    # -- a folder's storage --------------------------------------------------------------------------------

    def publish(self, path: Path) -> None:
        """See `Storage`. A folder's seal is written last."""
        key = self._key(path)
        if not path.is_dir():
            self.put(key, path.read_bytes())
            return
        files = {file.relative_to(path).as_posix(): file for file in sorted(path.rglob("*")) if file.is_file()}
        listed = {name: self._upload(f"{key}/{name}", file) for name, file in files.items()}
        token = uuid.uuid4().hex
        self.put(_seal(key), json.dumps({"token": token, "files": listed}).encode())
        self._local_seal(path).parent.mkdir(parents=True, exist_ok=True)
        self._local_seal(path).write_text(token)

    def obtain(self, path: Path) -> bool:
        """See `Storage`. A folder that is here already, under the same seal, is not fetched again."""
        key = self._key(path)
        text = self.get(_seal(key))
        if text is None:
            content = self.get(key)
            if content is not None:
                _put_in_place(path, lambda partial: partial.write_bytes(content))
            return content is not None
        seal = json.loads(text)
        with _one_at_a_time(self._local_seal(path)):
            if path.is_dir() and _read(self._local_seal(path)) == seal["token"]:
                return True
            self._local_seal(path).unlink(missing_ok=True)
            _put_in_place(path, lambda partial: self._download(key, seal["files"], partial))
            self._local_seal(path).write_text(seal["token"])
        return True

    def names(self, folder: Path) -> list[str]:
        """See `Storage`: those that have a seal."""
        return sorted(name.removesuffix(".json") for name in self.keys(_seal(self._key(folder), "")) if "/" not in name)

    def remove(self, path: Path) -> None:
        """See `Storage`. Seals go first, so that half a removal is a removal."""
        key = self._key(path)
        self.delete(_seal(key))
        for name in self.keys(_seal(key, "")):
            self.delete(f"{_seal(key, '')}/{name}")
        for name in self.keys(key):
            self.delete(f"{key}/{name}")
        self.delete(key)
        _remove(path)
        _remove(self._local_seal(path))
        _remove(self._root / _seal(key, ""))

    # -- objects -------------------------------------------------------------------------------------------

    def put(self, key: str, content: bytes) -> None:
        """Write one object; it is durable and visible when this returns."""

        def write() -> None:
            with self._filesystem.open_output_stream(self._at(key)) as stream:
                stream.write(content)

        self._insist(key, write)

    def get(self, key: str) -> bytes | None:
        """Read one object; None where there is none."""

        def read() -> bytes | None:
            try:
                with self._filesystem.open_input_stream(self._at(key)) as stream:
                    content: bytes = stream.read()
                    return content
            except FileNotFoundError:
                return None

        return self._insist(key, read)

    def keys(self, key: str) -> list[str]:
        """List the objects below ``key``, relative to it, at any depth."""
        from pyarrow import fs

        base = self._at(key).rstrip("/")
        selector = fs.FileSelector(base, recursive=True, allow_not_found=True)
        found = self._insist(key, lambda: self._filesystem.get_file_info(selector))
        return sorted(info.path[len(base) + 1 :] for info in found if info.type == fs.FileType.File)

    def delete(self, key: str) -> None:
        """Remove one object; absent is fine."""

        def delete() -> None:
            try:
                self._filesystem.delete_file(self._at(key))
            except FileNotFoundError:
                return

        self._insist(key, delete)

    def _insist(self, key: str, action: Callable[[], T]) -> T:
        """Carry out a request that may be repeated without harm."""
        for pause in (*PAUSES, None):
            try:
                return action()
            except (OSError, ValueError) as error:  # pyarrow raises ArrowInvalid for some answers of servers
                if pause is None:
                    text = " ".join(str(error).split())[:200]
                    raise OSError(errno.EIO, text, f"{self.url}/{key}") from error
                time.sleep(pause)
        raise AssertionError("unreachable")

    def _upload(self, key: str, file: Path) -> tuple[int, int]:
        """Write one object from a file; return its size in bytes and CRC-32."""

        def write() -> tuple[int, int]:
            size = crc = 0
            with file.open("rb") as source, self._filesystem.open_output_stream(self._at(key)) as stream:
                while chunk := source.read(CHUNK_BYTES):
                    stream.write(chunk)
                    size, crc = size + len(chunk), zlib.crc32(chunk, crc)
            return size, crc

        return self._insist(key, write)

    def _download(self, key: str, files: dict[str, list[int]], folder: Path) -> None:
        folder.mkdir(parents=True)
        for name, expected in files.items():
            target = (folder / name).resolve()
            if not target.is_relative_to(folder.resolve()):
                raise OSError(errno.EIO, f"the seal names a file outside its folder: {name}", f"{self.url}/{key}")
            target.parent.mkdir(parents=True, exist_ok=True)
            self._insist(f"{key}/{name}", functools.partial(self._fetch, f"{key}/{name}", target, tuple(expected)))

    def _fetch(self, key: str, target: Path, expected: tuple[int, ...]) -> None:
        size = crc = 0
        with self._filesystem.open_input_stream(self._at(key)) as stream, target.open("wb") as file:
            while chunk := stream.read(CHUNK_BYTES):
                file.write(chunk)
                size, crc = size + len(chunk), zlib.crc32(chunk, crc)
        if (size, crc) != expected:
            raise OSError(errno.EIO, "size or checksum is not what was published")

    def _key(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()

    def _at(self, key: str) -> str:
        return f"{self._prefix}/{key}"

    def _local_seal(self, path: Path) -> Path:
        return self._root / _seal(self._key(path))


@functools.cache
def storage_of(root: Path, url: str) -> Storage:
    """Return the storage of a result folder; ``url`` is empty where the folder itself is the truth."""
    return ObjectStore(root, *filesystem_of(url), show(url)) if url else LocalFolder()


def is_url(text: str) -> bool:
    """Whether a storage path names an object store."""
    return "://" in text


def below(url: str, name: str) -> str:
    """Return the URL of ``name`` below ``url``; options after ``?`` stay behind the path."""
    path, mark, options = url.partition("?")
    return f"{path.rstrip('/')}/{name}{mark}{options}"


def show(url: str) -> str:
    """Return a URL without its options, for messages."""
    return url.partition("?")[0]


def filesystem_of(url: str) -> tuple[Any, str]:
    """Return the `pyarrow.fs.FileSystem` of a URL, and bucket and path within it.

    Raises
    ------
    InputError
        When the scheme is unknown, the bucket is missing, or the URL holds a password.
    """
    from pyarrow import fs

    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        known = "s3:// or gs://"
        raise InputError(Problem("storage_path", f"must be a path, or a URL with {known}", show(url), "correct it"))
    if "@" in parts.netloc:
        remedy = "remove it; credentials come from the environment or the provider's own files"
        raise InputError(Problem("storage_path", "must hold no key or password", f"{parts.scheme}://...@...", remedy))
    if not parts.netloc:
        raise InputError(Problem("storage_path", "must name a bucket", url, "write s3://BUCKET/FOLDER"))
    prefix = parts.netloc + parts.path
    if parts.scheme != "s3":
        query = dict(parse_qsl(parts.query))
        query.setdefault("retry_limit_seconds", str(GCS_RETRY_SECONDS))
        return fs.FileSystem.from_uri(f"gs://{prefix}?{urlencode(query)}")[0], prefix
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    unknown = sorted(options.keys() - {"region", "scheme", "endpoint_override"})
    if unknown:
        rule = "options must be region, scheme or endpoint_override"
        raise InputError(Problem("storage_path", rule, ", ".join(unknown), "remove it"))
    region = options.pop("region", None) or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    endpoint = (
        options.get("endpoint_override") or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    )
    if region is None and endpoint is None:
        region = fs.resolve_s3_region(parts.netloc)
    retry = fs.AwsStandardS3RetryStrategy(max_attempts=5)
    # Delayed open: one request an object in the place of three, and nothing is visible before the stream is closed.
    return fs.S3FileSystem(region=region, retry_strategy=retry, allow_delayed_open=True, **options), prefix


def working_copy(url: str, purpose: str) -> Path:
    """Return the local folder that mirrors a result folder of an object store on this machine.

    Below ``SWEEPER_CACHE``, else ``~/.cache/sweeper``. Two purposes have two copies: a reader never touches a run's.
    """
    home = Path(os.environ.get("SWEEPER_CACHE") or Path.home() / ".cache" / "sweeper")
    digest = hashlib.blake2b(url.encode(), digest_size=8).hexdigest()
    return home / purpose / digest / show(url).rpartition("/")[2]


def _seal(key: str, suffix: str = ".json") -> str:
    return f"{SEALS}/{key}{suffix}"


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _put_in_place(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a file or folder under a temporary name, then move it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.partial")
    try:
        write(partial)
        if path.is_dir():
            shutil.rmtree(path)
        partial.replace(path)
    finally:
        _remove(partial)


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Keep other processes of this machine from fetching the same folder meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
