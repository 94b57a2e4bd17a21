"""What every cluster must do. Subclass `ClusterConformance`, give it a cluster whose driver is a stand-in.

    class TestMine(ClusterConformance):
        def make(self, root): return MyCluster(MyProfile(python=str(stand_in(root)), ...))

The stand-in takes the place of the cluster's interpreter: `stand_in` writes one that runs the real supervisor over a
driver which trains nothing, so that a launch takes a second.
"""

from __future__ import annotations

import sys
import time
import zipfile
from abc import ABC, abstractmethod
from pathlib import Path

from sweeper.clusters.base import Cluster, Launch, LaunchState
from sweeper.clusters.launches import new_name

WAIT_SECONDS = 60.0

_DRIVER = """\
#!/bin/sh
# Called as: DRIVER -m sweeper.cli run STUDY [KEY=VALUE]...
storage=$(sed -n 's/^storage_path: //p' "$4"); name=$(sed -n 's/^name: //p' "$4"); results="$storage/$name"
mkdir -p "$results/.scratch" "$results/report"
case "$*" in
  *seed=1*) echo "the driver refuses"; exit 2;;
  *seed=2*) echo "the driver waits"; trap 'echo "the driver saves"; exit 130' TERM INT; n=0
            while [ $n -lt 600 ]; do sleep 0.1; n=$((n + 1)); done; exit 1;;
  *seed=3*) echo start >> "$results/.scratch/starts"
            [ "$(wc -l < "$results/.scratch/starts")" -ge 3 ] || { echo "the driver dies"; kill -KILL $$; };;
esac
echo scratch > "$results/.scratch/encoded"
echo '{}' > "$results/ledger.jsonl"
echo page > "$results/report/index.html"
echo "the driver is done"
"""
_INTERPRETER = """\
#!{python}
import sys
sys.path.insert(0, {package!r})
if sys.argv[1:2] == ["-c"]:
    exec(sys.argv[2])
    sys.exit()
from sweeper.clusters import supervise
sys.executable, supervise.PAUSE_SECONDS = {driver!r}, 0.05
sys.exit(supervise.main(sys.argv[3:]))
"""


def stand_in(folder: Path) -> Path:
    """Write an interpreter that knows only the supervisor, and whose driver does what ``seed`` says.

    0: ends well; 1: refuses its input; 2: waits for a signal; 3: dies twice, then ends well.
    """
    folder.mkdir(parents=True, exist_ok=True)
    driver, interpreter = folder / "driver", folder / "python3"
    driver.write_text(_DRIVER)
    package = str(Path(__file__).resolve().parents[2])
    interpreter.write_text(_INTERPRETER.format(python=sys.executable, package=package, driver=str(driver)))
    for path in (driver, interpreter):
        path.chmod(0o755)
    return interpreter


class ClusterConformance(ABC):
    """The checks; pytest collects them in the subclass."""

    prefix = ""  # of names in packages, where the cluster wants one

    @abstractmethod
    def make(self, root: Path) -> Cluster:
        """Return a cluster whose interpreter is `stand_in`."""

    def storage(self, root: Path) -> str:
        """Return the place of results, as the cluster sees it."""
        return str(root / "storage")

    def launch(self, root: Path, seed: int = 0) -> Launch:
        """Return a launch whose driver behaves as ``seed`` says."""
        package = root / "package.zip"
        with zipfile.ZipFile(package, "w") as archive:
            archive.writestr(f"{self.prefix}study.yaml", f"name: made\nstorage_path: {self.storage(root)}\n")
        return Launch(
            name=new_name("made"),
            study="made",
            package=package,
            storage_path=self.storage(root),
            overrides=(f"seed={seed}",),
        )

    def wait(self, cluster: Cluster, handle: str, *states: LaunchState) -> LaunchState:
        """Wait until a launch is in one of the states, or has ended."""
        deadline = time.monotonic() + WAIT_SECONDS
        while (state := cluster.state(handle)) not in states and not state.is_final:
            assert time.monotonic() < deadline, f"{state} after {WAIT_SECONDS:g} s"
            time.sleep(0.1)
        return state

    def test_steps_say_everything_and_change_nothing(self, tmp_path: Path) -> None:
        """A dry run can be repeated, names the launch and leaves no trace."""
        cluster, launch = self.make(tmp_path), self.launch(tmp_path)
        before = sorted(tmp_path.rglob("*"))
        first, second = ([str(step) for step in cluster.steps(launch)] for _ in range(2))
        assert first == second
        assert launch.name in "\n".join(first)
        assert sorted(tmp_path.rglob("*")) == before

    def test_a_launch_runs_to_its_end_and_is_fetched(self, tmp_path: Path) -> None:
        """Submitted, followed, done; results come home without scratch files."""
        cluster, launch = self.make(tmp_path), self.launch(tmp_path)
        handle = cluster.submit(launch)
        assert "the driver is done" in list(cluster.logs(handle, follow=True))
        assert self.wait(cluster, handle) is LaunchState.SUCCEEDED
        home = tmp_path / "home"
        cluster.fetch(handle, launch.results, home)
        found = sorted(path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file())
        assert found == ["ledger.jsonl", "report/index.html"]

    def test_a_driver_that_dies_is_started_anew(self, tmp_path: Path) -> None:
        """The entry point is a supervisor."""
        cluster = self.make(tmp_path)
        handle = cluster.submit(self.launch(tmp_path, seed=3))
        assert self.wait(cluster, handle) is LaunchState.SUCCEEDED
        assert sum("it starts anew" in line for line in cluster.logs(handle, follow=False)) == 2

    def test_wrong_input_is_a_failure_at_once(self, tmp_path: Path) -> None:
        """Exit code 2 is not retried."""
        cluster = self.make(tmp_path)
        handle = cluster.submit(self.launch(tmp_path, seed=1))
        assert self.wait(cluster, handle) is LaunchState.FAILED
        lines = list(cluster.logs(handle, follow=False))
        assert lines.count("the driver refuses") == 1

    def test_cancel_lets_the_driver_save(self, tmp_path: Path) -> None:
        """Stopped, not failed; a second cancel is nothing."""
        cluster = self.make(tmp_path)
        handle = cluster.submit(self.launch(tmp_path, seed=2))
        deadline = time.monotonic() + WAIT_SECONDS
        while "the driver waits" not in list(cluster.logs(handle, follow=False)):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert self.wait(cluster, handle, LaunchState.RUNNING) is LaunchState.RUNNING
        cluster.cancel(handle)
        assert self.wait(cluster, handle) is LaunchState.STOPPED
        cluster.cancel(handle)
        assert cluster.state(handle) is LaunchState.STOPPED
