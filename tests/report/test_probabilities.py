from __future__ import annotations

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from results_folder import SEEDS, make_results
from sklearn.metrics import average_precision_score

from sweeper.report.build import build_report
from sweeper.report.probabilities import precision_recall, probability_rows
from sweeper.report.source import read_source
from sweeper.store.manifest import read_manifest, write_manifest
from sweeper.store.paths import ResultPaths
from sweeper.store.tables import PREDICTIONS, write_table

TARGETS = np.array([1, 0, 1, 0, 0, 0, 0, 0, 0, 0])
SHARES = {"good": [0.9, 0.2, 0.8, 0.7, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1], "middling": [0.5] * 10}


@pytest.fixture
def results(tmp_path):
    """Two models on ten examples, two of them of the second class; every seed answers alike, the last one worse."""
    root = make_results(tmp_path / "demo", tuple(SHARES))
    paths, parts = ResultPaths(root), []
    for model, shares in SHARES.items():
        for config in ("tuned", "default"):
            for seed in SEEDS:
                given = np.array(shares if seed != SEEDS[-1] else shares[::-1], np.float32)
                part = {"model": [model] * 10, "config": [config] * 10, "seed": [seed] * 10, "target": TARGETS}
                part |= {"example_id": [f"e{at}" for at in range(10)], "prediction": (given >= 0.75).astype(int)}
                part |= {"probabilities": np.stack([1 - given, given], axis=1).tolist()}
                parts.append(pa.table(part, schema=pa.schema(PREDICTIONS)))
    write_table(paths.predictions, pa.concat_tables(parts))
    scores = {"average_precision": 0.9, "log_loss": 0.3, "expected_calibration_error": 0.07}
    table = pq.read_table(paths.confirmations)
    rows = [
        {**row, "metric": name, "value": value}
        for row in table.to_pylist()
        if row["split"] == "test" and row["metric"] == "accuracy"
        for name, value in scores.items()
    ]
    write_table(paths.confirmations, pa.concat_tables([table, pa.Table.from_pylist(rows, schema=table.schema)]))
    manifest = read_manifest(paths)
    manifest.data["trivial"] = {**scores, "average_precision": 0.2}
    write_manifest(paths, manifest)
    return root


def test_precision_and_recall_are_those_of_the_median_run(results):
    curves = precision_recall(read_source(results))
    assert set(curves) == {(model, config) for model in SHARES for config in ("tuned", "default")}
    good = curves["good", "tuned"]
    assert good.area == pytest.approx(average_precision_score(TARGETS, SHARES["good"]))
    assert good.decided == (1.0, 1.0)
    level = curves["middling", "default"]
    assert level.area == pytest.approx(0.2)
    assert level.decided == (0.0, 0.0)


def test_a_run_without_probabilities_and_a_score_without_a_value_are_left_out(results):
    paths = ResultPaths(results)
    rows = pq.read_table(paths.predictions).to_pylist()
    for row in rows:
        if row["model"] == "good" and row["config"] == "tuned":
            row["probabilities"] = [float("nan")] * 2
    write_table(paths.predictions, pa.Table.from_pylist(rows, schema=pa.schema(PREDICTIONS)))
    scores = pq.read_table(paths.confirmations).to_pylist()
    for row in scores:
        if row["model"] == "good" and row["config"] == "default" and row["metric"] == "log_loss":
            row["value"] = None
    write_table(paths.confirmations, pa.Table.from_pylist(scores, schema=pq.read_schema(paths.confirmations)))
    source = read_source(results)
    assert set(precision_recall(source)) == {("good", "default"), ("middling", "tuned"), ("middling", "default")}
    shown = {(row["model"], row["config"]) for row in probability_rows(source)}
    assert ("good", "default") not in shown
    assert ("good", "tuned") in shown
    build_report(results)


def test_page_and_markdown_show_precision_recall_and_calibration(results):
    page = build_report(results).read_text()
    data = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page)
    figure = json.loads(data[1])["precision-recall"]
    assert figure["layout"]["xaxis"]["title"]["text"] == "recall of b"
    assert figure["layout"]["shapes"][0]["y0"] == 0.4, "the share of the second class among the test examples"
    assert figure["data"][0]["name"] == "good, tuned (1.000)"
    text = (results / "report" / "report.md").read_text()
    assert "| good | tuned | 0.9000 | 0.3000 | 0.0700 |" in text
    assert "| the trivial answer |  | 0.2000 |" in text


def test_other_tasks_have_neither(tmp_path):
    root = make_results(tmp_path / "plain")
    assert precision_recall(read_source(root)) == {}
    assert probability_rows(read_source(root)) == []
    page = build_report(root).read_text()
    assert "How good the probabilities are" not in page
