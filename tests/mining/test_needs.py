"""Needs of the mining stages: what they follow from, and how they grow."""

import dataclasses

import pytest

from mmray.config.sections import MiningConfig
from mmray.mining.needs import (
    JOB,
    RAY,
    WORKER,
    Sizes,
    check_needs,
    description_needs,
    needs,
    pool_images,
    worker_bytes,
)

MILLION = Sizes(n=1_000_000, d=512, half=True, share=1e12)


def test_they_are_the_arrays_that_are_held():
    search, graph, mine = needs(MILLION, MiningConfig(), seconds=100.0)
    assert [each.stage for each in (search, graph, mine)] == ["knn", "graph", "mine"]
    assert search.shared == 1e6 * 512 * 6
    assert search.job == JOB + 1e6 * 512 * 2  # bfloat16, until it is shared
    assert search.disk == 1e6 * 30 * 12
    assert (search.worker, search.seconds) == (WORKER, 100.0)
    assert mine.shared == search.shared + 1e6 * (24 * 8 + 12)
    assert mine.worker == WORKER + worker_bytes(1_000_000, MiningConfig())
    assert graph.worker == graph.shared == 0
    assert search.machine(4) == RAY + search.job + search.shared + 4 * WORKER


def test_in_parts_a_machine_shares_one_of_them():
    whole, _, mine = needs(MILLION, MiningConfig())
    small = dataclasses.replace(MILLION, share=1e9)
    assert (MILLION.parts, small.parts) == (1, 4)
    search, _, pools = needs(small, MiningConfig())
    assert search.shared == whole.shared / 4
    assert search.disk == 2 * whole.disk  # what was found up to a part, and up to the one before
    assert pools.shared == mine.shared - MILLION.index
    assert pools.disk - mine.disk == 1500 * 10_000 * 12 * 2


@pytest.mark.parametrize("search", ["exact", "ivf", "hnsw"])
def test_they_grow_no_faster_than_the_items_but_for_time(search):
    config = MiningConfig(search=search)
    ten = dataclasses.replace(MILLION, n=10_000_000)
    for one, other in zip(needs(MILLION, config), needs(ten, config), strict=True):
        for name in ("job", "shared", "worker", "disk"):
            few, many = getattr(one, name), getattr(other, name)
            assert few <= many <= 10 * few, name


def test_pools_have_no_more_images_than_there_are():
    config = MiningConfig(anchors=100, positive_k=50, max_negatives=20)
    assert pool_images(1_000_000, config) == 7000
    assert pool_images(5000, config) == 5000
    assert pool_images(500, MiningConfig(anchors=None)) == 500


def test_few_hops_need_little_memory_of_a_worker():
    whole, near = (worker_bytes(10**8, MiningConfig(hops=hops)) for hops in (None, 8))
    assert (whole, near) == (64e9, 2.5e9)


def test_the_check_diffuses_in_the_process_of_the_job():
    config = MiningConfig()
    found = check_needs(1_000_000, config)
    assert found.job - JOB == worker_bytes(1_000_000, config) + 60e6
    assert found.worker == 0


def test_describing_keeps_the_rows_twice():
    one, other = (description_needs(1_000_000, width, 60.0) for width in (512, 1024))
    assert other.disk - one.disk == 1_000_000 * 512 * 8
    assert one.seconds == 60


def test_float32_alone_takes_two_thirds():
    single = dataclasses.replace(MILLION, half=False)
    assert single.index == MILLION.index * 2 / 3
    assert needs(single, MiningConfig())[0].job == JOB
