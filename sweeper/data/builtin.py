"""Built-in data sets that need no download: real handwritten digits, and docstrings of the installed packages."""

from __future__ import annotations

import ast
import hashlib
import io
import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np
import pyarrow as pa
from PIL import Image

from sweeper.core.errors import InputError, Problem

LIBRARIES = ("numpy", "pandas", "pyarrow", "ray", "scipy", "sklearn", "torch", "transformers")
"""What the docstrings are taken from: packages that sweeper needs anyway."""

_MASKED = re.compile(
    r"\b(numpy|np|pandas|pd|pyarrow|arrow|pa|ray|rllib|tune|scipy|sklearn|scikit-learn|scikit|torch|pytorch|tensor|tensors"
    r"|transformers|huggingface|hugging face|hf|dataframe|dataframes|ndarray)\b",
    re.IGNORECASE,
)
_SHORTEST = 40  # characters of a docstring worth classifying
_SPARE = 3  # docstrings collected for each one kept, so that the choice is spread over many files
_KEPT = 400  # characters kept of its beginning


def read_builtin(name: str) -> pa.Table:
    """Return a built-in data set as a table with columns ``image`` or ``text``, and ``label`` (text).

    ``digits`` (scikit-learn's 1,797 images of 8x8 pixels; option ``classes=5-9``) or ``docstrings`` (which library
    does this docstring come from; option ``per_class=400``), options as in ``digits?classes=5-9``.

    Raises
    ------
    InputError
        When the name or an option is unknown.
    """
    base, _, query = name.partition("?")
    readers: dict[str, tuple[Callable[..., pa.Table], str]] = {
        "digits": (_digits, "classes"),
        "docstrings": (_docstrings, "per_class"),
    }
    if base not in readers:
        remedy = f"choose one of {', '.join(f'builtin:{key}' for key in readers)}"
        raise InputError(Problem("task.data.train", "must be a built-in data set", f"builtin:{name}", remedy))
    read, option = readers[base]
    options = dict(parse_qsl(query, keep_blank_values=True))
    try:
        if set(options) - {option}:
            raise ValueError
        return read(**options)
    except ValueError:
        example = {"classes": "classes=5-9", "per_class": "per_class=400"}[option]
        raise InputError(
            Problem(
                "task.data.train", f"the only option of builtin:{base} is {option}", query, f"write it as {example}"
            )
        ) from None


def _digits(classes: str = "0-9") -> pa.Table:
    from sklearn.datasets import load_digits

    low, _, high = classes.partition("-")
    wanted = range(int(low), int(high or low) + 1)
    images, labels = load_digits(return_X_y=True)
    rows = [i for i, label in enumerate(labels) if label in wanted]
    if not rows:
        raise ValueError(classes)
    cells = []
    for i in rows:
        buffer = io.BytesIO()
        pixels = np.rint(images[i].reshape(8, 8) * (255 / 16)).astype(np.uint8)
        Image.fromarray(pixels).save(buffer, format="PNG")
        cells.append(buffer.getvalue())
    return pa.table(
        {
            "example_id": [f"digits-{i:04d}" for i in rows],
            "image": pa.array(cells, pa.binary()),
            "label": [str(labels[i]) for i in rows],
        }
    )


def _docstrings(per_class: str = "400") -> pa.Table:
    limit = int(per_class)
    if limit < 1:
        raise ValueError(per_class)
    found = {library: _of_library(library, _SPARE * limit) for library in LIBRARIES}
    seen: dict[str, int] = {}
    for texts in found.values():
        for key in texts:
            seen[key] = seen.get(key, 0) + 1
    rows: list[tuple[str, str, str]] = []
    for library, texts in found.items():
        own = sorted(key for key in texts if seen[key] == 1)  # the key is a hash: a fixed, arbitrary order
        rows.extend((f"{library}-{key}", texts[key], library) for key in own[:limit])
    ids, texts_column, labels = zip(*rows, strict=True)
    return pa.table({"example_id": list(ids), "text": list(texts_column), "label": list(labels)})


def _of_library(library: str, enough: int) -> dict[str, str]:
    """Return text by hash of docstrings in a package's sources, which are parsed and never imported.

    Files are taken in a fixed arbitrary order until there are ``enough``.
    """
    spec = find_spec(library)
    texts: dict[str, str] = {}
    for location in spec.submodule_search_locations or () if spec else ():
        files = {path.relative_to(location).as_posix(): path for path in Path(location).rglob("*.py")}
        for name in sorted(files, key=lambda name: hashlib.blake2b(name.encode()).digest()):
            if "test" not in name and len(texts) < enough:
                texts.update(_of_file(files[name]))
    return texts


def _of_file(path: Path) -> Iterator[tuple[str, str]]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, OSError):
        return  # sources for another Python, or not text
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            text = _cleaned(ast.get_docstring(node) or "")
            if len(text) >= _SHORTEST:
                yield hashlib.blake2b(_normal(text).encode(), digest_size=8).hexdigest(), text


def _cleaned(text: str) -> str:
    return _MASKED.sub("[MASK]", " ".join(text.split())[:_KEPT])


def _normal(text: str) -> str:
    return re.sub(r"\W+", " ", text.casefold()).strip()
