"""The parts of the pipeline that run on Ray; no other module imports Ray.

It is loaded when a name is first used: a job whose stages are done does without.
"""

from typing import TYPE_CHECKING

from mmray.system.lazy import lazy

if TYPE_CHECKING:
    from mmray.pipeline.distributed.caching import cache_images as cache_images
    from mmray.pipeline.distributed.caching import cached as cached
    from mmray.pipeline.distributed.capacity import Capacity as Capacity
    from mmray.pipeline.distributed.capacity import Machine as Machine
    from mmray.pipeline.distributed.capacity import machines as machines
    from mmray.pipeline.distributed.capacity import shared_memory as shared_memory
    from mmray.pipeline.distributed.capacity import working_machines as working_machines
    from mmray.pipeline.distributed.cluster import connect as connect
    from mmray.pipeline.distributed.cluster import mining_device as mining_device
    from mmray.pipeline.distributed.cluster import reporting_losses as reporting_losses
    from mmray.pipeline.distributed.cluster import training_workers as training_workers
    from mmray.pipeline.distributed.cluster import with_gpus as with_gpus
    from mmray.pipeline.distributed.cluster import with_gpus_and_cpus as with_gpus_and_cpus
    from mmray.pipeline.distributed.extraction import extract as extract
    from mmray.pipeline.distributed.extraction import sum_up_regions as sum_up_regions
    from mmray.pipeline.distributed.listing import index_containers as index_containers
    from mmray.pipeline.distributed.mining import mine as mine
    from mmray.pipeline.distributed.neighbors import faiss_pool as faiss_pool
    from mmray.pipeline.distributed.neighbors import find_neighbors as find_neighbors
    from mmray.pipeline.distributed.neighbors import (
        find_neighbors_in_parts as find_neighbors_in_parts,
    )
    from mmray.pipeline.distributed.neighbors import query_units as query_units
    from mmray.pipeline.distributed.neighbors import write_index as write_index
    from mmray.pipeline.distributed.tasks import run_once as run_once
    from mmray.pipeline.distributed.trainer import fine_tune as fine_tune
    from mmray.pipeline.distributed.units import ActorPool as ActorPool

__all__ = [
    "ActorPool",
    "Capacity",
    "Machine",
    "cache_images",
    "cached",
    "connect",
    "extract",
    "faiss_pool",
    "find_neighbors",
    "find_neighbors_in_parts",
    "fine_tune",
    "index_containers",
    "machines",
    "mine",
    "mining_device",
    "query_units",
    "reporting_losses",
    "run_once",
    "shared_memory",
    "sum_up_regions",
    "training_workers",
    "with_gpus",
    "with_gpus_and_cpus",
    "working_machines",
    "write_index",
]

__getattr__ = lazy(
    __name__,
    {
        "cache_images": "caching",
        "cached": "caching",
        "Capacity": "capacity",
        "Machine": "capacity",
        "machines": "capacity",
        "shared_memory": "capacity",
        "working_machines": "capacity",
        "connect": "cluster",
        "mining_device": "cluster",
        "reporting_losses": "cluster",
        "training_workers": "cluster",
        "with_gpus": "cluster",
        "with_gpus_and_cpus": "cluster",
        "extract": "extraction",
        "sum_up_regions": "extraction",
        "index_containers": "listing",
        "mine": "mining",
        "faiss_pool": "neighbors",
        "find_neighbors": "neighbors",
        "find_neighbors_in_parts": "neighbors",
        "query_units": "neighbors",
        "write_index": "neighbors",
        "run_once": "tasks",
        "fine_tune": "trainer",
        "ActorPool": "units",
    },
)
