"""The conformance suite over this machine, and over stand-ins for SLURM's and Kubernetes' programs."""

from __future__ import annotations

import shutil

import pytest

from sweeper.clusters.kuberay import RayJobCluster
from sweeper.clusters.local import LocalCluster
from sweeper.clusters.profiles import KubeRayProfile, LocalProfile, SlurmProfile
from sweeper.clusters.slurm import SlurmCluster
from sweeper.testing.cluster import ClusterConformance, stand_in


class TestLocal(ClusterConformance):
    def make(self, root):
        return LocalCluster(LocalProfile(type="local", python=str(stand_in(root / "python"))))


@pytest.mark.usefixtures("programs")
class TestSlurm(ClusterConformance):
    def make(self, root):
        python = stand_in(root / "bin")  # beside the stand-in for ray
        return SlurmCluster(
            SlurmProfile(
                type="slurm",
                python=str(python),
                folder=str(root / "shared"),
                storage_path=str(root / "storage"),
                check=False,
            )
        )


@pytest.mark.usefixtures("programs")
class TestRayJob(ClusterConformance):
    prefix = "study/"

    def make(self, root):
        return RayJobCluster(
            KubeRayProfile(
                type="kuberay-rayjob",
                python=str(stand_in(root / "python")),
                image="sweeper:test",
                workers=[{"name": "cpu", "max_replicas": 2}],
                volume_claim="sweeper",
                volume_path=str(root),
                storage_path=str(root / "storage"),
                check=False,
            )
        )


def test_the_programs_of_the_stand_ins_are_not_those_of_this_machine(programs):
    assert shutil.which("kubectl") == str(programs / "kubectl")
