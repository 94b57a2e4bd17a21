"""Which inputs are the same, or nearly: normalised keys, MinHash for texts, difference hashes for images.

Texts: two are near when the Jaccard similarity of their character 5-grams is at least .8 (Broder 1997). MinHash with
banding only proposes pairs (25 bands of 5 values miss a pair of similarity .8 once in 20,000); each is then verified
on the n-grams themselves. Images: two are near when their 64-bit difference hashes differ in at most 16 bits and
their grey 12x12 thumbnails correlate to at least .95, so that size, encoding and brightness do not matter; tiny
images (a side below 32), which are all alike at that size, to at least .99.
"""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from PIL import Image

JACCARD = 0.8
CORRELATION = 0.95
_SHINGLE = 5
_BANDS, _ROWS = 25, 5
_HASH_BITS = 16
_THUMB = 12
_TINY, _TINY_CORRELATION = 32, 0.99
_MAX_PER_BAND = 50  # candidates looked at per row and band: texts of one template fill whole buckets
_BLOCK = 512  # images compared with all others at once
_FLAT = 2.0  # deviation of grey values below which a thumbnail has nothing to correlate

_PUNCTUATION = re.compile(r"(?<=\d)[.,](?=\d)|(?<![\w.])-(?=\d)|[^\w\s]|_")


def normal(text: str) -> str:
    """Return a text without what copies differ in: Unicode form, accents, case, punctuation, white space.

    Decimal points and signs of numbers stay; a text of nothing else stays as it is, but for white space.
    """
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())
    plain = "".join(c for c in folded if unicodedata.category(c) not in ("Mn", "Cf"))
    bare = _PUNCTUATION.sub(lambda m: m.group() if m.group() in ".,-" and _keeps(m) else " ", plain)
    return " ".join(bare.split()) or " ".join(plain.split()) or " ".join(text.split())


def _keeps(match: re.Match[str]) -> bool:
    """Whether a sign belongs to a number: between digits, or before one where no word ends."""
    text, at = match.string, match.start()
    after = text[at + 1 : at + 2].isdigit()
    before = text[at - 1 : at]
    return after and (
        before.isdigit() if match.group() in ".," else not before or not (before.isalnum() or before == ".")
    )


def key(data: str | bytes) -> int:
    """Return a 64-bit hash."""
    return xxhash.xxh3_64_intdigest(data.encode() if isinstance(data, str) else data)


class Texts:
    """Texts prepared for comparison.

    Parameters
    ----------
    texts:
        N normalised texts.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.shingles = [_shingles(text) for text in texts]
        rng = np.random.default_rng(0)
        factors = rng.integers(1, 2**63, _BANDS * _ROWS, dtype=np.uint64) | np.uint64(1)
        offsets = rng.integers(0, 2**63, _BANDS * _ROWS, dtype=np.uint64)
        self.bands = np.zeros((len(texts), _BANDS), dtype=np.uint64)
        for row, grams in enumerate(self.shingles):
            least = ((grams[:, None] * factors + offsets) >> np.uint64(16)).min(axis=0).reshape(_BANDS, _ROWS)
            self.bands[row] = _mixed(least)

    def __len__(self) -> int:
        return len(self.shingles)

    def matches(self, others: Texts) -> Iterator[list[int]]:
        """Yield, for each text, the rows of ``others`` that are near it, itself included."""
        for row, candidates in enumerate(self.candidates(others)):
            yield [other for other in candidates if self._is_near(others, row, other)]

    def _is_near(self, others: Texts, row: int, other: int) -> bool:
        a, b = self.shingles[row], others.shingles[other]
        if min(len(a), len(b)) < JACCARD * max(len(a), len(b)):
            return False
        common = len(np.intersect1d(a, b, assume_unique=True))
        return common >= JACCARD * (len(a) + len(b) - common)

    def candidates(self, others: Texts) -> list[set[int]]:
        """Return, for each text, the rows of ``others`` that share a band with it."""
        found: list[set[int]] = [set() for _ in range(len(self))]
        for band in range(_BANDS):
            order = np.argsort(others.bands[:, band], kind="stable")
            keys = others.bands[order, band]
            low, high = (np.searchsorted(keys, self.bands[:, band], side) for side in ("left", "right"))
            for row in np.flatnonzero(high > low):
                found[row].update(order[low[row] : min(high[row], low[row] + _MAX_PER_BAND)].tolist())
        return found


def _shingles(text: str) -> NDArray[np.uint64]:
    """Return the distinct hashes of a text's character n-grams, ascending."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    size = min(_SHINGLE, max(1, len(points)))
    windows = np.lib.stride_tricks.sliding_window_view(points if len(points) else np.zeros(1, np.uint64), size)
    return np.unique(_mixed(windows))


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hash rows of numbers (..., n) into one each (...), by multiplying and folding (splitmix64's constants)."""
    state = np.full(values.shape[:-1], 0x9E3779B97F4A7C15, dtype=np.uint64)
    for at in range(values.shape[-1]):
        state = (state ^ values[..., at]) * np.uint64(0xBF58476D1CE4E5B9)
        state ^= state >> np.uint64(29)
    return state


@dataclass(frozen=True)
class Pictures:
    """Images prepared for comparison: N difference hashes, and grey thumbnails (N, 144) and whether tiny (N,)."""

    bits: NDArray[np.uint64]
    grey: NDArray[np.float32]
    tiny: NDArray[np.bool_]

    @classmethod
    def of(cls, images: Sequence[Image.Image]) -> Pictures:
        """Hash images."""
        bits = np.array([_difference_hash(image) for image in images], dtype=np.uint64)
        resized = [image.convert("L").resize((_THUMB, _THUMB), Image.Resampling.BILINEAR) for image in images]
        grey = np.array([np.asarray(image, dtype=np.float32).ravel() for image in resized], dtype=np.float32)
        tiny = np.array([min(image.size) < _TINY for image in images], dtype=bool)
        return cls(bits, grey.reshape(len(images), _THUMB * _THUMB), tiny)

    def __len__(self) -> int:
        return len(self.bits)

    def matches(self, others: Pictures) -> Iterator[list[int]]:
        """Yield, for each image, the rows of ``others`` that are near it, itself included; 144 products a pair."""
        mine, theirs = self._patterns(), others._patterns()
        flat, flat_others = self._is_flat(), others._is_flat()
        for start in range(0, len(self), _BLOCK):
            block = slice(start, start + _BLOCK)
            limits = np.where(self.tiny[block, None] & others.tiny, _TINY_CORRELATION, CORRELATION)
            alike = mine[block] @ theirs.T >= limits
            alike &= ~flat[block, None] & ~flat_others
            alike &= np.bitwise_count(self.bits[block, None] ^ others.bits) <= _HASH_BITS
            for row, found in enumerate(alike, start):
                if flat[row]:  # nothing to correlate: near is what is as flat and as bright
                    found = flat_others & (np.abs(others.grey - self.grey[row]).max(axis=1) < _FLAT)
                yield np.flatnonzero(found).tolist()

    def _is_flat(self) -> NDArray[np.bool_]:
        return self.grey.std(axis=1) < _FLAT  # type: ignore[no-any-return]

    def _patterns(self) -> NDArray[np.float32]:
        """Return thumbnails (N, 144) of mean 0 and length 1: their products are correlations."""
        centred = self.grey - self.grey.mean(axis=1, keepdims=True)
        return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-6)  # type: ignore[no-any-return]


def near_rows(first: Any, second: Any, keys_first: Sequence[int], keys_second: Sequence[int]) -> NDArray[np.bool_]:
    """Return which rows of ``second`` are near a row of ``first`` and equal none, (N,).

    Where both are the same object: near an earlier row, and equal to none before it.
    """
    same = first is second
    known = set() if same else set(keys_first)
    found = np.zeros(len(second), dtype=bool)
    for row, others in enumerate(second.matches(first)):
        if keys_second[row] not in known:
            found[row] = any(keys_first[other] != keys_second[row] for other in others if not same or other < row)
        if same:
            known.add(keys_second[row])
    return found


def open_image(cell: bytes) -> Image.Image:
    """Decode an image to RGB."""
    with Image.open(io.BytesIO(cell)) as image:
        return image.convert("RGB")


def _difference_hash(image: Image.Image) -> int:
    """Return whether each of 8x8 cells is brighter than its right neighbour, as 64 bits."""
    small = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BILINEAR), dtype=np.int16)
    return int.from_bytes(np.packbits((small[:, 1:] > small[:, :-1]).ravel()).tobytes(), "big")
