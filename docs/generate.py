"""Writes docs/study-file.md from the typed study file, and docs/tasks.md from the tasks.

python docs/generate.py
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from sweeper.core.head import TargetFacts
from sweeper.spec.load import study_schema
from sweeper.spec.study import DataSpec, TaskSpec
from sweeper.tasks.registry import BUILT_IN, make_task, task_class

HEAD = """# Every key of a study file
Made by `python docs/generate.py`. Paths are relative to the study file. Unknown keys are errors.
"""

TASKS_HEAD = """# Tasks and their metrics
Made by `python docs/generate.py`. Every metric is computed at every evaluation and is finite on any valid split;
`task.metric` names the one that search optimises. A task of one's own: `examples/custom_task`.
"""


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
