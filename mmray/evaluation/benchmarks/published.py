"""Published benchmarks, read from a user's folder in the layouts they are distributed in.

Nothing is downloaded: what is missing is named, with the place where it is published.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from mmray.config.choices import BenchmarkName
from mmray.evaluation.benchmarks.files import (
    FLICKR100K,
    R1M,
    Place,
    contents,
    find_ground_truth,
    folders,
)
from mmray.evaluation.benchmarks.ground_truth import MissingImageError, stem
from mmray.evaluation.benchmarks.labelled_set import LabelledSet, paired
from mmray.evaluation.benchmarks.layouts import read_holidays, read_instre
from mmray.evaluation.benchmarks.oxford import (
    Benchmark,
    read_oxford_ground_truth,
    read_pickle_ground_truth,
)
from mmray.images.collection import ImageFile
from mmray.images.sources import list_images
from mmray.system.errors import InputError

_Files: TypeAlias = dict[str, ImageFile]  # by name
_Reader: TypeAlias = Callable[[Sequence[str]], Benchmark]  # takes the names of the image files


@dataclass(frozen=True, kw_only=True)
class _Distractors:
    """Images that are no answer to any query: usual names of their folder, number, and origin."""

    folders: tuple[str, ...]
    images: int
    where: str


_FLICKR100K = _Distractors(
    folders=FLICKR100K,
    images=100_071,
    where="the 100k distractors are published as oxc1_100k.part01.rar to oxc1_100k.part40.rar at "
    "https://www.robots.ox.ac.uk/~vgg/data/oxbuildings/",
)
_R1M = _Distractors(
    folders=R1M,
    images=1_001_001,
    where="R1M is published as revisitop1m.1.tar.gz to revisitop1m.100.tar.gz at "
    "http://cmp.felk.cvut.cz/revisitop/",
)


@dataclass(frozen=True, kw_only=True)
class _Published:
    """The layout, size and origin of a published benchmark.

    Attributes
    ----------
    folders : usual names of its folder, in lower case
    ground_truths : names of its ground-truth files; empty where the names of images define it
    landmarks : beginnings of the names of its text files, where it has such files
    images, queries : numbers that were published
    where : where it is published, a sentence for the user
    corrupt : images, named without suffix, that are left out where text files are read
    distractors : those that belong to its database; None: there are none
    """

    folders: tuple[str, ...]
    ground_truths: tuple[str, ...] = ()
    landmarks: tuple[str, ...] = ()
    images: int
    queries: int
    where: str
    corrupt: frozenset[str] = frozenset()
    distractors: _Distractors | None = None


# https://www.robots.ox.ac.uk/~vgg/data/parisbuildings/corrupt.txt
_CORRUPT = """
louvre_000136 louvre_000146 moulinrouge_000422 museedorsay_001059 notredame_000188 pantheon_000284
pantheon_000960 pantheon_000974 pompidou_000195 pompidou_000196 pompidou_000201 pompidou_000467
pompidou_000640 sacrecoeur_000299 sacrecoeur_000330 sacrecoeur_000353 triomphe_000662
triomphe_000833 triomphe_000863 triomphe_000867
"""
_OXFORD_IMAGES = "oxbuild_images.tgz at https://www.robots.ox.ac.uk/~vgg/data/oxbuildings/"
_PARIS_IMAGES = (
    "paris_1.tgz and paris_2.tgz at https://www.robots.ox.ac.uk/~vgg/data/parisbuildings/"
)
_OXFORD = _Published(
    folders=("oxford5k", "oxford", "oxbuildings", "oxbuild_images"),
    ground_truths=("gnd_oxford5k.pkl",),
    landmarks=(
        *("all_souls_", "ashmolean_", "balliol_", "bodleian_", "christ_church_", "cornmarket_"),
        *("hertford_", "keble_", "magdalen_", "pitt_rivers_", "radcliffe_camera_"),
    ),
    images=5063,
    queries=55,
    where=f"Oxford5k is published as {_OXFORD_IMAGES}, with gt_files_170407.tgz beside it",
)
_PARIS = _Published(
    folders=("paris6k", "paris", "parisbuildings"),
    ground_truths=("gnd_paris6k.pkl",),
    landmarks=(
        *("defense_", "eiffel_", "invalides_", "louvre_", "moulinrouge_", "museedorsay_"),
        *("notredame_", "pantheon_", "pompidou_", "sacrecoeur_", "triomphe_"),
    ),
    images=6392,
    queries=55,
    where=f"Paris6k is published as {_PARIS_IMAGES}, with paris_120310.tgz beside them",
    corrupt=frozenset(f"paris_{name}" for name in _CORRUPT.split()),
)
_HOLIDAYS = _Published(
    folders=("holidays", "inria_holidays"),
    images=1491,
    queries=500,
    where="Holidays is published as jpg1.tar.gz and jpg2.tar.gz at "
    "http://lear.inrialpes.fr/~jegou/data.php",
)


def _revisited(title: str, folders: tuple[str, ...], *, images: int, archives: str) -> _Published:
    """Describe a benchmark of Radenović et al., CVPR 2018, which has the images of an older one."""
    name = title.lower()
    return _Published(
        folders=(name, *folders),
        ground_truths=(f"gnd_{name}.pkl",),
        images=images,
        queries=70,
        where=f"{title} is published as {archives}, "
        f"with gnd_{name}.pkl at http://cmp.felk.cvut.cz/revisitop/",
    )


_ROXFORD = _revisited("ROxford5k", _OXFORD.folders, images=4993, archives=_OXFORD_IMAGES)
_RPARIS = _revisited("RParis6k", _PARIS.folders, images=6322, archives=_PARIS_IMAGES)
_PUBLISHED: dict[BenchmarkName, _Published] = {
    "oxford5k": _OXFORD,
    "paris6k": _PARIS,
    "oxford105k": replace(_OXFORD, distractors=_FLICKR100K),
    "paris106k": replace(_PARIS, distractors=_FLICKR100K),
    "holidays": _HOLIDAYS,
    # Babenko et al., ECCV 2014: the photos that lie on their side, turned by hand.
    "holidays_upright": replace(
        _HOLIDAYS,
        folders=("holidays_upright", "holidays_rotated"),
        where=f"{_HOLIDAYS.where}; put a copy with all photos turned upright into holidays_upright",
    ),
    "instre": _Published(
        folders=("instre",),
        ground_truths=("gnd_instre.mat", "gnd_instre.pkl"),
        images=27_293,
        queries=1250,
        where="INSTRE is published as instre.tar.gz and gnd_instre.mat at "
        "ftp://ftp.irisa.fr/local/texmex/corpus/instre/",
    ),
    "roxford5k": _ROXFORD,
    "rparis6k": _RPARIS,
    "roxford5k_1m": replace(_ROXFORD, distractors=_R1M),
    "rparis6k_1m": replace(_RPARIS, distractors=_R1M),
}


def has_distractors(name: BenchmarkName) -> bool:
    """Tell whether distractors belong to the database of a benchmark."""
    return _PUBLISHED[name].distractors is not None


def find_benchmark(
    name: BenchmarkName, data: str, *, distractors: str | None = None
) -> LabelledSet:
    """Find a published benchmark and pair it with its images.

    Parameters
    ----------
    name : of the benchmark
    data : a local path or a URI (s3://, gs://)
        The benchmark's own folder is the one in `data` with a usual name, or else `data` itself.
        Images and ground truth may lie at any depth in it; images that the ground truth names and
        that are not there are looked for in all of `data`.
    distractors : folder of its distractors; None: the one in `data` with a usual name

    Returns
    -------
    LabelledSet : `complete` if the numbers of images and queries are the published ones

    Raises
    ------
    InputError
        A part is missing (the message says where it is published), damaged, or there twice.
    """
    published = _PUBLISHED[name]
    inside = folders(data)
    uris = [*(inside[folder] for folder in published.folders if folder in inside), data]
    places = [Place(uri=uri, below=data, own=i == 0) for i, uri in enumerate(uris)]
    wanted = published.distractors
    others = [] if wanted is None else _distractors(wanted, data, inside, distractors)
    try:
        benchmark, files = _read(published, places, {file.uri for file in others})
    except InputError as error:
        raise InputError(f"{error}; {published.where}") from error
    counts = (len(benchmark.images), len(benchmark.queries), len(others))
    expected = 0 if wanted is None else wanted.images
    return replace(
        paired(benchmark, files),
        name=name,
        distractors=others,
        complete=counts == (published.images, published.queries, expected),
    )


def _distractors(
    wanted: _Distractors, data: str, inside: dict[str, str], given: str | None
) -> list[ImageFile]:
    usual = [inside.get(name) for name in wanted.folders]
    for folder in [given] if given is not None else usual:
        if folder is not None:
            return list_images(folder)
    raise InputError(
        f"{data}: no folder of distractors in it ({', '.join(wanted.folders)}); name one by "
        f"--distractors; {wanted.where}"
    )


def _read(
    published: _Published, places: Sequence[Place], distractors: Collection[str]
) -> tuple[Benchmark, _Files]:
    """Read a benchmark, and list the files that hold its images; distractors are given by URI."""
    if not published.ground_truths:
        files = places[0].images
        return read_holidays(list(files), source=places[0].uri), files
    ground_truth, is_text = find_ground_truth(places, published.ground_truths, published.landmarks)
    uri = ground_truth[0].uri
    if is_text:
        # The database is all images of a folder, but never of one that holds several benchmarks.
        place = next((place for place in places[:-1] if place.images), places[0])
        files = {name: file for name, file in place.images.items() if file.uri not in distractors}
        benchmark = read_oxford_ground_truth(
            contents(ground_truth),
            list(files),
            source=uri.rpartition("/")[0],
            corrupt=published.corrupt,
        )
        return benchmark, files
    (content,) = contents(ground_truth).values()
    reader = read_instre if ground_truth[0].name.endswith(".mat") else read_pickle_ground_truth
    return _with_images(lambda images: reader(content, images, source=uri), places)


def _with_images(read: _Reader, places: Sequence[Place]) -> tuple[Benchmark, _Files]:
    """Read a ground truth, looking for its images in one place after the other."""
    files: _Files = {}
    missing: MissingImageError | None = None
    for place in places:
        # Only the missing ones: a file that exists in two places would fit a name twice.
        wanted = {stem(name) for name in missing.names} if missing and files else None
        files |= {
            name: file
            for name, file in place.images.items()
            if wanted is None or stem(name) in wanted
        }
        try:
            return read(list(files)), files
        except MissingImageError as error:
            missing = error
    assert missing is not None, "there is a place"
    raise missing
