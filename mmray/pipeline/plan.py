"""The stages of a job as users see them: which of how many, and what it does, in plain words."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

# By name; where a stage serves another of --stages than its own, "<that one>/<name>".
WORDS = {
    "demo": "render the demonstration photos",
    "list": "list the images",
    "regions": "learn the whitening of regions",
    "extract": "describe the images by the network",
    "near": "look for near-duplicates",
    "pca": "whiten the descriptors by PCA",
    "head": "find the first weights of the embedding layer",
    "knn": "find the nearest neighbours of every item",
    "sizes": "choose how many neighbours to compare",
    "graph": "link mutual neighbours to a graph",
    "mine": "mine positives and negatives along the graph",
    "oracle": "change the pools by labels",
    "check": "prepare the check without labels",
    "tuples": "take the training pairs of the file",
    "classes": "take the labels as classes",
    "cache": "decode the images to train on",
    "train": "fine-tune the network",
    "whiten/extract": "describe images to learn the whitening from",
    "whiten": "learn the whitening and save the model",
    "model": "save the model",
    "evaluate/extract": "describe the labelled images",
    "evaluate": "measure the networks on the labelled images",
    "index": "bring the search index up to date",
}


def step_of(name: str, flag: str | None = None) -> str:
    """Return the key in `WORDS` of a stage, by its name and the stage of --stages it serves."""
    return f"{flag}/{name}" if f"{flag}/{name}" in WORDS else name


class Plan:
    """The stages that a session will run or read, in order, and how far it is.

    Parameters
    ----------
    steps : keys of `WORDS`; one for each stage
    within : the part of a job that these stages are, such as a round; "": all of it
    """

    def __init__(self, steps: Sequence[str] = (), *, within: str = "") -> None:
        self.steps, self.within = tuple(steps), within
        self._reached, self._depth = -1, 0

    def reach(self, step: str, words: str | None = None) -> str:
        """Advance to a stage; return what it does and which of how many it is.

        A stage within another is a part of that and has no number, nor has one that is not planned.
        One that is run again keeps its number.

        >>> plan = Plan(["list", "extract"])
        >>> plan.reach("list")
        'stage 1 of 2: list the images'
        """
        words = words or WORDS.get(step, step)
        if self._depth:
            return f"  {words}"
        ahead = range(self._reached + 1, len(self.steps))
        before = range(self._reached, -1, -1)
        self._reached = next(
            (place for place in (*ahead, *before) if self.steps[place] == step), self._reached
        )
        known = self._reached >= 0 and self.steps[self._reached] == step
        number = f"stage {self._reached + 1} of {len(self.steps)}" if known else ""
        heading = ", ".join(part for part in (self.within, number) if part)
        return f"{heading}: {words}" if heading else words

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Count the stages that are run within the block as parts of the current one."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
