"""What the processes of a sweep import before they are of use: starting one is mostly imports."""

from __future__ import annotations

import json
import subprocess
import sys

SHOW = "import json, sys; print(json.dumps(sorted(sys.modules)))"


def test_the_driver_of_a_study_imports_neither_torch_nor_what_only_reports_need():
    code = (
        f"import sweeper.workflows.execute, sweeper.tasks.text_classification, sweeper.tasks.object_detection; {SHOW}"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(found.stdout.splitlines()[-1]))
    heavy = {"torch", "transformers", "datasets", "sklearn", "scipy.stats", "huggingface_hub", "jinja2", "wandb"}
    assert not loaded & heavy
