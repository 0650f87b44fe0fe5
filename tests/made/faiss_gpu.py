"""A stand-in for the GPU of faiss: copies stay on the CPU, and it is noted what they are asked.

Like faiss, it takes flat indexes and inverted lists of half precision alone, selects at most 2,048,
and adds to no copy but that of k-means.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from mmray.mining.knn import exact, faiss_library
from mmray.mining.knn.exact_cuda import DeviceIndex
from mmray.mining.knn.faiss_library import faiss

OUT_OF_MEMORY = (  # as faiss 1.15 words it
    "Error in virtual void* faiss::gpu::StandardGpuResourcesImpl::allocMemory(const "
    "faiss::gpu::AllocRequest&): Error: 'err == cudaSuccess' failed: StandardGpuResources: alloc "
    "fail type IVFLists dev 0 space Device stream 0x1 size 9 bytes (cudaMalloc error out of memory "
    "[2])\n"
)


class Resources:
    """`faiss.StandardGpuResources`."""


class Options:
    """`faiss.GpuClonerOptions`, in a build with cuVS."""

    use_cuvs = True


class Lists:
    """A copy of inverted lists: its searches, and nothing else."""

    def __init__(self, index: Any, searched: list[tuple[int, int, int]]) -> None:
        self._index, self._searched = index, searched

    def search_preassigned_c(self, *given: Any) -> None:
        count, _, k, *_, store_pairs, parameters = given
        assert not store_pairs
        assert max(k, parameters.nprobe) <= 2048
        self._searched.append((count, k, parameters.nprobe))
        self._index.search_preassigned_c(*given)


class Centroids:
    """A copy of centroids that assigns rows to them."""

    def __init__(self, index: Any, assigned: list[int]) -> None:
        self._index, self._assigned = index, assigned

    def assign(self, rows: Any, k: int) -> Any:
        self._assigned.append(len(rows))
        return self._index.assign(rows, k)


@dataclass
class FakeGpu:
    """Record of the copies that were made, and of the calls of them.

    Attributes
    ----------
    learned : empty flat indexes that were copied, which k-means then fills
    lists : copies of inverted lists
    assigned : rows of each block that was assigned
    searched : queries, candidates of each and lists probed of each search
    failing : message of the error of all further copies; "": none
    """

    learned: list[Any] = field(default_factory=list)
    lists: list[Lists] = field(default_factory=list)
    assigned: list[int] = field(default_factory=list)
    searched: list[tuple[int, int, int]] = field(default_factory=list)
    failing: str = ""

    @classmethod
    def on(cls, monkeypatch: Any) -> "FakeGpu":
        """Put one into this process."""
        fake = cls()
        monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
        monkeypatch.setattr(faiss, "StandardGpuResources", Resources, raising=False)
        monkeypatch.setattr(faiss, "GpuClonerOptions", Options, raising=False)
        monkeypatch.setattr(faiss, "index_cpu_to_gpu", fake._copy, raising=False)
        monkeypatch.setattr(exact, "DeviceIndex", partial(_on_cpu, DeviceIndex))
        assert faiss_library.faiss_has_gpu()
        return fake

    def _copy(self, resources: Resources, device: int, index: Any, options: Options) -> Any:
        assert isinstance(resources, Resources)
        assert device == 0
        assert not options.use_cuvs
        if self.failing:
            raise RuntimeError(self.failing)
        index = faiss.downcast_index(index)  # as faiss sees it, whatever Python calls it
        copy = faiss.clone_index(index)
        if isinstance(index, faiss.IndexIVF):
            assert isinstance(index, faiss.IndexIVFScalarQuantizer)
            assert index.sq.qtype == faiss.ScalarQuantizer.QT_fp16
            self.lists.append(Lists(copy, self.searched))
            return self.lists[-1]
        assert isinstance(index, faiss.IndexFlat)
        if index.ntotal:
            return Centroids(copy, self.assigned)
        self.learned.append(copy)
        return copy


def _on_cpu(made: Any, database: Any, norm: float, device: str) -> DeviceIndex:
    assert device == "cuda"
    return made(database, norm, "cpu")
