"""Room for the mining stages: whether machines have the memory, before a stage begins."""

from collections.abc import Sequence
from dataclasses import replace
from math import inf

from mmray.config.sections import MiningConfig
from mmray.mining.knn.products import starts_in_bfloat16
from mmray.mining.needs import GB, JOB, RAY, WORKER, Needs, Sizes, needs, worker_bytes
from mmray.mining.sizes import LARGEST_K
from mmray.pipeline import distributed
from mmray.pipeline.reports.tables import Table
from mmray.system.arrays import Device
from mmray.system.errors import InputError
from mmray.system.progress import announce
from mmray.system.rows import Rows

# Of a machine's shared memory, for a part of the features: two of them are there for a moment.
_SHARE = 0.4
_SAID_FROM = 2 * GB  # beside what processes take anyway


def sizes_of(rows: Rows, config: MiningConfig, device: Device, n: int | None = None) -> Sizes:
    """Return the sizes that needs follow from; of n items, where they are not those of the rows."""
    share = config.memory * GB if config.memory else _SHARE * distributed.shared_memory()
    half = starts_in_bfloat16(device)
    return Sizes(n=n or len(rows), d=rows.shape[1], half=half, share=share)


def mining_threads(n: int, config: MiningConfig, machines: "Sequence[distributed.Machine]") -> int:
    """Return the CPUs that an actor takes, so that all of a machine's actors fit into its memory.

    Parameters
    ----------
    n : items
    config : settings of mining
    machines : those with CPUs, one at least

    Raises
    ------
    InputError
        A machine has too little memory for one actor.
    """
    needed = WORKER + worker_bytes(n, config)
    least = min(machine.memory for machine in machines)
    if least < needed:
        raise InputError(
            f"mine: diffusion among {n:,} items takes {needed / GB:.1f} GB of a worker, and a "
            f"machine has {least / GB:.1f} GB for them: choose --mining.hops 8, or take machines "
            "with more memory"
        )
    return max(_threads(machine, needed) for machine in machines)


def _threads(machine: "distributed.Machine", needed: float) -> int:
    """Return the CPUs for each of a machine's actors of so many bytes; a single one takes all."""
    actors = int(min(machine.memory, machine.cpus * needed) // needed)
    return -(-machine.cpus // max(1, actors))


def check_room(stage: str, sizes: Sizes, config: MiningConfig) -> Needs:
    """Say what a stage needs, where that is much, and refuse what no machine has room for.

    Parameters
    ----------
    stage : "knn", "graph" or "mine"
    sizes, config : see `needs`

    Raises
    ------
    InputError
        The shared objects of the stage are larger than the memory for them.
    """
    (need,) = (each for each in needs(sizes, known(config)) if each.stage == stage)
    least = distributed.shared_memory()
    if need.shared > least:
        raise InputError(
            f"{stage}: {sizes.n:,} items take {need.shared / GB:.1f} GB of shared memory on each "
            f"machine, and one has {least / GB:.1f} GB: {_remedy(stage, sizes, config)}, or start "
            "Ray with a larger --object-store-memory"
        )
    workers = max(machine.cpus for machine in distributed.machines())
    if need.machine(workers) - RAY - JOB - workers * WORKER >= _SAID_FROM:
        announce(f"{stage}: {_told(need)}")
    return need


def needs_here(
    what: str, told: Sequence[Needs], sizes: Sizes, config: MiningConfig, *, note: str = ""
) -> Table:
    """Compare what stages need with what the machines that are there have.

    Parameters
    ----------
    what : the items, for the head of the table
    told : needs of the stages
    sizes, config : what these follow from
    note : to be added to that below the table
    """
    machines = [machine for machine in distributed.machines() if machine.cpus]
    unknown = distributed.Machine(1, inf, inf)  # where an autoscaler will start the first one
    largest = max(machines, key=lambda each: each.cpus, default=unknown)
    cpus = sum(each.cpus for each in machines) or 1
    threads = config.threads or _threads(largest, WORKER + worker_bytes(sizes.n, config))
    rows, fits = [], True
    for need in told:
        workers = largest.cpus // (threads if need.stage == "mine" else 1) if need.worker else 0
        of_machine = need.machine(workers)
        fits &= need.shared <= largest.shared
        fits &= of_machine - RAY - need.shared <= largest.memory
        in_parts = need.stage == "knn" and config.search == "exact" and sizes.parts > 1
        stage = f"{need.stage} in {sizes.parts} parts" if in_parts else need.stage
        bytes_of = (need.job, need.shared, need.worker, of_machine, need.disk)
        time = "" if need.seconds is None else _duration(need.seconds / (cpus if workers else 1))
        rows.append((stage, *map(gigabytes, bytes_of), time))
    beside = f"{largest.cpus // threads} workers of {threads} threads"
    given = (gigabytes(largest.memory), gigabytes(largest.shared))
    enough = (
        f"{largest.cpus} CPUs run {beside} in mining. This machine's {given[0]} GB for processes "
        f"and {given[1]} GB for shared objects are {'enough' if fits else 'too little'}."
    )
    if not machines:
        enough = "No machine with CPUs is there yet: this is one with a single worker."
    columns = ("the job", "shared", "a worker", "a machine", "the storage", "about")
    return Table(
        head=(f"{what}, GB", *columns), rows=tuple(rows), numbers=6, note=f"{enough} {note}".strip()
    )


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"


def known(config: MiningConfig) -> MiningConfig:
    """Return the settings with the largest numbers that may be chosen where none is given."""
    graph_k = config.graph_k or LARGEST_K
    positive_k, negative_k = config.positive_k or 2 * graph_k, config.negative_k or 10_000
    return replace(config, graph_k=graph_k, positive_k=positive_k, negative_k=negative_k)


def _remedy(stage: str, sizes: Sizes, config: MiningConfig) -> str:
    if config.search != "exact" and stage == "knn":
        return "choose --mining.search exact, which searches part by part"
    if sizes.parts == 1 and stage == "mine":
        return f"choose --mining.memory {sizes.share / 2 / GB:.2g}, a smaller --mining.graph-k"
    return "choose a smaller --mining.graph-k"


def _told(need: Needs) -> str:
    """Tell the needs of a stage in a phrase."""
    parts = [f"the job takes {gigabytes(need.job)} GB"]
    if need.shared:
        parts.append(f"shared objects {gigabytes(need.shared)} GB on each machine")
    if need.worker:
        parts.append(f"a worker {gigabytes(need.worker)} GB")
    return ", ".join([*parts, f"the storage {gigabytes(need.disk)} GB"])


def gigabytes(count: float) -> str:
    """Format bytes as GB, with two digits that count; "" for none."""
    size = count / GB
    return "" if not count else f"{size:,.0f}" if size >= 10 else f"{size:.2g}"
