"""A study on a cluster, by name: package, submit, ask, read, stop, fetch."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sweeper.clusters.base import Cluster, Launch, LaunchState, Step
from sweeper.clusters.collect import wants
from sweeper.clusters.doctor import Diagnosis, diagnose
from sweeper.clusters.launches import LaunchRecord, new_name, recall, remember
from sweeper.clusters.package import Package, build_package
from sweeper.clusters.profiles import TYPES, Profile, load_profile, make_cluster, profile_path
from sweeper.core.errors import InputError, Problem
from sweeper.spec.load import load_study
from sweeper.spec.study import StudySpec
from sweeper.store.storage import is_url


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A launch before it is submitted."""

    launch: Launch
    package: Package
    profile: Profile
    profile_name: str
    cluster: Cluster

    @property
    def steps(self) -> Sequence[Step]:
        """Exactly what will be done."""
        return self.cluster.steps(self.launch)

    def as_text(self) -> str:
        """The package's files and every step."""
        lines = [f"# {self.launch.name}: {self.launch.study} on {self.profile_name}, results in {self.launch.results}"]
        lines.append(f"# package of {len(self.package.files)} files, {self.package.num_bytes:,} bytes:")
        lines += [f"#   {name} ({size:,})" for name, size in sorted(self.package.files.items())]
        return "\n\n".join(["\n".join(lines), *(str(step) for step in self.steps)])


@contextmanager
def planned(study: Path, overrides: Sequence[str], profile_name: str | None) -> Iterator[Plan]:
    """Package a study for a cluster, for as long as the block lasts; nothing leaves this machine.

    Parameters
    ----------
    study:
        The study file.
    overrides:
        As for ``run``; they become part of the packaged study.
    profile_name:
        A profile's name or file; None: the study's ``cluster``.

    Raises
    ------
    InputError
        The study, the profile or the package is wrong.
    """
    spec = load_study(study, overrides)
    folder = study.resolve().parent
    chosen = profile_name or spec.cluster.profile
    profile = load_profile(profile_path(chosen, folder))
    storage = _storage(spec, profile)
    with tempfile.TemporaryDirectory(prefix="sweeper-") as temporary:
        package = build_package(
            spec,
            folder,
            Path(temporary) / "package.zip",
            storage_path=storage,
            # Here files stay where they are: nothing to gain from copying a data set on its own disk.
            shared_paths=["/"] if profile.type == "local" else profile.shared_paths,
            prefix=profile.package_prefix,
        )
        launch = Launch(name=new_name(spec.name), study=spec.name, package=package.path, storage_path=storage)
        cluster = make_cluster(profile)
        yield Plan(launch=launch, package=package, profile=profile, profile_name=chosen, cluster=cluster)


def submit(plan: Plan) -> LaunchRecord:
    """Submit a plan and remember it."""
    handle = plan.cluster.submit(plan.launch)
    record = LaunchRecord(
        name=plan.launch.name,
        study=plan.launch.study,
        profile=plan.profile.model_dump(mode="json"),
        profile_name=plan.profile_name,
        handle=handle,
        results=plan.launch.results,
        launched_at=time.time(),
    )
    remember(record)
    return record


@dataclass(frozen=True, kw_only=True)
class LaunchStatus:
    """Where a launch stands; ``study`` is `inspect.study_status` where this machine sees the results."""

    name: str
    state: str
    profile: str
    results: str
    launched_at: float
    study: dict[str, Any] | None
    text: str

    def as_dict(self) -> dict[str, Any]:
        """JSON for machines."""
        return {key: value for key, value in asdict(self).items() if key != "text"}

    def as_text(self) -> str:
        """A few lines for people."""
        started = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.launched_at))
        line = f"{self.name}: {self.state} on {self.profile} since {started}, results in {self.results}"
        return "\n".join(filter(None, [line, self.text]))


def launch_status(name: str) -> LaunchStatus:
    """Ask the cluster where a launch stands, and read its results where this machine sees them."""
    record = recall(name)
    state = _cluster(record).state(record.handle)
    study: dict[str, Any] | None = None
    text = ""
    if "://" not in record.results and (Path(record.results) / "manifest.json").is_file():
        from sweeper.workflows.inspect import study_status

        report = study_status(Path(record.results))
        study, text = report.as_dict(), report.as_text()
    return LaunchStatus(
        name=name,
        state=state.value,
        profile=record.profile_name,
        results=record.results,
        launched_at=record.launched_at,
        study=study,
        text=text,
    )


def launch_logs(name: str, *, follow: bool) -> Iterator[str]:
    """Yield the lines of a launch's output; with ``follow`` until it has ended."""
    record = recall(name)
    return _cluster(record).logs(record.handle, follow=follow)


def wait_state(name: str) -> LaunchState:
    """Return where a launch stands now."""
    record = recall(name)
    return _cluster(record).state(record.handle)


def cancel(name: str) -> None:
    """Stop a launch; finished work is kept, and launching the study again goes on."""
    record = recall(name)
    _cluster(record).cancel(record.handle)


def fetch(name: str, target: Path | None) -> Path:
    """Bring a launch's results home.

    Parameters
    ----------
    target:
        A new or empty folder; None: ``results/<study>`` below the working directory.

    Raises
    ------
    InputError
        When the folder holds something.
    """
    record = recall(name)
    target = target or Path("results") / record.study
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(Problem(str(target), "must be a new or empty folder", "something", "name another by -o"))
    try:
        _cluster(record).fetch(record.handle, record.results, target)
    except FileNotFoundError:
        rule = "the results must exist where the launch writes them"
        raise InputError(Problem(record.results, rule, "nothing", f"see `sweeper logs {name}`")) from None
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)  # half a study would look like one, and refuse the next fetch
        raise
    return target


def examine(profile_name: str, study: Path | None, overrides: Sequence[str] = ()) -> Diagnosis:
    """Examine a cluster, or this machine, before anything is spent.

    Parameters
    ----------
    profile_name:
        A profile's name or file.
    study:
        A study file, whose storage and network needs are asked about too.
    """
    spec = load_study(study, overrides) if study is not None else None
    profile = load_profile(profile_path(profile_name, study.resolve().parent if study is not None else Path()))
    storage = _storage(spec, profile) if spec is not None else profile.storage_path
    return diagnose(make_cluster(profile).facts(storage, wants(study)))


def _storage(spec: StudySpec, profile: Profile) -> str:
    """Return where results go, as the cluster sees it."""
    if profile.storage_path is not None:
        return profile.storage_path if is_url(profile.storage_path) else profile.storage_path.rstrip("/")
    shared = any(Path(spec.storage_path).is_relative_to(path) for path in profile.shared_paths)
    if profile.type == "local" or is_url(spec.storage_path) or shared:
        return spec.storage_path
    rule = "results need a place that all nodes see"
    remedy = "set storage_path in the profile, or give the study an s3:// or gs:// URL"
    raise InputError(Problem("storage_path", rule, spec.storage_path, remedy))


def _cluster(record: LaunchRecord) -> Cluster:
    kind = TYPES.get(record.profile["type"])
    if kind is None:
        return make_cluster(load_profile(profile_path(record.profile_name)))
    return make_cluster(kind[0].model_validate(record.profile))
