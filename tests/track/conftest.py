import sys
from pathlib import Path

import pytest

from sweeper.workflows import tracking

sys.path.insert(0, str(Path(__file__).parent))
BOUNDS = tracking.FINISH_BOUNDS


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A loaded machine is slow; tests of the time limit ask for `bounded`."""
    monkeypatch.setattr(tracking, "FINISH_BOUNDS", (60.0, 300.0))


@pytest.fixture
def bounded(patient, monkeypatch):
    """Three times the limits of a run: the tracking process gives way to whatever else the machine does."""
    monkeypatch.setattr(tracking, "FINISH_BOUNDS", tuple(3 * seconds for seconds in BOUNDS))
