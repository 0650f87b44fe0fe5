"""Damage files of every kind that mmray reads, and see whether a reader crashes, hangs or leaks.

    python -m tests.fuzz --count 20000 --seed 0             # a table; exit status 1 for a fault
    python -m tests.fuzz --only weights --case 17 --seed 0  # one case, in this process

A reader may return something or raise the project's `InputError` (images: an `OSError` or an image
with an error). Each runs in a process of its own with a limit of memory and of seconds. A small
part runs as tests/test_fuzz.py. Not collected by pytest.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import pickle
import random
import resource
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch
from scipy.io import savemat
from sklearn.decomposition import PCA

from mmray.config.presets import DEMO
from mmray.config.settings_file import SettingsFile, settings_text
from mmray.descriptors import weights
from mmray.descriptors.files.reading import read_feature_set
from mmray.descriptors.published import read_published
from mmray.descriptors.settings import Preprocessing
from mmray.descriptors.variant import Variant
from mmray.descriptors.weight_files import fill, read_checkpoint
from mmray.descriptors.whitening import Whitening
from mmray.evaluation.benchmarks.classes import class_set
from mmray.evaluation.benchmarks.layouts import read_instre
from mmray.evaluation.benchmarks.oxford import read_oxford_ground_truth, read_pickle_ground_truth
from mmray.evaluation.purity import read_labels, read_named_labels
from mmray.images.collection import Collection, ImageFile
from mmray.images.containers import index as list_container
from mmray.images.containers import read_images
from mmray.images.decoding import decode
from mmray.images.lists import cells, lines
from mmray.mining.knn.faiss_library import faiss
from mmray.pipeline.named_indexes import current_index
from mmray.serving.catalog import Catalog
from mmray.serving.compressed_index import digest_of
from mmray.serving.search_index import SearchIndex, read_about
from mmray.system.errors import InputError
from mmray.system.folder import Folder
from mmray.training.supervised.sfm_tuples import read_sfm_tuples
from tests.made import sfm
from tests.made.bad_images import PICTURE, encoded
from tests.made.benchmark_samples import cells as mat_cells
from tests.made.benchmark_samples import structs
from tests.made.feature_samples import column, npy, save_mat73

ROOM = 4 << 30  # bytes of memory that reading may take
SECONDS = 5.0  # of one input
SLOW = 60.0  # of one that starts a process

Files = dict[str, bytes]  # content by name in a folder


@dataclass(frozen=True)
class Sample:
    """A whole folder, the file that is damaged, and what packs the damaged bytes, if anything."""

    files: Files
    target: str
    pack: Callable[[bytes], bytes] = bytes


@dataclass(frozen=True)
class Reader:
    """Makers of whole files, and what reads them from a folder."""

    samples: Callable[[], list[Sample]]
    read: Callable[[Path], object]
    allowed: tuple[type[Exception], ...] = (InputError,)
    share: float = 1.0  # of the inputs of other readers
    seconds: float = SECONDS


# -- samples --------------------------------------------------------------------------------------


def made(write: Callable[[Path], object], name: str = "file") -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / name)
        return (Path(folder) / name).read_bytes()


def rows(n: int = 12, d: int = 6) -> np.ndarray:
    found = np.random.default_rng(3).standard_normal((n, d)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def one(name: str, *contents: bytes) -> list[Sample]:
    return [Sample({name: content}, name) for content in contents]


def zipped(archive: bytes, member: str) -> tuple[bytes, Callable[[bytes], bytes]]:
    """A member of an archive, and what puts other bytes in its place."""
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        parts = {name: file.read(name) for name in file.namelist()}

    def pack(data: bytes) -> bytes:
        sink = io.BytesIO()
        with zipfile.ZipFile(sink, "w") as file:
            for name, content in (parts | {member: data}).items():
                file.writestr(name, content)
        return sink.getvalue()

    return parts[member], pack


def inside(name: str, archive: bytes, member: str) -> Sample:
    raw, pack = zipped(archive, member)
    return Sample({name: raw}, name, pack)


def features_npy() -> list[Sample]:
    variants = (rows(), rows().astype(np.float64), np.asfortranarray(rows()))
    return one("x.npy", *map(npy, variants), npy(rows(), version=(3, 0)))


def features_mat() -> list[Sample]:
    return one(
        "x.mat",
        *(
            made(partial(savemat, mdict={"a": [1], "V": rows().T}, do_compression=packed), "x.mat")
            for packed in (False, True)
        ),
    )


def features_mat73() -> list[Sample]:
    return one(
        "x.mat",
        made(lambda path: save_mat73(path, rows())),
        made(lambda path: save_mat73(path, rows(), chunks=(4, 3), compression=1)),
    )


def table(columns: dict[str, Any], **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, **options)
    return sink.getvalue()


def features_parquet() -> list[Sample]:
    ids = pa.array(range(12), pa.int64())
    return one(
        "x.parquet",
        table({"image_id": ids, "embedding": column(rows())}),
        table({"embedding": column(rows(), "list")}, compression="none", use_dictionary=False),
    )


def tiny() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))


def torch_saved(state: object, **options: Any) -> bytes:
    sink = io.BytesIO()
    torch.save(state, sink, **options)
    return sink.getvalue()


def weights_files() -> list[Sample]:
    state = tiny().state_dict()
    archive = torch_saved(state)
    old = torch_saved(state, _use_new_zipfile_serialization=False)
    return [
        *one("w.pth", archive, old),
        inside("w.pth", archive, "archive/data.pkl"),
        *one("w.safetensors", safetensors.torch.save(dict(state))),
    ]


def read_weights(folder: Path) -> object:
    (file,) = folder.iterdir()
    state = read_checkpoint(file).state
    fill(tiny().state_dict(), state, source=str(file), network="tiny")
    return None


def published_files() -> list[Sample]:
    told = {"architecture": "vgg16", "pooling": "gem", "whitening": True}
    told |= {"mean": [0.5] * 3, "std": [0.2] * 3}
    learned = {"m": np.zeros((2, 1)), "P": np.eye(2)}
    told |= {"Lw": {"retrieval-SfM-120k": {"ss": learned, "ms": learned}}}
    layer = {"whiten.weight": torch.ones(3, 4), "whiten.bias": torch.ones(3)}
    old = {"_use_new_zipfile_serialization": False}
    cirtorch = {"meta": told, "state_dict": {"pool.p": torch.ones(1) * 3, **layer}}
    pca = PCA(whiten=True).fit(rows(9, 3))
    dirtorch = {
        "model_options": {"arch": "resnet50_rmac", "without_fc": True},
        "state_dict": {"module.adpool.p": torch.ones(1) * 3},
        "pca": {"Landmarks_clean": pca},
    }
    return [
        *one("w.pth", torch_saved(cirtorch, **old), torch_saved(dirtorch, **old)),
        inside("w.pth", torch_saved(cirtorch), "archive/data.pkl"),
    ]


def read_published_file(folder: Path) -> object:
    (file,) = folder.iterdir()
    return read_published(read_checkpoint(file), file)


def whitening_bytes(d: int = 6) -> bytes:
    sink = io.BytesIO()
    Whitening(np.zeros(d, np.float32), np.eye(d, dtype=np.float32)).save(sink)
    return sink.getvalue()


def whitenings() -> list[Sample]:
    whole = whitening_bytes()
    packed = io.BytesIO()
    np.savez_compressed(packed, mean=np.zeros(6), projection=np.eye(6))
    return [*one("w.npz", whole, packed.getvalue()), inside("w.npz", whole, "mean.npy")]


def configs() -> list[Sample]:
    config = {"format_version": 3, "network": "vgg16", "pooling": "gem", "dim": 512, "head": True}
    config |= {
        "variant": Variant(p=2.9, mean=(1.0, 2.0, 3.0)).stored(),
        **Preprocessing(224).stored(),
    }
    return one("config.json", json.dumps(config, indent=2).encode())


def read_model(folder: Path) -> object:
    Preprocessing.read(Folder(str(folder)))
    return weights.load(Folder(str(folder)))


def index_files() -> Files:
    vectors, sink = rows(300, 4), io.BytesIO()
    files = [ImageFile(uri=f"/a/{i}.jpg", name=f"{i}.jpg", size=9) for i in range(300)]
    wanted = Catalog.empty().merged([("a", Collection.of(files))], retry=False)
    catalog, _ = wanted.with_descriptors(np.arange(300), [None] * 300)
    pq.write_table(catalog.table, sink)
    with contextlib.redirect_stderr(io.StringIO()):
        index = faiss.IndexIVFPQ(faiss.IndexFlatIP(4), 4, 4, 4, 8, faiss.METRIC_INNER_PRODUCT)
        index.train(vectors)
        index.add(vectors)
    stored = bytes(faiss.serialize_index(index))
    about = {
        "model": "0" * 12,
        **Preprocessing(96).stored(),
        "compressed_sha256": digest_of(stored),
    }
    return {
        "vectors.npy": npy(vectors),
        "images.parquet": sink.getvalue(),
        "ivf-pq.faiss": stored,
        "index.json": json.dumps(about).encode(),
    }


def flat_indexes() -> list[Sample]:
    files = index_files()
    del files["ivf-pq.faiss"]
    return [Sample(files, name) for name in files]


def compressed_indexes() -> list[Sample]:
    files = index_files()
    return [Sample(files, name) for name in files]


def old_indexes() -> list[Sample]:
    files = index_files()
    about = json.loads(files["index.json"])
    del about["compressed_sha256"]
    return [Sample(files | {"index.json": json.dumps(about).encode()}, "ivf-pq.faiss")]


def read_index(folder: Path) -> object:
    index = SearchIndex.read(Folder(str(folder)))
    assert "longest_side" in read_about(Folder(str(folder))).values
    dims = index.vectors.shape[1]
    return index.nearest(np.full((2, dims), max(dims, 1) ** -0.5, np.float32), 5, probes=2)


NAMES = ["all_souls_1.jpg", "all_souls_2.jpg", "all_souls_3.jpg"]


def truths() -> list[Sample]:
    stems = [name.removesuffix(".jpg") for name in NAMES]
    gnd = [{"bbx": [1.0, 2.0, 9.0, 9.0], "ok": [1, 2], "junk": []}]
    content = {"imlist": stems, "qimlist": stems[:1], "gnd": gnd}
    arrays = content | {"gnd": [{"bbx": np.arange(1, 5.0), "ok": np.array([1]), "junk": []}]}
    return one("gnd.pkl", pickle.dumps(content), pickle.dumps(arrays), pickle.dumps(content, 0))


def instre() -> list[Sample]:
    gnd = structs({"ok": np.array([[1.0, 2.0]]), "bbx": np.array([[1.0, 2, 3, 4]])})
    content = {"imlist": mat_cells(*NAMES), "qimlist": mat_cells(NAMES[0]), "gnd": gnd}
    return one(
        "g.mat",
        made(lambda path: savemat(path, content), "g.mat"),
        made(lambda path: savemat(path, content, do_compression=True), "g.mat"),
    )


def oxford_texts() -> list[Sample]:
    files = {
        "a_query.txt": b"oxc1_all_souls_1 1.5 2 30 40.25\n",
        "a_good.txt": b"all_souls_2\n",
        "a_ok.txt": b"all_souls_3\n",
        "a_junk.txt": b"",
    }
    return [Sample(files, name) for name in files]


def cub() -> list[Sample]:
    files = {
        "images.txt": b"1 001.A/a.jpg\n2 001.A/b.jpg\n",
        "image_class_labels.txt": b"1 1\n2 1\n",
        "classes.txt": b"1 001.A\n",
        "images/001.A/a.jpg": b"",
        "images/001.A/b.jpg": b"",
    }
    return [Sample(files, name) for name in list(files)[:3]]


def tuples_files() -> list[Sample]:
    content = {"train": sfm.part([0, 0, 1, 1], [(0, 1), (2, 3)]), "val": sfm.part([0, 1], [(0, 1)])}
    cids = content["train"]["cids"]
    images = {f"ims/{c[-2:]}/{c[-4:-2]}/{c[-6:-4]}/{c}": b"" for c in cids}
    return [Sample({"t.pkl": pickle.dumps(content, p), **images}, "t.pkl") for p in (2, 4)]


def image_files() -> list[Sample]:
    options: dict[str, dict[str, Any]] = {
        "PNG": {}, "WEBP": {}, "BMP": {}, "GIF": {}, "JPEG": {"progressive": True}, "TIFF": {},
    }  # fmt: skip
    found = [encoded(PICTURE, kind, **each) for kind, each in options.items()]
    return one(
        "x", *found, encoded(PICTURE, "JPEG"), encoded(PICTURE, "TIFF", compression="tiff_lzw")
    )


def tars() -> list[Sample]:
    found = []
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        sink = io.BytesIO()
        with tarfile.open(fileobj=sink, mode="w", format=form) as archive:
            for name in ("a.jpg", "b/" + "ü" * 60 + ".jpg", "c" * 120 + ".png"):
                member = tarfile.TarInfo(name)
                member.size = 700
                archive.addfile(member, io.BytesIO(bytes(700)))
            link = tarfile.TarInfo("l.jpg")
            link.type, link.linkname = tarfile.SYMTYPE, "a.jpg"
            archive.addfile(link)
        found.append(sink.getvalue())
    return one("x.tar", *found)


def image_tables() -> list[Sample]:
    image = encoded(PICTURE, "JPEG")
    cells_of = pa.array([{"bytes": image, "path": f"{i}.jpg"} for i in range(5)])
    plain = {"name": [f"{i}.jpg" for i in range(5)], "jpg": pa.array([image] * 5, pa.binary())}
    return one("x.parquet", table({"image": cells_of}), table(plain, compression="none"))


def read_container(folder: Path) -> object:
    (file,) = folder.iterdir()
    found, _ = list_container(str(file))
    images = [found[i] for i in range(min(len(found), 20))]
    return list(read_images(images, limit=1 << 20, threads=1))


def labels_npy() -> list[Sample]:
    texts = np.array(list("abcdefghi"))
    return one("l.npy", npy(np.arange(9)), npy(texts), npy(np.arange(9), version=(2, 0)))


def read_pickled(folder: Path) -> object:
    return read_pickle_ground_truth((folder / "gnd.pkl").read_bytes(), NAMES, source="gnd.pkl")


def read_mat(folder: Path) -> object:
    return read_instre((folder / "g.mat").read_bytes(), NAMES, source="g.mat")


def read_texts(folder: Path) -> object:
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return read_oxford_ground_truth(files, NAMES, source="gt")


def read_features(folder: Path) -> object:
    (file,) = folder.iterdir()
    return read_feature_set(str(file))


READERS = {
    "features .npy": Reader(features_npy, read_features),
    "features .mat, version 5": Reader(features_mat, read_features),
    "features .mat, version 7.3": Reader(features_mat73, read_features),
    "features .parquet": Reader(features_parquet, read_features),
    "labels .npy": Reader(labels_npy, lambda folder: read_labels(str(folder / "l.npy"), 9)),
    "labels, text": Reader(
        lambda: one("l.txt", b"a\nb\nc\n"), lambda folder: read_labels(str(folder / "l.txt"), 3)
    ),
    "labels .csv": Reader(
        lambda: one("l.csv", b'name,label\na,1\n"b ""c""",2\n'),
        lambda folder: read_named_labels(str(folder / "l.csv")),
    ),
    "weights": Reader(weights_files, read_weights),
    "published networks": Reader(published_files, read_published_file),
    "whitening.npz": Reader(whitenings, lambda folder: Whitening.load(folder / "w.npz")),
    "config.json": Reader(configs, read_model, share=0.5),
    "settings .yaml": Reader(
        lambda: one("run.yaml", settings_text(DEMO, run="a").encode()),
        lambda folder: SettingsFile.read(str(folder / "run.yaml")).applied(DEMO),
    ),
    "index, flat": Reader(flat_indexes, read_index),
    "index, compressed": Reader(compressed_indexes, read_index),
    "index of an earlier version": Reader(old_indexes, read_index, share=0.02, seconds=SLOW),
    "indexes/NAME.json": Reader(
        lambda: one("a.json", b'{"index": "0123456789ab"}'),
        lambda folder: current_index(Folder(str(folder.parent)), "a"),
    ),
    "ground truth .pkl": Reader(truths, read_pickled),
    "ground truth .mat": Reader(instre, read_mat),
    "ground truth, texts": Reader(oxford_texts, read_texts),
    "CUB-200-2011": Reader(cub, lambda folder: class_set(str(folder))),
    "tuples of retrieval-SfM": Reader(
        tuples_files, lambda folder: read_sfm_tuples(str(folder / "t.pkl"), str(folder / "ims"))
    ),
    "list of images, text": Reader(
        lambda: one("l.txt", b"a.jpg\nb/c.png\n"), lambda folder: lines(str(folder / "l.txt"))
    ),
    "list of images .parquet": Reader(
        lambda: one("l.parquet", table({"path": [f"{i}.jpg" for i in range(9)]})),
        lambda folder: cells(str(folder / "l.parquet"), None),
    ),
    "images in .tar": Reader(tars, read_container),
    "images in .parquet": Reader(image_tables, read_container),
    "image": Reader(
        image_files, lambda folder: decode((folder / "x").read_bytes(), longest_side=32)
    ),
}


# -- damage ---------------------------------------------------------------------------------------

_WORDS = (
    *(b"NaN", b"null", b"-1", b"1e999", b"9" * 5000, b"[" * 100_000, b'{"a":' * 5000, b"\xff\xfe"),
    *(b"\0", b"\n", b"{}", b"[]", b'"', b"\xed\xa0\x80", b"O8", b"<U999999999", b"(10**9, 10**9)"),
)
_INTEGERS = (0, 1, 2**31 - 1, 2**31, 2**32 - 1)


def _flip(data: bytearray, rng: random.Random, other: bytes) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _set(data: bytearray, rng: random.Random, other: bytes) -> None:
    data[rng.randrange(len(data))] = rng.choice((0, 0xFF, rng.randrange(256)))


def _cut(data: bytearray, rng: random.Random, other: bytes) -> None:
    del data[rng.randrange(len(data)) :]


def _insert(data: bytearray, rng: random.Random, other: bytes) -> None:
    place = rng.randrange(len(data) + 1)
    data[place:place] = rng.choice((rng.randbytes(rng.randrange(1, 9)), *_WORDS))


def _replace(data: bytearray, rng: random.Random, other: bytes) -> None:
    start, end = _piece(data, rng)
    data[start:end] = rng.choice(_WORDS)


def _repeat(data: bytearray, rng: random.Random, other: bytes) -> None:
    start, end = _piece(data, rng)
    data[end:end] = data[start:end] * rng.randrange(1, 4)


def _zeros(data: bytearray, rng: random.Random, other: bytes) -> None:
    start, end = _piece(data, rng)
    data[start:end] = bytes(end - start)


def _swap(data: bytearray, rng: random.Random, other: bytes) -> None:
    (a, b), (c, d) = sorted((_piece(data, rng), _piece(data, rng)))
    if b <= c:
        data[:] = data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def _splice(data: bytearray, rng: random.Random, other: bytes) -> None:
    data[rng.randrange(len(data)) :] = other[rng.randrange(len(other) + 1) :]


def _integer(data: bytearray, rng: random.Random, other: bytes) -> None:
    place = rng.randrange(max(1, len(data) - 3))
    if rng.random() < 0.5:
        place -= place % 4
    data[place : place + 4] = rng.choice(_INTEGERS).to_bytes(4, rng.choice(("little", "big")))


def _piece(data: bytearray, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(data))
    return start, min(len(data), start + rng.choice((1, 4, 16, 64, 512)))


DAMAGES = (_flip, _set, _cut, _insert, _replace, _repeat, _zeros, _swap, _splice, _integer)


def case_of(name: str, samples: list[Sample], number: int, seed: int) -> tuple[Files, str]:
    """The files of a case: a sample with one to three damages, the same for a seed."""
    rng = random.Random(f"{seed} {name} {number}")
    sample = rng.choice(samples)
    data = bytearray(sample.files[sample.target])
    other = rng.choice(samples)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if data:
            rng.choice(DAMAGES)(data, rng, other.files[other.target])
    return sample.files | {sample.target: sample.pack(bytes(data))}, sample.target


# -- running --------------------------------------------------------------------------------------


def outcome(reader: Reader, files: Files, folder: Path) -> str:
    """Read a case: "read", "refused", or the exception that should not be."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader.read(folder)
    except reader.allowed as error:
        # A sentence of a few lines of a terminal, not the content of the file.
        return "refused" if len(str(error)) < 4000 else f"{len(str(error))} letters of an error"
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)
        ours = [f for f in where if "/mmray/" in f.filename] or list(where)
        at = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
        return f"{type(error).__name__} at {at}: {str(error)[:120]!r}"
    return "read"


def run_case(name: str, number: int, seed: int, samples: list[Sample]) -> str:
    files, _ = case_of(name, samples, number, seed)
    with tempfile.TemporaryDirectory(prefix="mmray-fuzz-") as folder:
        inner = Path(folder) / "indexes"  # as below a storage
        inner.mkdir()
        return outcome(READERS[name], files, inner)


def _work(name: str, numbers: range, seed: int, pipe: Any) -> None:
    with open("/proc/self/statm") as file:  # noqa: PTH123
        most = int(file.read().split()[0]) * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    samples = READERS[name].samples()
    pipe.send("ready")
    for number in numbers:
        pipe.send(run_case(name, number, seed, samples))
    pipe.close()


def outcomes(name: str, count: int, seed: int) -> Iterator[tuple[int, str]]:
    """Yield the number of each case with its outcome, in processes that may crash or hang."""
    context, number = multiprocessing.get_context("fork"), 0
    while number < count:
        mine, theirs = context.Pipe(duplex=False)
        worker = context.Process(target=_work, args=(name, range(number, count), seed, theirs))
        worker.start()
        theirs.close()
        try:
            if not mine.poll(120) or mine.recv() != "ready":
                raise SystemExit(f"{name}: the samples cannot be made")
            while number < count:
                # Other work on the machine is no hang: only the process's own time counts.
                started, limit = _seconds(worker.pid), READERS[name].seconds
                waited = time.monotonic()
                while not mine.poll(1):
                    if _seconds(worker.pid) - started > limit or (
                        time.monotonic() - waited > 12 * limit
                    ):
                        break
                else:
                    yield number, mine.recv()
                    number += 1
                    continue
                worker.kill()
                yield number, "hung"
                number += 1
                break
        except EOFError:
            worker.join()
            yield number, f"crashed, status {worker.exitcode}"
            number += 1
        finally:
            worker.kill()
            worker.join()
            mine.close()


def _seconds(pid: int | None) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Fuzz all readers or one; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="readers whose name has this in it")
    parser.add_argument("--case", type=int, help="run one case in this process")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [name for name in READERS if options.only is None or options.only in name]
    if options.case is not None:
        for name in chosen:
            print(name, run_case(name, options.case, options.seed, READERS[name].samples()))
        return 0
    shares = sum(READERS[name].share for name in chosen)
    faults, total = [], Counter[str]()
    print("| reader | inputs | read | refused | crashed | hung | foreign exceptions |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name in chosen:
        count = -int(-options.count * READERS[name].share // shares)
        counts = Counter[str]()
        for number, result in outcomes(name, count, options.seed):
            kind = result if result in ("read", "refused", "hung") else "foreign"
            kind = "crashed" if result.startswith("crashed") else kind
            counts[kind] += 1
            if kind not in ("read", "refused"):
                faults.append(f"--only {name!r} --case {number}: {result}")
        total += counts
        _print(name, counts)
    _print("all", total)
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


def _print(name: str, counts: Counter[str]) -> None:
    kinds = ("read", "refused", "crashed", "hung", "foreign")
    cells_of = [counts.total(), *(counts[kind] for kind in kinds)]
    print(f"| {name} | " + " | ".join(f"{cell:,}" for cell in cells_of) + " |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
