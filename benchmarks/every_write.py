"""Kill a study after every single write, fsync and rename of its records, resume it, and compare.

    python benchmarks/every_write.py --trials 25 --json OUT.json

No training: recorded-like curves in the place of lanes (`sweeper.workflows.simulate`); searchers, early stopping,
ledger, confirmation, test opening and tables are the real ones. A forked process runs the study and dies (``_exit``,
no cleaning up) in the middle of, or right after, the k-th operation on a file; the next one resumes. All tables must
equal, row by row, those of a study that nothing disturbed. All of it twice: interrupted trials start again from their
seed, or go on from a snapshot that may be ahead of the ledger. Then once more with storage that fails instead: the
k-th operation and every tenth after it end with "no space left" or an I/O error, half a line written; the run must
stop with its one clear error, and the resume on mended storage be identical. And once with results on object storage:
killed before or after every object that is put or deleted, each resume on a machine with an empty disk. Exit code 1
when any differs.
"""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos import TABLES, make_models, rows, write_study
from machine import facts, publish

import sweeper
from sweeper.core.errors import RunFailedError
from sweeper.core.trial import Measurement, TrialSpec
from sweeper.store import lease, storage
from sweeper.store.ledger import Ledger
from sweeper.store.state import StudyState
from sweeper.store.tables import write_tables
from sweeper.workflows.book import Book
from sweeper.workflows.execute import carry_out, storage_failures
from sweeper.workflows.manifest import open_manifest
from sweeper.workflows.simulate import SimulatedLanes
from sweeper.workflows.study import Study, provisional, settle

DIED, STOPPED = 9, 7
EVERY_TENTH = 10


def curve(trial: TrialSpec) -> Iterator[Measurement]:
    """A learning curve that depends on the configuration and the seed alone."""
    rng = random.Random(f"{trial.seed}/{sorted(trial.params.items())}")
    best = 0.95 - 0.05 * (math.log10(float(trial.params["learning_rate"])) + 2.5) ** 2 + rng.gauss(0, 0.01)
    for epoch in range(1, trial.max_epochs + 1):
        value = best * (1 - math.exp(-1.2 * epoch)) + rng.gauss(0, 0.005)
        yield Measurement(
            epoch=epoch,
            train_loss=1 - value,
            validation_loss=1.1 - value,
            metrics={"accuracy": value, "macro_f1": value},
            elapsed_seconds=0.5 * epoch,
        )


@dataclass(frozen=True)
class Arm:
    """One way to disturb a study."""

    name: str
    with_snapshots: bool = False
    storage_fails: bool = False
    on_objects: bool = False


ARMS = (
    Arm("seeds"),
    Arm("snapshots", with_snapshots=True),
    Arm("storage", with_snapshots=True, storage_fails=True),
    Arm("objects", on_objects=True),
)


def store_in_folder(url: str) -> tuple[Any, str]:
    """Stand in for an object store: ``s3://`` and an absolute path is a folder of this disk."""
    import fsspec
    from pyarrow import fs

    handler = fs.FSSpecHandler(fsspec.filesystem("file", auto_mkdir=True))
    return fs.PyFileSystem(handler), "/" + url.removeprefix("s3://").lstrip("/")


def session(study: Study, *, with_snapshots: bool) -> None:
    """Do what a run does between its start and its report, without lanes."""
    snapshots = study.paths.root / "simulated" if with_snapshots else None
    if snapshots is not None:
        snapshots.mkdir(exist_ok=True)
    with storage_failures(study.paths.root), Ledger.open(study.paths) as ledger:
        state = StudyState.replay(ledger.events())
        open_manifest(study)
        book = Book(ledger, state, study.objective, num_workers=1)
        book.write("study_opened", plan_hash=study.plan.plan_hash, reason="run")
        lanes = SimulatedLanes(curve, test=lambda trial: {"accuracy": trial.seed % 1000 / 1000}, snapshots=snapshots)
        carry_out(study, book, lanes.serve, lambda: False, 1, lambda _: None)
        write_tables(study.paths, state, study.objective)


class Death:
    """Counts operations on files and, at the one that is asked for, ends the process or lets the storage fail.

    Failing storage fails again at every tenth operation from there on.
    """

    def __init__(self, at: int | None, kinds: list[str], arm: Arm) -> None:
        self.at = at
        self.kinds = kinds
        self.arm = arm
        self.storage = arm.storage_fails and at is not None

    def before(self, kind: str) -> bool:
        """Count one operation; whether it is the one."""
        self.kinds.append(kind)
        since = len(self.kinds) - 1 - (self.at if self.at is not None else len(self.kinds))
        return since == 0 or (self.storage and since > 0 and since % EVERY_TENTH == 0)

    def strike(self, code: int) -> None:
        """End the process, or fail with an error of the storage."""
        if not self.storage:
            os._exit(DIED)
        raise OSError(code, os.strerror(code))

    def install(self) -> None:
        """Stand between this process and its files."""
        fsync, replace, opened, death = os.fsync, os.replace, Path.open, self

        def dying_fsync(descriptor: int) -> None:
            if death.before("fsync"):
                death.strike(errno.EIO)
            fsync(descriptor)

        def dying_replace(*arguments: Any, **more: Any) -> None:
            if death.before("rename"):
                death.strike(errno.ENOSPC)
            replace(*arguments, **more)

        class File:
            def __init__(self, file: Any) -> None:
                self._file = file

            def write(self, data: bytes) -> None:
                if death.before("torn write"):
                    self._file.write(data[: len(data) // 2])
                    self._file.flush()
                    death.strike(errno.ENOSPC)
                self._file.write(data)
                if death.before("write"):
                    self._file.flush()
                    death.strike(errno.EIO)

            def __getattr__(self, name: str) -> Any:
                return getattr(self._file, name)

        def open_dying(path: Path, mode: str = "r", *arguments: Any, **more: Any) -> Any:
            file = opened(path, mode, *arguments, **more)
            return File(file) if mode == "ab" and path.name == "ledger.jsonl" else file

        if self.arm.on_objects:
            self.install_on_objects()
        else:
            os.fsync, os.replace, Path.open = dying_fsync, dying_replace, open_dying  # type: ignore[assignment,method-assign]

    def install_on_objects(self) -> None:
        """Stand between this process and its object store."""
        death = self

        def around(name: str) -> None:
            request = getattr(storage.ObjectStore, name)

            def dying(store: storage.ObjectStore, key: str, *arguments: Any) -> Any:
                if key == lease.KEY:  # renewed by a clock, so not at the same operation twice
                    return request(store, key, *arguments)
                if death.before(f"before {name}"):
                    death.strike(errno.EIO)
                found = request(store, key, *arguments)
                if death.before(f"after {name}"):
                    death.strike(errno.EIO)
                return found

            setattr(storage.ObjectStore, name, dying)

        for name in ("put", "delete"):
            around(name)


def in_a_process(study: Study, at: int | None, arm: Arm) -> tuple[int, dict[str, int]]:
    """Run a session in a fork that dies, or whose storage fails, at operation ``at``; return exit code and count."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code, kinds = 1, []
        try:
            os.close(reader)
            os.environ["SWEEPER_CACHE"] = tempfile.mkdtemp(
                dir=os.environ["SWEEPER_CACHE"]
            )  # a machine that knows nothing
            Death(at, kinds, arm).install()
            session(study, with_snapshots=arm.with_snapshots)
            code = 0
        except RunFailedError:
            code = STOPPED
        except BaseException as error:
            sys.stderr.write(f"session: {type(error).__name__}: {error}\n")
        finally:
            if at is None:
                os.write(writer, json.dumps(Counter(kinds) | {"all": len(kinds)}).encode())
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code, json.loads(said) if said else {}


def at(study: Study, folder: Path, arm: Arm) -> Study:
    """The same study with its results in ``folder``, or in an object store that lies there."""
    spec = study.spec.model_copy(update={"storage_path": f"s3:/{folder}" if arm.on_objects else str(folder)})
    moved = Study(**{**vars(study), "spec": spec})
    if not arm.on_objects:
        moved.paths.root.mkdir(parents=True, exist_ok=True)
    return moved


def results_of(study: Study) -> Path:
    """Where the results can be read: the folder, or the folder that plays the object store."""
    return Path(store_in_folder(study.paths.url)[1]) if study.paths.url else study.paths.root


def main(arguments: Sequence[str] | None = None) -> int:
    """Kill at every operation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=25, help="search trials for each of the two models")
    parser.add_argument("--every", type=int, default=1, help="only every n-th operation, for a short form")
    parser.add_argument("--scheduler", default="asha", help="early stopping of the study")
    parser.add_argument("--sampler", default="random", help="the default one, auto, thinks 2 s in every session")
    parser.add_argument("--arms", default=",".join(arm.name for arm in ARMS), help="which of the four")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    storage.filesystem_of = store_in_folder
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sweeper-every-write-") as folder:
        home = Path(folder)
        make_models(home / "models")
        path = write_study(home / "models", home / "study", options.trials, 1)
        spec = sweeper.load_study(
            path, [f"search.scheduler.type={options.scheduler}", f"search.sampler={options.sampler}"]
        )
        with provisional(spec) as proposed:
            study = settle(proposed)
        operations: Counter[str] = Counter()
        different: list[str] = []
        kills = 0
        os.environ["SWEEPER_CACHE"] = str(home)
        for arm in (arm for arm in ARMS if arm.name in options.arms.split(",")):
            undisturbed = at(study, home / arm.name / "reference", arm)
            code, counted = in_a_process(undisturbed, None, arm)
            assert code == 0, "the undisturbed study failed"
            operations.update(counted)
            expected = {table: rows(results_of(undisturbed), table) for table in TABLES}
            print(f"{arm.name}: {counted['all']} operations", file=sys.stderr, flush=True)
            for k in range(0, counted["all"], options.every):
                kills += 1
                disturbed = at(study, home / arm.name / f"killed-{k}", arm)
                died, _ = in_a_process(disturbed, k, arm)
                resumed, _ = in_a_process(disturbed, None, arm)
                found = {table: rows(results_of(disturbed), table) for table in TABLES} if resumed == 0 else {}
                openings = StudyState.replay(Ledger.read(disturbed.paths)).test_openings
                if (
                    died != (STOPPED if arm.storage_fails else DIED)
                    or resumed != 0
                    or found != expected
                    or len(openings) != 1
                ):
                    different.append(f"{arm.name} {k}: exit codes {died}, {resumed}; openings {len(openings)}")
    del operations["all"]
    report = {
        "trials": 2 * options.trials,
        "scheduler": options.scheduler,
        "sampler": options.sampler,
        "operations": operations,
        "kills": kills,
        "identical": kills - len(different),
        "share_identical": (kills - len(different)) / kills,
        "different": different[:20],
        "seconds": round(time.monotonic() - began, 1),
        "machine": facts(),
    }
    publish(report, options.json)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
