"""The plan: few shapes, every image once, the same for every process."""

import numpy as np
import pytest

from input_pipeline.batches.buckets import plan_batches
from input_pipeline.batches.transforms import rescaled_size

VOC_LIKE = [(500, 375), (375, 500), (333, 500), (500, 333), (442, 500), (112, 500), (1, 900)]


def sizes(count, seed=0):
    rng = np.random.RandomState(seed)
    return [VOC_LIKE[i] for i in rng.randint(0, len(VOC_LIKE), count)]


def network_size(height, width):
    return rescaled_size(height, width, (2048, 512))


@pytest.mark.parametrize(("count", "batch_size"), [(1, 4), (7, 1), (97, 8), (64, 64)])
@pytest.mark.parametrize("max_buckets", [1, 3, 8])
def test_every_image_once(count, batch_size, max_buckets):
    given = sizes(count)
    plan = plan_batches(given, batch_size, network_size=network_size, max_buckets=max_buckets)
    valid = [i for b in plan for i, v in zip(b.indices, b.valid, strict=True) if v]
    assert sorted(valid) == list(range(count))
    assert len({(b.bucket_hw, b.network_hw) for b in plan}) <= max_buckets
    for batch in plan:
        assert len(batch.indices) == len(batch.valid) == batch_size
        assert batch.valid[0]
        for index, real in zip(batch.indices, batch.valid, strict=True):
            assert real or index == batch.indices[0]
            assert all(np.array(given[index]) <= batch.bucket_hw)
            assert all(np.array(network_size(*given[index])) <= batch.network_hw)
        assert not any(n % 64 for n in batch.bucket_hw)
        assert not any(n % 16 for n in batch.network_hw)
    assert plan == plan_batches(
        given, batch_size, network_size=network_size, max_buckets=max_buckets
    )


@pytest.mark.parametrize(
    ("small", "expected"),
    # Widening 20 small ones is cheaper than padding the 2 wide and 3 tall ones; widening 50 is not.
    [(20, [(600, 100), (100, 160)]), (50, [(600, 160), (100, 100)])],
)
def test_merges_what_costs_least(small, expected):
    given = [(100, 100)] * small + [(100, 160)] * 2 + [(600, 100)] * 3
    plan = plan_batches(given, 64, max_buckets=2, bucket_px=10, network_multiple=1)
    assert [batch.bucket_hw for batch in plan] == expected


def test_many_shapes_stay_quick():
    rng = np.random.RandomState(0)
    given = [tuple(size) for size in rng.randint(1, 6001, (3000, 2)).tolist()]
    plan = plan_batches(given, 8, max_buckets=6)
    assert len({batch.bucket_hw for batch in plan}) <= 6
    assert sum(sum(batch.valid) for batch in plan) == 3000


def test_largest_first():
    areas = [b.bucket_hw[0] * b.bucket_hw[1] for b in plan_batches(VOC_LIKE, 1, bucket_px=1)]
    assert areas == sorted(areas, reverse=True)


def test_errors():
    assert plan_batches([], 4) == []
    with pytest.raises(ValueError, match="batch_size is 0; it must be at least 1"):
        plan_batches([(1, 1)], 0)
    with pytest.raises(ValueError, match=r"Image 1 has size .*at the network"):
        plan_batches([(5, 5), (0, 5)], 1)
