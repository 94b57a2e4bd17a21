from __future__ import annotations

from pathlib import Path

import pytest

from sweeper.clusters.base import Launch
from sweeper.clusters.profiles import load_profile, make_cluster, profile_path, profiles_folder
from sweeper.core.errors import InputError

PROFILES = sorted(path.stem for path in profiles_folder().glob("*.yaml"))


def test_the_promised_profiles_are_there():
    wanted = {"local", "existing", "kuberay-rayjob", "kuberay-raycluster", "slurm", "ray-up-aws", "ray-up-gcp"}
    assert wanted <= set(PROFILES)


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_loads_renders_and_says_storage_token_and_stop(name, tmp_path):
    path = profile_path(name)
    profile = load_profile(path)
    package = tmp_path / "package.zip"
    package.write_bytes(b"zip")
    launch = Launch(name="made-1", study="made", package=package, storage_path=profile.storage_path or "/results")
    text = "\n".join(str(step) for step in make_cluster(profile).steps(launch))
    assert "sweeper.clusters.supervise" in text
    assert "made-1" in text
    comments = path.read_text()
    assert all(f"# {word}:" in comments for word in ("Storage", "Token", "Stop"))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("type: slurmm\n", "profile.yaml:1:1 type: type must be one of"),
        ("type: slurm\nfolder: /f\nnode: 2\n", "profile.yaml:3:1 node: no such key, got node; did you mean nodes?"),
        ("type: slurm\nfolder: relative\n", "profile.yaml:2:1 folder: string should match pattern"),
        ("type: existing\naddress: host:6379\n", "profile.yaml:2:1 address: must be http(s)://HOST:PORT"),
        (
            "type: local\nenvironment: {WANDB_API_KEY: abc}\n",
            "profile.yaml:2:1 environment: WANDB_API_KEY looks like a secret",
        ),
        ("type: ray-up\ncluster: {provider: {type: aws}}\n", "must be a cluster configuration of Ray's"),
        ("- type\n", "type must be one of"),
    ],
)
def test_a_mistake_is_one_line_with_its_place(text, line, tmp_path):
    (tmp_path / "profile.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        load_profile(tmp_path / "profile.yaml")
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_profile_beside_the_study_wins_over_the_one_that_comes_along(tmp_path):
    (tmp_path / "clusters").mkdir()
    own = tmp_path / "clusters" / "slurm.yaml"
    own.write_text("type: slurm\nfolder: /own\n")
    assert profile_path("slurm", tmp_path) == own
    assert profile_path("existing", tmp_path).parent == profiles_folder()
    with pytest.raises(InputError, match="did you mean slurm"):
        profile_path("slurrm", tmp_path)


def test_a_profile_type_of_another_package_is_found(tmp_path, monkeypatch):
    import sys
    from importlib.metadata import EntryPoint
    from types import ModuleType

    from sweeper.clusters import profiles
    from sweeper.clusters.local import LocalCluster

    class Mine(profiles.Profile):
        type: str

    module = ModuleType("my_clusters")
    module.PROFILE, module.CLUSTER = Mine, LocalCluster
    monkeypatch.setitem(sys.modules, "my_clusters", module)
    monkeypatch.setattr(profiles, "entry_points", lambda group: [EntryPoint("mine", "my_clusters", group)])
    (tmp_path / "mine.yaml").write_text("type: mine\n")
    profile = load_profile(tmp_path / "mine.yaml")
    assert isinstance(make_cluster(profile), LocalCluster)


def test_the_dockerfile_installs_the_pinned_packages():
    root = Path(__file__).parents[2]
    text = (root / "clusters" / "Dockerfile").read_text()
    assert text.count("-c constraints.txt") == 2
    pinned = {line.partition("==")[0] for line in (root / "constraints.txt").read_text().splitlines()}
    assert {"torch", "ray", "cmaes", "boto3", "botocore"} <= pinned
