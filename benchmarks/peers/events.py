"""When which score was seen: a line an evaluation, for the time that a search takes to reach a score."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path


class Events:
    """Writes ``events.jsonl`` in a folder; seconds count from the start of the tool."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "events.jsonl"
        self._began = float(os.environ["SEARCH_BEGAN"])

    def add(self, model: str, accuracy: float) -> None:
        """Note an evaluation."""
        with self._path.open("a") as file:
            seconds = time.time() - self._began
            file.write(json.dumps({"seconds": seconds, "model": model, "accuracy": accuracy}) + "\n")
