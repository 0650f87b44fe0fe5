"""Images and files that took no part in a run: for the page, and in a sentence."""

from collections import Counter
from collections.abc import Sequence

from mmray.images.left_out import counted
from mmray.mining.graph_statistics import counted as number_of
from mmray.pipeline.reports.run_page import Fact, LeftOut, Unreadable
from mmray.pipeline.stage import StageFolder
from mmray.pipeline.stages.listing import LEFT_OUT
from mmray.pipeline.stages.near_duplicates import NearDuplicates

_LISTED, _TOLD = 20, 4  # kinds of files at most, in the table and in the sentence


def left_out_of(
    stages: Sequence[StageFolder],
    extracted: StageFolder | None = None,
    near: NearDuplicates | None = None,
) -> LeftOut:
    """Collect what took no part in a run.

    Parameters
    ----------
    stages : all of the run, of which those that listed the images tell what else they found
    extracted : the stage that described the images to learn from
    near : the near-duplicates among them
    """
    counts = list[Fact]()
    unreadable: tuple[Unreadable, ...] = ()
    if extracted is not None:
        unreadable = unreadable_of(extracted)
        for name, key, why in (
            ("images that could not be read", "quarantined", "listed below"),
            ("exact duplicates", "duplicates", "the first of equal files stays"),
        ):
            if number := extracted.counts.get(key):
                counts.append(Fact(name=name, value=f"{number:,}", note=why))
    if near is not None and near.left_out and (number := near.stage.counts["near_duplicates"]):
        why = "as --near-duplicates one asks"
        counts.append(Fact(name="near-duplicates", value=f"{number:,}", note=why))
    ordered = _beside(stages).most_common()
    counts += [
        Fact(name=kind, value=f"{number:,}", note="not an image, by its name")
        for kind, number in ordered[:_LISTED]
    ]
    if rest := ordered[_LISTED:]:
        number = sum(count for _, count in rest)
        counts.append(Fact(name=f"{len(rest):,} other kinds", value=f"{number:,}"))
    return LeftOut(counts=tuple(counts), unreadable=unreadable)


def left_out_told(
    stages: Sequence[StageFolder],
    extracted: StageFolder | None = None,
    near: NearDuplicates | None = None,
) -> str:
    """Tell in a sentence what took no part in a run; see `left_out_of`."""
    told = list[str]()
    if extracted is not None:
        counts = extracted.counts
        if number := counts.get("quarantined"):
            first = unreadable_of(extracted)[0].name.rpartition("/")[2]
            named = f" ({first})" if number == 1 else f" (the first: {first})"
            told.append(f"{number_of(number, 'image')} that could not be read{named}")
        if number := counts.get("duplicates"):
            told.append(number_of(number, "exact duplicate"))
    if near is not None and (number := near.stage.counts["near_duplicates"]):
        found = number_of(number, "near-duplicate")
        told.append(found if near.left_out else f"no near-duplicates ({number:,} were kept)")
    if beside := _beside(stages):
        are = "is" if beside.total() == 1 else "are"
        files = f"{number_of(beside.total(), 'file')} that {are}"
        told.append(f"{files} no image ({counted(beside, most=_TOLD)})")
    return "; ".join(told)


def unreadable_of(extracted: StageFolder) -> tuple[Unreadable, ...]:
    """Read the images that an extraction stage could not read."""
    bad = extracted.folder.read_table("quarantine.parquet").to_pylist()
    return tuple(Unreadable(name=row["uri"], reason=row["error"]) for row in bad)


def _beside(stages: Sequence[StageFolder]) -> Counter[str]:
    """Count what was found beside the images that were listed; earlier versions kept no record."""
    found = Counter[str]()
    for stage in {stage.fingerprint: stage for stage in stages if stage.name == "list"}.values():
        found.update(stage.counts.get(LEFT_OUT) or {})
    return Counter(dict(sorted(found.items(), key=lambda item: (-item[1], item[0]))))
