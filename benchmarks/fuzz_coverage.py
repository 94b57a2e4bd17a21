"""Feed the readers of study files, spaces and ledgers inputs that coverage guides, by libFuzzer through atheris.

    pip install -c constraints.txt '.[fuzz]'
    python benchmarks/fuzz_coverage.py --seconds 60 --json OUT.json

`fuzz.py` damages valid files blindly and covers every reader; this one watches which lines of the reader an input
reaches and keeps those that reach new ones. The first inputs are valid files and what YAML and JSON parsers stumble
over. A reader may return or raise `InputError`; anything else is a crash, and its input is kept. Exit code 1 then.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["sweeper.spec", "sweeper.store", "sweeper.core", "ruamel"]):
    import fuzz
from machine import facts, publish

from sweeper.core.errors import InputError

READERS = ("study", "space", "ledger", "forged ledger")
_LAST = re.compile(r"#(\d+)\s+DONE\s+cov: (\d+)")


def fuzz_one(name: str, home: Path, seconds: int) -> None:
    """Fuzz one reader in this process until time is up; libFuzzer ends the process."""
    reader = fuzz.text_readers(home / "valid")[name]
    corpus, place = home / "corpus", home / "input" / reader.file
    for folder in (corpus, place.parent):
        folder.mkdir(parents=True, exist_ok=True)
    for beside, content in reader.beside.items():
        (place.parent / beside).write_bytes(content)
    for number, content in enumerate([*reader.contents, *fuzz.NASTY]):
        (corpus / str(number)).write_bytes(content)

    def read(content: bytes) -> None:
        place.write_bytes(reader.seal(content))
        try:
            reader.read(place)
        except InputError:
            return

    options = [f"-max_total_time={seconds}", "-max_len=4096", "-timeout=20", "-rss_limit_mb=4096"]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={home}/", str(corpus)], read)
    atheris.Fuzz()


def main() -> int:
    """Fuzz each reader in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="for each reader")
    parser.add_argument("--readers", default=",".join(READERS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        fuzz_one(options.one, options.home, options.seconds)
    found: dict[str, dict[str, int]] = {}
    crashes: dict[str, str] = {}
    for name in options.readers.split(","):
        with tempfile.TemporaryDirectory(prefix="sweeper-fuzz-") as home:
            command = [sys.executable, __file__, "--one", name, "--home", home, "--seconds", str(options.seconds)]
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
            last = _LAST.search(done.stderr)
            found[name] = {"inputs": int(last[1]), "edges_covered": int(last[2])} if last else {"inputs": 0}
            if done.returncode or not last:
                kept = [path.read_bytes().hex() for path in Path(home).glob("*-*") if path.is_file()]
                crashes[name] = f"{done.stderr[-1500:]}\ninput: {kept}"
        print(f"{name}: {found[name]}, {'CRASH' if name in crashes else 'no crash'}", flush=True)
    report = {"readers": found, "crashes": crashes, "seconds": options.seconds, "machine": facts()}
    publish(report, options.json)
    return bool(crashes)


if __name__ == "__main__":
    sys.exit(main())
