"""Model cards for exported checkpoints, written offline."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from sweeper.report.leaderboard import leaderboard
from sweeper.report.method import scope
from sweeper.report.source import read_source
from sweeper.report.words import count, more_seeds

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def model_card(root: Path, model: str, seed: int) -> str:
    """Return the card of the checkpoint in ``best/MODEL``: the weights of one confirmation seed.

    Its score is the mean over all confirmation seeds, which is what can be expected of it.
    """
    source = read_source(root)
    entry = next(item for item in leaderboard(source) if item["model"] == model)
    content = source.manifest.content
    planned = next(item for item in content["models"] if item["name"] == model)
    known = source.manifest.checkpoints.get(model, {})
    scores, default = entry["tuned"], entry["default"]
    data = ModelCardData(
        model_name=f"{source.manifest.name}-{model}",
        library_name="transformers",
        license=known.get("licence") or None,
        base_model=planned["checkpoint"] if _HUB_ID.fullmatch(planned["checkpoint"]) else None,
        metrics=[source.objective.metric],
        tags=["sweeper"],
        eval_results=[
            EvalResult(
                task_type=content["task"]["type"],
                dataset_type=source.manifest.name,
                dataset_name=source.manifest.name,
                dataset_split="test",
                metric_type=source.objective.metric,
                metric_value=scores["mean"],
                metric_name=f"{source.objective.metric}, mean over {count(len(scores['seeds']), 'seed')}",
            )
        ],
    )
    metric = source.objective.metric
    lines = [
        f"# {model}, tuned on {source.manifest.name}",
        "",
        (
            f"Fine-tuned from `{Path(planned['checkpoint']).name}`; weights of confirmation seed {seed}, the median "
            "one on validation. The scores are what can be expected of such a checkpoint, not the best seed's."
        ),
        "",
        f"| test {metric} | mean | 95% interval | seeds |",
        "| --- | --: | --- | --: |",
        _row("tuned", scores),
        _row("default", default),
        "",
        *(f"- {model} {claim}" for claim in _claims(entry)),
        "",
        "## Training",
        "",
        *(f"- `{name}`: `{value}`" for name, value in entry["best_params"].items()),
        "",
        f"Chosen among {entry['num_trials']} trials by validation {metric} alone.",
        "",
        "## Scope",
        "",
        *(f"- {line}" for line in scope(source)),
    ]
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n"))


def _row(config: str, scores: dict[str, Any]) -> str:
    if scores["mean"] is None:
        return f"| {config} | not confirmed | | |"
    bounds = "" if scores["ci_low"] is None else f"{scores['ci_low']:.4f} to {scores['ci_high']:.4f}"
    return f"| {config} | {scores['mean']:.4f} | {bounds} | {len(scores['seeds'])} |"


def _claims(entry: dict[str, Any]) -> list[str]:
    """Return what the verdicts say of one model, one sentence a pair."""
    return [
        f"{verdict['verdict']} {verdict['other']}: {verdict['difference']:+.4f}, p = {verdict['p_value']:.2g} (Holm)"
        f"{more_seeds(verdict)}"
        for verdict in entry["verdicts"]
    ]
