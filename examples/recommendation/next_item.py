"""Sequence recommendation as a task: which item comes next after a history, by hit rate and NDCG at k.

A history is a text of item names, one word an item, so that any text encoder with a tokenizer of items reads it; an
item is a class. Metrics rank all items by their probability, as recommenders are judged (He et al. 2017, Kang and
McAuley 2018); the loss is the cross entropy over all items.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sweeper.tasks.base import Metric
from sweeper.tasks.text_classification import TextClassification

AT = (1, 5, 10)
RANKING = {
    metric.name: metric
    for k in AT
    for metric in (
        Metric(f"hit_rate_{k}", "maximize", f"share of histories whose next item is among the {k} most probable"),
        Metric(f"ndcg_{k}", "maximize", f"1 / log2(1 + rank) of the next item where its rank is at most {k}, else 0"),
    )
}


class NextItem(TextClassification):
    """One next item of K per history. Ties are ranked against the item: a constant answer gains nothing."""

    type = "next_item:NextItem"
    default_metric = "ndcg_10"

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """Hit rate and NDCG at 1, 5 and 10."""
        return RANKING

    def score(
        self,
        targets: NDArray[Any],
        predictions: NDArray[Any],
        threshold: float | None = None,  # noqa: ARG002
    ) -> dict[str, float]:
        """Score probabilities (N, K) against the items that came next (N,)."""
        own = predictions[np.arange(len(targets)), targets]
        ranks = (predictions >= own[:, None]).sum(axis=1)  # the item itself counts as 1
        gains = 1 / np.log2(1 + ranks)
        hits = {f"hit_rate_{k}": float(np.mean(ranks <= k)) for k in AT}
        return hits | {f"ndcg_{k}": float(np.mean(np.where(ranks <= k, gains, 0))) for k in AT}

    def baseline(self, train: NDArray[Any], targets: NDArray[Any]) -> dict[str, float]:
        """Score the ranking by popularity in the training targets, the same for every history."""
        shares = np.bincount(train, minlength=len(self._facts.classes)) + np.linspace(0.5, 0, len(self._facts.classes))
        return self.score(targets, np.tile(shares / shares.sum(), (len(targets), 1)))
