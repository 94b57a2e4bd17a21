"""Cost beside quality: what each model took to search and train, and what using it takes."""

from __future__ import annotations

from typing import Any

import numpy as np

from sweeper.report.source import Source


def costs(source: Source, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row a model in the leaderboard's order; None where a figure is not known.

    ``search_seconds`` and ``training_seconds`` are device-seconds: of all search trials, and the mean of one training
    at the tuned configuration. ``batches`` by batch size: ``seconds`` of a forward pass and ``examples_per_second``.
    ``pareto`` says that no other model has both a better test score and a lower latency (or, where latency is not
    known, a shorter training); nothing is on the front where models asked for different nodes.
    """
    rows = []
    for entry in entries:
        model = entry["model"]
        measured = source.manifest.costs.get(model, {})
        taken = list(source.seconds.get((model, "tuned"), {}).values())
        batches = {batch["batch_size"]: batch for batch in measured.get("batches", ())}
        rows.append(
            {
                "model": model,
                "test": entry["tuned"]["mean"],
                "num_parameters": measured.get("num_parameters"),
                "checkpoint_bytes": measured.get("checkpoint_bytes"),
                "search_seconds": entry["device_seconds"],
                "training_seconds": (float(np.mean(taken)) * source.num_workers or None) if taken else None,
                "batches": batches,
                "latency_seconds": batches[1]["seconds"] if 1 in batches else None,
            }
        )
    by = cost_axis(source, rows)
    for row in rows:
        row["pareto"] = (
            by is not None and row["test"] is not None and not any(_better(o, row, by, source) for o in rows)
        )
    return rows


def cost_axis(source: Source, rows: list[dict[str, Any]]) -> str | None:
    """Return the cost that all models have and that matters most: latency, else training, else search.

    None too where models asked for different nodes: seconds of different devices cannot be compared.
    """
    if source.node_labels:
        return None
    for name in ("latency_seconds", "training_seconds", "search_seconds"):
        if rows and all(row[name] is not None for row in rows if row["test"] is not None):
            return name
    return None


def setting(source: Source) -> str:
    """Say how latency and throughput were measured, and whether seconds can be compared; empty without either."""
    apart = "Models asked for different nodes: their seconds cannot be compared, and there is no Pareto front."
    measured = next(iter(source.manifest.costs.values()), None)
    if measured is None:
        return apart if source.node_labels else ""
    threads = f", {measured['num_threads']} thread(s)" if measured["device"] == "cpu" else ""
    text = (
        "Latency and throughput: the fastest of several forward passes of a confirmed checkpoint, examples of median "
        f"length, on {measured['device']}{threads}, {measured['precision']}, measured once while other lanes may have "
        "run; tokenising and decoding not counted."
    )
    return f"{text} {apart}" if source.node_labels else text


def _better(other: dict[str, Any], row: dict[str, Any], by: str, source: Source) -> bool:
    """Whether ``other`` is at least as good in both and better in one."""
    if other["test"] is None or other is row:
        return False
    quality = source.sign * (other["test"] - row["test"])
    cost = row[by] - other[by]
    return bool(quality >= 0 and cost >= 0 and (quality > 0 or cost > 0))
