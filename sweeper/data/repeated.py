"""Inputs that stand more than once as they are: cheap enough to be told of in every study's report."""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations

import pyarrow as pa
import xxhash

from sweeper.data.prepare import SPLITS, PreparedData

INPUTS = ("text", "text_pair", "image")
ROWS_AT_ONCE = 256


def repeated_inputs(prepared: PreparedData) -> str:
    """Say in a sentence what stands more than once; empty where nothing does.

    Inputs count as the same where their texts, or the bytes of their image files, are. The check (`data.checks`) finds
    near ones too, and takes longer. It hashes the inputs of all three splits, the sealed test included; no model sees
    them, and of test nothing but the inputs is looked at.
    """
    tables = {"train": prepared.train(), "validation": prepared.validation(), "test": prepared.open_test()}
    keys = {split: _keys(table) for split, table in tables.items()}
    found = []
    for split in SPLITS:
        again = len(keys[split]) - len(set(keys[split]))
        if again:
            found.append(f"{again} of {len(keys[split])} {split} inputs stood earlier in it")
    for first, second in combinations(SPLITS, 2):
        known = set(keys[first])
        leaked = sum(key in known for key in keys[second])
        if leaked:
            found.append(f"{leaked} of {len(keys[second])} {second} inputs stand in {first}")
    if prepared.facts.kind in ("class", "labels"):
        labels: dict[int, set[str]] = defaultdict(set)
        for split in ("train", "validation"):
            for key, label in zip(keys[split], tables[split].column("label").to_pylist(), strict=True):
                labels[key].add(str(label))
        conflicts = sum(len(values) > 1 for values in labels.values())
        if conflicts:
            found.append(f"{conflicts} of train and validation stand with different labels")
    return f"the very same inputs: {', '.join(found)}; `sweeper check` finds near ones too" if found else ""


def _keys(table: pa.Table) -> list[int]:
    """Return a 64-bit hash of each row's input, a part of the table at a time: images fill more than memory."""
    names = [name for name in INPUTS if name in table.column_names]
    return [
        xxhash.xxh3_64_intdigest(b"\0".join(_bytes(cell) for cell in row))
        for part in table.select(names).to_batches(max_chunksize=ROWS_AT_ONCE)
        for row in zip(*(part.column(name).to_pylist() for name in names), strict=True)
    ]


def _bytes(cell: str | bytes) -> bytes:
    return cell.encode() if isinstance(cell, str) else cell
