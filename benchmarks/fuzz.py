"""Damaged and hostile files for every reader: nothing but a clear error may come out.

    python benchmarks/fuzz.py --inputs 2000 --json OUT.json

Each reader gets valid files that were changed at random: bytes flipped, cut, doubled, swapped with parts of others, or
replaced by what parsers trip over. An outcome is a result, or an `InputError` of at most 2,000 characters; anything
else is a crash, kept with its seed. Readers: study files, spaces, ledgers, tables of results, data (csv, json lines,
Parquet, images), checkpoints (configuration, safetensors). Memory is limited to 4 GB above the start.
Exit code 1 when anything crashed.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import random
import resource
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import transformers as hf
from machine import facts
from PIL import Image

from sweeper.core.errors import InputError
from sweeper.core.head import HeadSpec
from sweeper.core.objective import Objective
from sweeper.core.space import Params
from sweeper.core.trial import Measurement, TrialSpec, TrialState
from sweeper.data.prepare import prepare
from sweeper.models.checkpoints import inspect
from sweeper.models.load import load
from sweeper.spec.load import load_study
from sweeper.spec.space import load_space
from sweeper.spec.study import DataSpec, ModelSpec, TaskSpec
from sweeper.store.ledger import Ledger
from sweeper.store.paths import ResultPaths
from sweeper.store.state import StudyState
from sweeper.workflows.book import Book

EXTRA_BYTES = 4 * 10**9
NASTY = [
    b"\0", b"\xff\xfe", b"&a [*a, *a]", b"!!python/object:os.system ls", b"{" * 2000, b"[" * 2000, b"1e999", b"-0",
    b"NaN", b"null", b"true", b"9" * 400, b"../../etc/passwd", b"\xef\xbb\xbf", b"\t", b": ", b"\n", b"- ", b'"', b"''",
    b"\xf0\x9f", b"~", b"0x7fffffffffffffff", b"2026-01-01", b"<<: *x", b"%YAML 9.9",
    b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80",
]  # fmt: skip
HEAD = HeadSpec(
    auto_class="AutoModelForSequenceClassification", labels=("a", "b"), problem_type="single_label_classification"
)


@dataclass(frozen=True)
class Reader:
    """A reader, the file that is damaged for it, and valid contents of that file."""

    read: Callable[[Path], Any]
    file: str
    contents: list[bytes]
    beside: dict[str, bytes]
    seal: Callable[[bytes], bytes] = bytes


def resealed(content: bytes) -> bytes:
    """Give every line of a damaged ledger a checksum that fits, as whoever forges one would."""
    bodies = (line.rpartition(b',"crc":"')[0] or line for line in content.split(b"\n") if line)
    return b"".join(b'%s,"crc":"%08x"}\n' % (body, zlib.crc32(body + b"}")) for body in bodies)


def mutated(content: bytes, others: list[bytes], draw: random.Random) -> bytes:
    """Change a valid file in one to four ways."""
    data = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(data) + 1)
        to = min(len(data), at + draw.choice([1, 4, 16, 256]))
        match draw.randrange(7):
            case 0:
                data[at:to] = bytes(byte ^ (1 << draw.randrange(8)) for byte in data[at:to])
            case 1:
                del data[at:to]
            case 2:
                data[at:at] = data[at:to] * draw.choice([1, 2, 50])
            case 3:
                del data[at:]
            case 4:
                other = draw.choice(others)
                start = draw.randrange(len(other) + 1)
                data[at:to] = other[start : start + draw.choice([8, 64, 512])]
            case 5:
                data[at:to] = draw.choice(NASTY)
            case _:
                data[at:at] = draw.choice(NASTY)
    return bytes(data)


def text_readers(folder: Path) -> dict[str, Reader]:
    """Return the readers of study, space and ledger."""
    root = Path(__file__).parents[1]
    studies = [path.read_bytes() for path in sorted(root.glob("examples/*/study.yaml"))]
    spaces = [path.read_bytes() for path in [*root.glob("search_spaces/*.yaml"), *root.glob("examples/*/space.yaml")]]
    paths = ResultPaths(folder)
    with Ledger.open(paths) as ledger:
        ledger.append("study_opened", plan_hash="x" * 64, reason="run")
        ledger.append("note", text="a note")
        params: Params = {"learning_rate": 0.1}
        trial = TrialSpec(trial_id="m-t0000", number=0, model="m", params=params, seed=0, max_epochs=3)
        book = Book(ledger, StudyState.replay(ledger.events()), Objective("a", "maximize"), num_workers=1)
        book.asked(trial, {})
        for epoch in range(1, 4):
            measured = {"train_loss": 1.0, "validation_loss": math.nan, "elapsed_seconds": 1.0 * epoch}
            book.measured(trial.trial_id, 0, Measurement(epoch=epoch, metrics={"a": 0.5}, **measured))
        book.ended(trial.trial_id, TrialState.COMPLETE, "", "")
    name = paths.ledger.name

    def read_ledger(path: Path) -> None:
        StudyState.replay(Ledger.read(ResultPaths(path.parent)))

    return {
        "study": Reader(load_study, "study.yaml", studies, {}),
        "space": Reader(load_space, "space.yaml", spaces, {}),
        "ledger": Reader(read_ledger, name, [paths.ledger.read_bytes()], {}),
        "forged ledger": Reader(read_ledger, name, [paths.ledger.read_bytes()], {}, resealed),
    }


def data_readers() -> dict[str, Reader]:
    """Return the readers of data files."""
    rows = pa.table({"text": [f"words number {i}" for i in range(40)], "label": ["ab"[i % 2] for i in range(40)]})
    csv, parquet = io.BytesIO(), io.BytesIO()
    pyarrow.csv.write_csv(rows, csv)
    pq.write_table(rows, parquet)
    lines = "\n".join(json.dumps(row) for row in rows.to_pylist()).encode()
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    images = []
    for kind in ("PNG", "JPEG", "BMP", "GIF", "WEBP"):
        sink = io.BytesIO()
        Image.fromarray(pixels).save(sink, kind)
        images.append(sink.getvalue())

    def of(suffix: str) -> Callable[[Path], Any]:
        def read(path: Path) -> None:
            spec = TaskSpec(type="text-classification", data=DataSpec(train=str(path)))
            with tempfile.TemporaryDirectory() as out:
                prepare(spec, kind="text", seed=0, folder=Path(out))

        return read

    def read_images(path: Path) -> None:
        spec = TaskSpec(type="image-classification", data=DataSpec(train=str(path.parents[1])))
        with tempfile.TemporaryDirectory() as out:
            prepare(spec, kind="image", seed=0, folder=Path(out))

    beside = {f"pictures/{label}/{i}.png": images[0] for label in "ab" for i in range(8)}
    return {
        "csv": Reader(of("csv"), "data.csv", [csv.getvalue()], {}),
        "json lines": Reader(of("jsonl"), "data.jsonl", [lines], {}),
        "parquet": Reader(of("parquet"), "data.parquet", [parquet.getvalue()], {}),
        "image": Reader(read_images, "pictures/a/damaged.png", images, beside),
    }


def checkpoint_readers(folder: Path) -> dict[str, Reader]:
    """Return the readers of a checkpoint's configuration and weights."""
    config = hf.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=8)
    hf.BertModel(config).save_pretrained(folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}

    def read(path: Path) -> None:
        spec = ModelSpec(name="m", checkpoint=str(path.parent))
        inspect(spec)
        load(spec, HEAD)

    return {
        name: Reader(read, file, [files[file]], {key: value for key, value in files.items() if key != file})
        for name, file in (("configuration", "config.json"), ("safetensors", "model.safetensors"))
    }


def fuzz(reader: Reader, seed: str, home: Path) -> str | None:
    """Give one damaged file to a reader; return the trace of a crash."""
    draw = random.Random(seed)
    for name, content in reader.beside.items():
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    path = home / reader.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(reader.seal(mutated(draw.choice(reader.contents), reader.contents, draw)))
    try:
        reader.read(path)
    except InputError as error:
        return None if len(str(error)) <= 2000 * len(error.problems) else f"an error of {len(str(error))} characters"
    except Exception:
        return traceback.format_exc()[-1500:]
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=2000, help="damaged files for each reader")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    hf.logging.set_verbosity(50)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + EXTRA_BYTES, resource.RLIM_INFINITY))
    began = time.monotonic()
    crashes: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory(prefix="sweeper-fuzz-") as folder:
        home = Path(folder)
        readers = {
            **text_readers(home / "ledger"),
            **data_readers(),
            **checkpoint_readers(home / "checkpoint"),
        }
        for name, reader in readers.items():
            for index in range(arguments.inputs):
                seed = f"{arguments.seed}/{name}/{index}"
                found = fuzz(reader, seed, home / name)
                if found:
                    crashes.setdefault(name, []).append(f"{seed}\n{found}")
            print(f"{name}: {arguments.inputs} inputs, {len(crashes.get(name, []))} crashes", flush=True)
    report = {
        "inputs": arguments.inputs * len(readers),
        "crashes": {name: len(found) for name, found in crashes.items()},
        "examples": {name: found[:5] for name, found in crashes.items()},
        "seconds": round(time.monotonic() - began, 1),
        "machine": facts(),
    }
    for found in crashes.values():
        print("\n".join(sorted({trace[-700:] for trace in found}, key=len)[:6]))
    print(json.dumps({key: value for key, value in report.items() if key != "examples"}, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return bool(crashes)


if __name__ == "__main__":
    sys.exit(main())
