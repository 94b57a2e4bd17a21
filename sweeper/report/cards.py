"""Model cards for exported checkpoints, written offline."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from sweeper.report.leaderboard import leaderboard
from sweeper.report.source import read_source


def model_card(root: Path, model: str, seed: int) -> str:
    """Return the card of the checkpoint in ``best/MODEL``: the weights of one confirmation seed.

    Its score is the mean over all confirmation seeds, which is what can be expected of it.
    """
    source = read_source(root)
    entry = next(item for item in leaderboard(source) if item["model"] == model)
    content = source.manifest.content
    planned = next(item for item in content["models"] if item["name"] == model)
    data = ModelCardData(
        model_name=f"{source.manifest.name}-{model}",
        library_name="transformers",
        tags=["sweeper"],
        eval_results=[
            EvalResult(
                task_type=content["task"]["type"],
                dataset_type=source.manifest.name,
                dataset_name=source.manifest.name,
                dataset_split="test",
                metric_type=source.objective.metric,
                metric_value=entry["tuned"]["mean"],
            )
        ],
    )
    scores = entry["tuned"]
    interval = "" if scores["ci_low"] is None else f", 95% interval {scores['ci_low']:.4f} to {scores['ci_high']:.4f}"
    origin = Path(planned["checkpoint"]).name
    lines = [
        f"# {model}, tuned on {source.manifest.name}",
        "",
        f"Fine-tuned from `{origin}`; weights of confirmation seed {seed}, the median one on validation.",
        f"Test {source.objective.metric}: mean {scores['mean']:.4f} over {len(scores['seeds'])} seeds{interval}.",
        "",
        *(f"- `{name}`: `{value}`" for name, value in entry["best_params"].items()),
    ]
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n"))
