"""Recall and precision of `sweeper check` on planted leaks: texts and images whose copies are known.

    python benchmarks/data_checks.py --json OUT.json

Texts are docstrings of installed packages, images tiles of scikit-learn's two photographs; both are first thinned by
another measure (tf-idf cosine, pixel correlation) so that no two are alike by nature. Trivial copies (case,
punctuation, white space, Unicode) must be known as equal inputs; near copies (a word dropped, replaced, swapped, added
or misspelt; an image encoded anew, resized, brightened, cropped by 3%) as near ones. Decoys are unrelated rows, rows
with a third of the words replaced, and mirrored tiles: they must be neither. A near text below the documented Jaccard
of .8 still counts as missed, and an edit that happens to be trivial (two equal words swapped) counts against precision.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from machine import facts
from PIL import Image, ImageEnhance
from sklearn.datasets import load_sample_images
from sklearn.feature_extraction.text import TfidfVectorizer

from sweeper.data.builtin import read_builtin
from sweeper.data.checks import Scan
from sweeper.data.prepare import prepare
from sweeper.spec.study import TaskSpec

TRIVIAL, NEAR, DECOY = "trivial", "near", "decoy"


def thinned(similar: np.ndarray, limit: float) -> list[int]:
    """Keep rows none of which is more alike to an earlier kept one than ``limit``."""
    kept: list[int] = []
    for row in range(len(similar)):
        if not kept or similar[row, kept].max() < limit:
            kept.append(row)
    return kept


def text_edits(text: str, rng: np.random.Generator) -> dict[str, tuple[str, str]]:
    words = text.split()
    at = int(rng.integers(1, len(words) - 1))
    letters = list(text)
    spots = [i for i, c in enumerate(letters) if c.isalpha()]
    typo = int(rng.choice(spots))
    misspelt = [*letters[:typo], "q" if letters[typo] != "q" else "x", *letters[typo + 1 :]]
    third = ["".join(rng.permutation(list("abcdefgh"))) if rng.random() < 1 / 3 else w for w in words]
    return {
        "upper case": (TRIVIAL, text.upper()),
        "punctuation": (TRIVIAL, text.replace(".", " !").replace(",", ";") + "..."),
        "white space": (TRIVIAL, "  " + text.replace(" ", "\n\t")),
        "full width": (TRIVIAL, "".join(chr(ord(c) + 0xFEE0) if c.isascii() and c.isalpha() else c for c in text)),
        "decomposed": (TRIVIAL, unicodedata.normalize("NFD", text) + "\u200b"),
        "word dropped": (NEAR, " ".join(words[:at] + words[at + 1 :])),
        "word replaced": (NEAR, " ".join([*words[:at], "entirely", *words[at + 1 :]])),
        "words swapped": (NEAR, " ".join([*words[: at - 1], words[at], words[at - 1], *words[at + 1 :]])),
        "words added": (NEAR, text + " see also below"),
        "misspelt": (NEAR, "".join(misspelt)),
        "third replaced": (DECOY, " ".join(third)),
    }


def image_edits(image: Image.Image, rng: np.random.Generator) -> dict[str, tuple[str, Image.Image]]:
    width, height = image.size
    edge = max(1, round(0.03 * width))
    factor = float(rng.choice([0.8, 1.2]))
    return {
        "same pixels": (TRIVIAL, image),
        "jpeg 40": (NEAR, Image.open(io.BytesIO(encoded(image, "JPEG", quality=40)))),
        "resized": (NEAR, image.resize((round(width * 0.6), round(height * 0.6)), Image.Resampling.BICUBIC)),
        "brightness": (NEAR, ImageEnhance.Brightness(image).enhance(factor)),
        "cropped": (NEAR, image.crop((edge, edge, width - edge, height - edge)).resize(image.size)),
        "grey": (NEAR, image.convert("L").convert("RGB")),
        "mirrored": (DECOY, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    }


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def texts(rng: np.random.Generator) -> tuple[list[Any], list[Any]]:
    column = [t for t in read_builtin("docstrings?per_class=150").column("text").to_pylist() if len(t.split()) >= 12]
    vectors = TfidfVectorizer().fit_transform(column)
    kept = [column[row] for row in thinned((vectors @ vectors.T).toarray(), 0.6)]
    return plant(kept, text_edits, rng)


def images(rng: np.random.Generator) -> tuple[list[Any], list[Any]]:
    tiles = []
    for photo in load_sample_images().images:
        corners = [(y, x) for y in range(0, photo.shape[0] - 63, 64) for x in range(0, photo.shape[1] - 63, 64)]
        tiles.extend(photo[y : y + 64, x : x + 64] for y, x in corners)
    grey = np.array([t.mean(axis=2).ravel() for t in tiles])
    textured = [row for row in range(len(tiles)) if grey[row].std() > 10]
    tiles, grey = [tiles[row] for row in textured], grey[textured]
    kept = [Image.fromarray(tiles[row]) for row in thinned(np.abs(np.corrcoef(grey)), 0.8)]
    train, test = plant(kept, image_edits, rng)
    return [encoded(i) for i in train], [(kind, name, encoded(i)) for kind, name, i in test]


def plant(rows: list[Any], edits: Any, rng: np.random.Generator) -> tuple[list[Any], list[Any]]:
    """Half of the rows are train; test is the other half and an edited copy of each row of train, edits in turn."""
    order = rng.permutation(len(rows))
    train = [rows[i] for i in order[: len(rows) // 2]]
    test: list[Any] = [(DECOY, "unrelated", rows[i]) for i in order[len(rows) // 2 :]]
    for row in train:
        test.extend((kind, name, copy) for name, (kind, copy) in edits(row, rng).items())
    return train, test


def measure(kind: str, train: list[Any], test: list[Any], folder: Path) -> dict[str, Any]:
    column, form = ("image", pa.binary()) if kind == "image" else ("text", pa.string())
    labels = lambda count: [str(i % 2) for i in range(count)]  # noqa: E731
    for name, cells in (("train", train), ("test", [cell for _, _, cell in test])):
        pq.write_table(
            pa.table({column: pa.array(cells, form), "label": labels(len(cells))}), folder / f"{name}.parquet"
        )
    filler = train[:2]
    pq.write_table(pa.table({column: pa.array(filler, form), "label": ["0", "1"]}), folder / "validation.parquet")
    data = {split: str(folder / f"{split}.parquet") for split in ("train", "validation", "test")}
    spec = TaskSpec.model_validate({"type": f"{kind}-classification", "data": data})
    scan = Scan(prepare(spec, kind=kind, seed=0, folder=folder / "prepared"))
    leaks, near = scan.standing("train", "test"), scan.near("train", "test")
    kinds, names = np.array([k for k, _, _ in test]), np.array([n for _, n, _ in test])
    by_edit = {
        n: {
            "planted": int((names == n).sum()),
            "leaks": int(leaks[names == n].sum()),
            "near": int(near[names == n].sum()),
        }
        for n in dict.fromkeys(names.tolist())
    }
    return {
        "rows": {"train": len(train), "test": len(test)},
        "leaks": scores(leaks, kinds == TRIVIAL),
        "near_leaks": scores(near, kinds == NEAR),
        "either": scores(leaks | near, kinds != DECOY),
        "by_edit": by_edit,
    }


def scores(found: np.ndarray, planted: np.ndarray) -> dict[str, float]:
    both = int((found & planted).sum())
    return {
        "recall": both / max(1, int(planted.sum())),
        "precision": both / max(1, int(found.sum())),
        "found": int(found.sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    result: dict[str, Any] = {"machine": facts()}
    for kind, make in (("text", texts), ("image", images)):
        with tempfile.TemporaryDirectory() as folder:
            result[kind] = measure(kind, *make(rng), Path(folder))
        for what in ("leaks", "near_leaks", "either"):
            found = result[kind][what]
            print(f"{kind} {what}: recall {found['recall']:.3f} precision {found['precision']:.3f}")
        for name, counts in result[kind]["by_edit"].items():
            print(f"  {name}: {counts}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
