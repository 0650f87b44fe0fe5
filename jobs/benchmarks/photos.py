"""The photos of a benchmark: those that are named, or some that are rendered."""

from collections.abc import Sequence

from mmray.images.collection import Collection, sample
from mmray.images.demo.demo_set import render_collection
from mmray.images.sources import find
from mmray.system.folder import Folder


def photos_of(images: Sequence[str], most: int, rendered: str) -> Collection:
    """Return at most so many of the photos that are named, or of some rendered into a folder."""
    if not images:
        render_collection(
            Folder(rendered).write, objects=12, photos=13, distractors=20, longest_side=512, seed=0
        )
    found = [find(source).images for source in images or (rendered,)]
    return sample(Collection.joined(found), most, seed=0)
