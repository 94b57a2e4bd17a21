"""Runs on a cluster's head: print a part of a result folder as text, for `sweeper fetch` where nothing is shared.

python -m sweeper.clusters.carry RESULTS PART
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import sys
import tarfile
from pathlib import Path

MARK = "sweeper-carry "
PART_BYTES = 48 * 2**20
LINE_BYTES = 3 * 2**10


def pack(results: Path) -> bytes:
    """Return a tar file of a result folder without its scratch files; the same folder gives the same bytes."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for path in sorted(results.rglob("*")):
            name = path.relative_to(results)
            if path.is_file() and not path.is_symlink() and name.parts[0] not in (".scratch", "lock.json"):
                archive.add(path, str(name), filter=_plain)
    return gzip.compress(stream.getvalue(), compresslevel=3, mtime=0)


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


def main(arguments: list[str]) -> int:
    """Print the part; the first line says how many there are and the hash of the whole."""
    results, part = Path(arguments[0]), int(arguments[1])
    if not results.is_dir():
        print(f"{results}: no such folder on this node", file=sys.stderr)  # noqa: T201
        return 1
    content = pack(results)
    total = max(1, -(-len(content) // PART_BYTES))
    mine = content[part * PART_BYTES : (part + 1) * PART_BYTES]
    lines = [f"{MARK}{total} {hashlib.sha256(content).hexdigest()}"]
    lines += [MARK + base64.b64encode(mine[at : at + LINE_BYTES]).decode() for at in range(0, len(mine), LINE_BYTES)]
    print("\n".join(lines), flush=True)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
