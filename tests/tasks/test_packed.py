from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from sweeper.tasks.packed import first_fit, separating_mask, sums_by_owner

WIDTH = 16
LENGTHS = st.lists(st.integers(1, WIDTH), min_size=1, max_size=40)


@given(LENGTHS)
def test_sequences_lie_in_rows_without_a_gap_or_an_overlap_in_few_of_them(lengths):
    lengths = np.array(lengths)
    rows, begins = first_fit(lengths, WIDTH)
    for row in range(rows.max() + 1):
        taken = sorted(
            (begin, begin + length) for begin, length in zip(begins[rows == row], lengths[rows == row], strict=True)
        )
        assert taken[0][0] == 0
        assert all(end == begin for (_, end), (begin, _) in pairwise(taken))
        assert taken[-1][1] <= WIDTH
    least = int(np.ceil(lengths.sum() / WIDTH))
    assert least <= rows.max() + 1 <= 2 * least, "two rows that are half empty would have been one"


def test_a_token_sees_its_own_sequence_up_to_itself_and_nothing_else():
    mask = separating_mask(torch.tensor([[0, 0, 1, -1]]))
    seen = (mask[0, 0] == 0).int().tolist()
    assert seen == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


def test_sums_are_those_of_each_sequence_over_rows():
    owners = torch.tensor([[0, 0, 2], [1, -1, -1]])
    values = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    assert sums_by_owner(values, owners, 3).tolist() == [3.0, 8.0, 4.0]
