"""Writes study-file.md from the typed study file, tasks.md from the tasks, hyperparameters.md from training's settings.

python docs/generate.py
"""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from sweeper.core.head import TargetFacts
from sweeper.spec.load import study_schema
from sweeper.spec.study import DataSpec, TaskSpec
from sweeper.tasks.registry import BUILT_IN, make_task, task_class
from sweeper.train.settings import BALANCES, LEAST, LIMITS, LR_SCHEDULES, OPTIMIZERS, UNFREEZING, Settings

HEAD = """# Every key of a study file
Made by `python docs/generate.py`. Paths are relative to the study file. Unknown keys are errors.
"""

TASKS_HEAD = """# Tasks and their metrics
Made by `python docs/generate.py`. Every metric is computed at every evaluation and is finite on any valid split;
`task.metric` names the one that search optimises. A task of one's own: `examples/custom_task`.
"""

SPACE_HEAD = """# What a space may search
Made by `python docs/generate.py`. A parameter that a space leaves out has its default. Space files and their ranges:
`search_spaces/`; what a task cannot act on is refused ([tasks](tasks.md)).

| parameter | default | takes | |
| --- | --- | --- | --- |"""

MEANINGS = {
    "learning_rate": "peak rate of the optimizer",
    "batch_size": "effective batch: all workers and accumulated micro-batches together",
    "weight_decay": "AdamW's; none on biases and norms",
    "warmup_ratio": "share of all steps in which the rate rises",
    "lr_scheduler_type": "course of the rate after warm-up",
    "max_grad_norm": "gradients are scaled down to this norm",
    "optimizer": "SGD has `momentum`",
    "momentum": "of SGD",
    "dropout": "of hidden states; unset: the checkpoint's own rates",
    "attention_dropout": "of attention weights; unset: the checkpoint's own",
    "drop_path": "stochastic depth; unset: the checkpoint's own",
    "label_smoothing": "share of the target spread over all classes",
    "layer_decay": "each block below has its rate times this",
    "unfreezing": "which blocks train, and from when; `lora`: adapters beside frozen blocks",
    "num_unfrozen_blocks": "`last_blocks`: blocks that train, from the top",
    "epochs_per_stage": "`gradual`: epochs before the next block below is unfrozen",
    "head_fraction": "`head_then_full`: share of the epochs for the head alone",
    "head_learning_rate": "the head's own rate; unset: `learning_rate`",
    "lora_rank": "`lora`: rank r of the adapters",
    "lora_alpha": "`lora`: they are scaled by alpha / r; unset: twice the rank",
    "lora_dropout": "`lora`: dropout before them",
    "lora_learning_rate": "`lora`: their own rate; unset: `learning_rate`",
    "num_adapted_blocks": "`lora`: blocks that get them, from the top; unset: all",
    "num_reinitialised_blocks": "blocks drawn anew, from the top",
    "balance": "how rare classes count; unset: `task.balance`",
    "focal_gamma": "focal loss; 0 is cross entropy",
    "patience": "epochs without a better validation score after which the weights stay; unset: never",
    "random_crop": "images: largest shift as a share of the side",
    "horizontal_flip": "images: probability",
    "mixup_alpha": "images: Beta parameter, 0 for off",
    "cutmix_alpha": "images: Beta parameter, 0 for off",
    "token_dropout": "texts: probability that a token is hidden from attention",
    "token_deletion": "texts: probability that a token is taken out, the rest moving up",
}
CHOICES = {
    "unfreezing": UNFREEZING,
    "lr_scheduler_type": LR_SCHEDULES,
    "optimizer": OPTIMIZERS,
    "balance": BALANCES,
}


def main() -> None:
    """Write a table for each section."""
    schema = study_schema()
    sections = {"StudySpec": schema, **schema["$defs"]}
    lines = [HEAD]
    for name, section in sections.items():
        first = section.get("description", "").split("\n\n")[0].replace("\n", " ")
        lines += [f"## {name.removesuffix('Spec').lower()}", first, "", "| key | default | |", "| --- | --- | --- |"]
        required = section.get("required", [])
        for key, field in section["properties"].items():
            default = "required" if key in required else f"`{field.get('default', '…')}`"
            lines.append(f"| `{key}` | {default} | {_words(field)} |")
        lines.append("")
    (Path(__file__).parent / "study-file.md").write_text("\n".join(lines))
    (Path(__file__).parent / "tasks.md").write_text(tasks())
    (Path(__file__).parent / "hyperparameters.md").write_text(hyperparameters())


def hyperparameters() -> str:
    """Return a table of all that training takes, with defaults and limits."""
    known = {field.name: field.default for field in fields(Settings)}
    assert known.keys() == MEANINGS.keys(), known.keys() ^ MEANINGS.keys()
    lines = [SPACE_HEAD]
    for name, default in known.items():
        if name in CHOICES:
            takes = ", ".join(f"`{choice}`" for choice in CHOICES[name])
        elif name in LIMITS:
            takes = "{} to {}".format(*(f"{limit:g}" for limit in LIMITS[name]))
        else:
            takes = f"whole numbers from {LEAST[name]}"
        lines.append(f"| `{name}` | {'unset' if default is None else f'`{default}`'} | {takes} | {MEANINGS[name]} |")
    return "\n".join(lines) + "\n"


def tasks() -> str:
    """Return a table of metrics for each task, with direction, averaging and edge cases."""
    lines = [TASKS_HEAD]
    for name in BUILT_IN:
        found = task_class(name)
        costs = [1.0, 5.0] if found.target_kind == "class" else None
        written = 1 if found.target_kind == "text" else None
        spec = TaskSpec(type=name, data=DataSpec(train="data.csv"), costs=costs, max_new_tokens=written)
        task = make_task(spec, TargetFacts(kind=found.target_kind, classes=("no", "yes")))
        first = (sys.modules[found.__module__].__doc__ or "").split("\n\n")[0].replace("\n", " ")
        refused = ", ".join(f"`{key}`" for key in task.not_applicable)
        lines += [f"## {name}", first, "", f"Default metric: `{task.objective.metric}`. Refused: {refused}.", ""]
        lines += ["| metric | better | |", "| --- | --- | --- |"]
        lines += [
            f"| `{m.name}` | {'higher' if m.goal == 'maximize' else 'lower'} | {m.doc.replace('|', chr(92) + '|')} |"
            for m in task.metrics.values()
        ]
        lines.append("")
    return "\n".join(lines)


def _words(field: dict[str, Any]) -> str:
    kinds = [option.get("enum", option.get("type", "")) for option in field.get("anyOf", [field])]
    choices = [str(choice) for kind in kinds if isinstance(kind, list) for choice in kind]
    text = field.get("description", "")
    return (f"one of {', '.join(choices)}. " if choices else "") + text.replace("|", "\\|")


if __name__ == "__main__":
    main()
