"""A saved workspace for a study (extra ``workspaces``): parallel coordinates, importance and curves, ready to look at.

Best effort: W&B's interface for views is young, so whatever goes wrong here is logged and costs nothing.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from sweeper.track.base import StudyInfo, StudyReport
from sweeper.track.wandb_content import searched

logger = logging.getLogger("sweeper.tracking")

SAVE_SECONDS = 3.0
"""How long the end of a study waits for it."""


def build_workspace(study: StudyInfo, report: StudyReport, entity: str, project: str) -> Any:
    """Return the workspace, not yet saved: the study's trials and how their hyperparameters bear on the objective.

    Raises
    ------
    ImportError
        Without the extra ``workspaces``.
    """
    import wandb_workspaces.reports.v2 as panels
    import wandb_workspaces.workspaces as ws

    metric = study.objective.metric
    best = f"best/{metric}"
    names, logarithmic = searched(report)
    columns = [
        panels.ParallelCoordinatesPlotColumn(metric=panels.Config(f"params.{name}"), log=name in logarithmic)
        for name in names
    ]
    columns.append(panels.ParallelCoordinatesPlotColumn(metric=panels.SummaryMetric(best)))
    models = list(study.models)
    search = [
        panels.ParallelCoordinatesPlot(title="Hyperparameters and objective", columns=columns),
        panels.ParameterImportancePlot(with_respect_to=best),
        panels.LinePlot(title=f"{metric} by epoch", x="epoch", y=[metric]),
    ]
    outcome = [
        panels.LinePlot(title="Best so far", x="trials_ended", y=[f"best/{model}" for model in models]),
        panels.BarPlot(title="Confirmed on the test split", metrics=[f"tuned/{model}" for model in models]),
    ]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=study.name,
        sections=[
            ws.Section(name="Search", panels=search, is_open=True),
            ws.Section(name="Outcome", panels=outcome, is_open=True),
        ],
        runset_settings=ws.RunsetSettings(filters=f"Group = '{study.name}'"),
    )


class WorkspaceSaver:
    """Saves a study's workspace once, in a thread that nobody has to wait for.

    The name in W&B follows from the study; a file beside W&B's own says that it was saved.
    """

    def __init__(self, study: StudyInfo, report: StudyReport, entity: str, project: str) -> None:
        self._marker = study.root / "wandb" / "workspace"
        self._arguments = (study, report, entity, project)
        self._name = f"nw-{study.run_id('workspace')[:11]}-v"
        self._thread = threading.Thread(target=self._save, daemon=True)
        if not self._marker.exists():
            self._thread.start()

    def wait(self) -> None:
        """Wait for a moment."""
        if self._thread.ident is not None:
            self._thread.join(SAVE_SECONDS)

    def _save(self) -> None:
        try:
            workspace = build_workspace(*self._arguments)
            workspace._internal_name = self._name
            workspace.save()
            self._marker.write_text(self._name)
        except ImportError:
            logger.info("no workspace was saved: the extra workspaces is not installed")
        except Exception:
            logger.warning("no workspace was saved", exc_info=True)
