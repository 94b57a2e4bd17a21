"""What is dangerous in a data set: duplicates, leakage between splits, conflicting labels, imbalance.

The check reads the inputs of all three splits, the sealed test included, to compare hashes; no model sees them.
Duplicates are exact after normalising (Unicode NFKC, case, white space) or decoding (images). Near ones: MinHash over
character 5-grams, estimated Jaccard of at least .8 (Broder 1997); images: 64-bit difference hashes within 4 bits.
"""

from __future__ import annotations

import io
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray
from PIL import Image

from sweeper.data.prepare import SPLITS, PreparedData

JACCARD = 0.8
_PERMUTATIONS = 64
_SHINGLE = 5
_HASH_BITS = 4  # bits by which near images may differ
_LONG_FACTOR = 8  # an input this many times longer than the median is listed as over-long


@dataclass(frozen=True)
class DataReport:
    """The findings, counts of rows.

    ``exact_duplicates``: rows whose input stood earlier in the same split (``all``: in the whole data set).
    ``leaks``, ``near_leaks``: by pair of splits, rows of the second whose input stands, or nearly stands, in the
    first; near ones are None where the extra that finds them is missing.
    """

    rows: dict[str, int]
    exact_duplicates: dict[str, int]
    leaks: dict[str, int]
    near_leaks: dict[str, int] | None
    conflicting_labels: int
    missing: int
    classes: dict[str, int]
    imbalance_ratio: float
    over_long: int
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON for machines."""
        return {**asdict(self), "notes": list(self.notes)}

    def as_text(self) -> str:
        """A few lines for people."""
        near = self.near_leaks or {}
        lines = [
            "rows: " + ", ".join(f"{split} {count}" for split, count in self.rows.items()),
            f"classes: {len(self.classes)}, largest / smallest in train {self.imbalance_ratio:.1f}",
            "exact duplicates: " + ", ".join(f"{split} {count}" for split, count in self.exact_duplicates.items()),
            "leaks: "
            + ", ".join(
                f"{pair} {count}" + (f" (+{near[pair]} near)" if pair in near else "")
                for pair, count in self.leaks.items()
            ),
            f"inputs with conflicting labels: {self.conflicting_labels}; over-long inputs: {self.over_long}",
        ]
        return "\n".join([*lines, *self.notes])


def check(prepared: PreparedData) -> DataReport:
    """Check prepared data; reads all splits, changes nothing."""
    tables = {"train": prepared.train(), "validation": prepared.validation(), "test": prepared.open_test()}
    is_image = "image" in tables["train"].column_names
    texts = {} if is_image else {split: _texts(table) for split, table in tables.items()}
    keys = {
        split: _image_keys(table) if is_image else [xxhash.xxh3_64_intdigest(_normal(t).encode()) for t in texts[split]]
        for split, table in tables.items()
    }
    leaks = {}
    for first, second in combinations(SPLITS, 2):
        known = set(keys[first])
        leaks[f"{first}-{second}"] = sum(key in known for key in keys[second])
    labels: dict[int, set[int]] = defaultdict(set)
    for split, table in tables.items():
        for key, label in zip(keys[split], table.column("label").to_pylist(), strict=True):
            labels[key].add(label)
    notes = list(prepared.notes)
    near = _near_image_leaks(tables, keys) if is_image else _near_text_leaks(texts, keys, notes)
    everything = [key for split in SPLITS for key in keys[split]]
    classes = Counter(dict.fromkeys(prepared.classes, 0))
    for split in SPLITS:
        classes.update(prepared.counts[split])
    train = [count for count in prepared.counts["train"].values() if count]
    lengths = np.array([len(t) for split in SPLITS for t in texts[split]] if texts else [1])
    return DataReport(
        rows={split: len(keys[split]) for split in SPLITS},
        exact_duplicates={
            **{split: len(keys[split]) - len(set(keys[split])) for split in SPLITS},
            "all": len(everything) - len(set(everything)),
        },
        leaks=leaks,
        near_leaks=near,
        conflicting_labels=sum(len(found) > 1 for found in labels.values()),
        missing=0,  # rows with missing values are refused when data is prepared
        classes=dict(classes),
        imbalance_ratio=max(train) / min(train),
        over_long=int((lengths > _LONG_FACTOR * np.median(lengths)).sum()),
        notes=tuple(notes),
    )


def _texts(table: pa.Table) -> list[str]:
    texts = table.column("text").to_pylist()
    if "text_pair" in table.column_names:
        return [f"{a}\x1f{b}" for a, b in zip(texts, table.column("text_pair").to_pylist(), strict=True)]
    return list(texts)


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _open(cell: Any) -> Image.Image:
    with Image.open(io.BytesIO(cell.as_py())) as image:
        return image.convert("RGB")


def _image_keys(table: pa.Table) -> list[int]:
    keys = []
    for cell in table.column("image"):
        image = _open(cell)
        keys.append(xxhash.xxh3_64_intdigest(f"{image.size}".encode() + image.tobytes()))
    return keys


def _near_text_leaks(
    texts: dict[str, list[str]], keys: dict[str, list[int]], notes: list[str]
) -> dict[str, int] | None:
    if find_spec("datasketch") is None:
        notes.append("near duplicates were not looked for: install the extra `dedup`")
        return None
    from datasketch import MinHash, MinHashLSH

    def sketches(split: str) -> Sequence[Any]:
        def shingles(text: str) -> list[bytes]:
            normal = _normal(text)
            return list({normal[i : i + _SHINGLE].encode() for i in range(max(1, len(normal) - _SHINGLE + 1))})

        return list(MinHash.generator([shingles(t) for t in texts[split]], num_perm=_PERMUTATIONS))

    made = {split: sketches(split) for split in SPLITS}
    found = {}
    for first, second in combinations(SPLITS, 2):
        index = MinHashLSH(threshold=JACCARD, num_perm=_PERMUTATIONS)
        with index.insertion_session() as session:
            for row, sketch in enumerate(made[first]):
                session.insert(row, sketch)
        known = set(keys[first])
        found[f"{first}-{second}"] = sum(
            key not in known and any(made[first][row].jaccard(sketch) >= JACCARD for row in index.query(sketch))
            for key, sketch in zip(keys[second], made[second], strict=True)
        )
    return found


def _near_image_leaks(tables: dict[str, pa.Table], keys: dict[str, list[int]]) -> dict[str, int]:
    bits = {
        split: np.array([_difference_hash(_open(cell)) for cell in t.column("image")]) for split, t in tables.items()
    }
    found = {}
    for first, second in combinations(SPLITS, 2):
        known = set(keys[first])
        count = 0
        for key, row in zip(keys[second], bits[second], strict=True):
            if key not in known:
                count += bool((np.count_nonzero(bits[first] != row, axis=1) <= _HASH_BITS).any())
        found[f"{first}-{second}"] = count
    return found


def _difference_hash(image: Image.Image) -> NDArray[np.bool_]:
    """Return whether each of 8x8 cells is brighter than its right neighbour, (64,)."""
    small = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BILINEAR), dtype=np.int16)
    return (small[:, 1:] > small[:, :-1]).ravel()
