"""A study whose models ask for nodes of their own, over hosts with different labels, one of which is lost.

    sudo python benchmarks/labelled_hosts.py --json OUT.json

Hosts are made as in `three_hosts.py`: network namespaces with names and addresses of their own, Ray with token
authentication. The first two carry the label ``kind=small``, the third ``kind=large``; the study file says
``node_labels: {kind: small}`` for its ResNet and ``{kind: large}`` for its ViT. While the ViT trains, every process of
the only large host is killed, and a fourth host joins, which is large as well. `sweeper run` must end with every trial,
epoch, confirmation and test once, each segment of a trial on a host that its model's labels name, and a report that
says which hosts served which model. Needs root and ``ip`` (iproute2). Exit code 1 when any of that does not hold.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from chaos import Outcome, count_lost_and_doubled
from machine import facts, publish
from three_hosts import END_SECONDS, PORT, Host, Scene, Story, Watch, bridged_folder, make_scene

from sweeper.store.ledger import Ledger
from sweeper.store.paths import ResultPaths
from sweeper.store.state import StudyState

KINDS = {1: "small", 2: "small", 3: "large", 4: "large"}
ASKED = {"resnet": "small", "vit": "large"}


def ask_for_nodes(study: Path) -> None:
    """Write into the study file which nodes each model asks for."""
    text = study.read_text()
    for model, kind in ASKED.items():
        bare = f"{{name: {model}, checkpoint: {model}}}"
        assert bare in text
        text = text.replace(bare, f"{{name: {model}, checkpoint: {model}, node_labels: {{kind: {kind}}}}}")
    study.write_text(text)


def join(scene: Scene, number: int, stack: ExitStack, head: str | None) -> Host:
    """Make a host, and let it found the cluster or join it; ``stack`` removes it."""
    host = Host(number, scene.folder, scene.environment)
    stack.callback(host.remove)
    words = ("--address", head) if head else ("--head", "--port", str(PORT), "--include-dashboard", "false")
    host.ray(*words, "--labels", f"kind={KINDS[number]}")
    return host


def segments(results: Path) -> dict[str, Counter[str]]:
    """Count the segments of each model's trials, confirmations included, by the host that trained them."""
    events = Ledger.read(ResultPaths(results))
    trials = StudyState.replay(events).trials
    found: dict[str, Counter[str]] = {model: Counter() for model in ASKED}
    for event in events:
        if event.kind == "segment_started":
            found[trials[event.payload["trial_id"]].spec.model][event.payload["node"]] += 1
    return found


def labelled_study(scene: Scene, trials: int, stack: ExitStack) -> dict[str, Any]:
    """Run the study, lose the large host, add another; return what came of it."""
    story = Story()
    first = join(scene, 1, stack, None)
    head = f"{first.address}:{PORT}"
    join(scene, 2, stack, head)
    large = join(scene, 3, stack, head)
    story.tell("two small hosts and a large one have joined")
    command = [sys.executable, "-m", "sweeper.cli", "run", str(scene.study), f"cluster.address={head}"]
    driver = first.start(*command, *scene.overrides)
    watch = story.watch = Watch(scene.results, driver)
    watch.wait_for(trials // 2, [large], 1)
    large.kill()
    story.tell(f"{large.name}, the only large host, is killed while it trains")
    added = join(scene, 4, stack, head)
    story.tell(f"{added.name} has joined, large as well")
    driver.wait(timeout=END_SECONDS)
    story.tell(f"the driver ended with code {driver.returncode}")
    outcome = Outcome()
    count_lost_and_doubled(scene.results, trials, outcome)
    table = pq.read_table(scene.results / "trials.parquet").to_pylist()
    found = segments(scene.results)
    kinds = {f"sweeper-h{number}": kind for number, kind in KINDS.items()}
    astray = {model: [node for node in nodes if kinds[node] != ASKED[model]] for model, nodes in found.items()}
    said = (scene.results / "report" / "report.md").read_text().splitlines()
    return {
        "exit_code": driver.returncode,
        "labels": {model: f"kind={kind}" for model, kind in ASKED.items()},
        "segments_by_model_and_host": found,
        "trials_by_model_and_last_host": {
            model: Counter(row["node"] for row in table if row["model"] == model) for model in ASKED
        },
        "segments_on_other_hosts": sum(map(len, astray.values())),
        "said_in_the_report": [line for line in said if "kind=" in line],
        "states": Counter(row["state"] for row in table),
        "retries": watch.retries,
        "trials_lost": outcome.trials_lost,
        "trials_doubled": outcome.trials_doubled,
        "examples": outcome.examples,
        "story": story.lines,
    }


def is_sound(report: dict[str, Any]) -> bool:
    """Whether nothing was lost, doubled or trained elsewhere, and all four hosts had a part."""
    hosts = {host for counts in report["segments_by_model_and_host"].values() for host in counts}
    bad = ("exit_code", "trials_lost", "trials_doubled", "segments_on_other_hosts")
    return not any(report[key] for key in bad) and len(hosts) == len(KINDS) and bool(report["said_in_the_report"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=8, help="search trials for each of the two models")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    options.s3, options.workers = None, 1  # as `make_scene` reads them
    with bridged_folder("*.log") as folder, ExitStack() as stack:
        scene = make_scene(folder, options, stack)
        ask_for_nodes(scene.study)
        report = labelled_study(scene, options.trials, stack) | {"machine": facts()}
    publish(report, options.json)
    return not is_sound(report)


if __name__ == "__main__":
    sys.exit(main())
