"""Writes docs/study-file.md from the typed study file.

python docs/generate.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sweeper.spec.load import study_schema

HEAD = """# Every key of a study file
Made by `python docs/generate.py`. Paths are relative to the study file. Unknown keys are errors.
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


def _words(field: dict[str, Any]) -> str:
    kinds = [option.get("enum", option.get("type", "")) for option in field.get("anyOf", [field])]
    choices = [str(choice) for kind in kinds if isinstance(kind, list) for choice in kind]
    text = field.get("description", "")
    return (f"one of {', '.join(choices)}. " if choices else "") + text.replace("|", "\\|")


if __name__ == "__main__":
    main()
