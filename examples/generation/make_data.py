"""Writes what functions are called beside what their authors say they do, from the sources of the installed packages.

    python examples/generation/make_data.py [--count 1200]

``data/summaries.csv``: ``signature`` (``def name(arguments)``), ``summary`` (the docstring's first sentence) and
``file``. ``data/other.csv``: whole docstrings of other packages, on which the study measures what fine-tuning forgets.
Sources are parsed and never imported.
"""

from __future__ import annotations

import argparse
import ast
import csv
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np

LIBRARIES = ("numpy", "pandas", "scipy", "sklearn")
OTHERS, NUM_OTHERS = ("pyarrow", "ray"), 300
LONGEST = 80  # characters of a summary, and of a signature


def functions(library: str) -> Iterator[tuple[str, str, str]]:
    """Yield signature, summary and file of each documented public function."""
    spec = find_spec(library)
    for location in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(location).rglob("*.py")):
            if "test" in path.as_posix():
                continue
            name = f"{library}/{path.relative_to(location).as_posix()}"
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                    text = " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())
                    summary = re.split(r"(?<=\.)\s", text)[0]
                    arguments = ", ".join(part.arg for part in node.args.args if part.arg != "self")
                    signature = f"def {node.name}({arguments})"
                    if 20 <= len(summary) <= LONGEST >= len(signature) and summary.endswith("."):
                        yield signature, summary, name


def docstrings(library: str) -> Iterator[str]:
    """Yield the first 400 characters of each docstring of some length."""
    spec = find_spec(library)
    for location in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(location).rglob("*.py"))[:300]:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    text = " ".join((ast.get_docstring(node) or "").split())
                    if len(text) >= 2 * LONGEST:
                        yield text[:400]


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1200)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "data" / "summaries.csv")
    arguments = parser.parse_args()
    found: dict[str, tuple[str, str, str]] = {}
    for library in LIBRARIES:
        for row in functions(library):
            found.setdefault(row[1].casefold(), row)  # wrappers repeat the summary of what they wrap
    rows = list(found.values())
    chosen = np.random.default_rng(0).permutation(len(rows))[: arguments.count]
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with arguments.output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["signature", "summary", "file"])
        writer.writerows(rows[at] for at in sorted(chosen))
    print(f"{arguments.output}: {len(chosen)} of {len(rows)} functions")
    others = sorted({text for library in OTHERS for text in docstrings(library)})
    kept = np.random.default_rng(0).permutation(len(others))[:NUM_OTHERS]
    with arguments.output.with_name("other.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["text"], *([others[at]] for at in kept)])


if __name__ == "__main__":
    main()
