"""Writes histories of items with the item that came next: the calls in the functions of installed packages.

    python examples/recommendation/make_data.py

Each function of scikit-learn's, SciPy's and NumPy's sources is a user, each function it calls an item, in the order of
the source. A history is the last eight items, its target the one after. Kept are the 200 items that most users have,
and as targets those that ten users or more have: what one user alone likes cannot be learnt from others. Sources are
parsed, never imported. Users are split, not histories: `data.group` keeps each on one side.
"""

from __future__ import annotations

import ast
import csv
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

LIBRARIES = ("sklearn", "scipy", "numpy")
ITEMS, LENGTH, SHORTEST, EXAMPLES = 200, 8, 3, 6000
FEWEST_USERS = 10  # of a target


def histories(library: str) -> Iterator[tuple[str, list[str]]]:
    """Yield a name for each function and the calls in it, in order."""
    spec = find_spec(library)
    for location in spec.submodule_search_locations or () if spec else ():
        for path in sorted(Path(location).rglob("*.py")):
            if "test" in path.as_posix():
                continue
            try:
                tree = ast.parse(path.read_text(encoding="utf-8"))
            except (SyntaxError, ValueError, OSError):
                continue
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef):
                    calls = [c for c in ast.walk(node) if isinstance(c, ast.Call)]
                    calls.sort(key=lambda call: (call.lineno, call.col_offset))
                    names = [name for call in calls if (name := called(call))]
                    yield f"{library}/{path.relative_to(location)}:{node.lineno}", names


def called(call: ast.Call) -> str:
    """Return the last part of a call's name: ``sum`` of ``np.sum(x)``."""
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def main() -> None:
    """Write data/histories.csv beside this file."""
    users = [pair for library in LIBRARIES for pair in histories(library)]
    counts = Counter(name for _, names in users for name in set(names))
    items = {name for name, _ in counts.most_common(ITEMS)}
    rows: list[list[str]] = []
    for user, names in users:
        kept = [name for name in names if name in items]
        rows += [[" ".join(kept[max(0, at - LENGTH) : at]), kept[at], user] for at in range(SHORTEST, len(kept))]
    rows = rows[:: max(1, len(rows) // EXAMPLES)]
    users_of = Counter(item for item, _ in {(item, user) for _, item, user in rows})
    rows = [row for row in rows if users_of[row[1]] >= FEWEST_USERS]
    path = Path(__file__).parent / "data" / "histories.csv"
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["history", "item", "user"])
        writer.writerows(rows)
    print(f"{path}: {len(rows)} histories of {ITEMS} items, {len({row[1] for row in rows})} of them targets")


if __name__ == "__main__":
    main()
