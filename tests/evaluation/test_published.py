"""Each published benchmark is found in its official layout; what is missing or wrong is named."""

import io
import pickle
import shutil
from functools import cache
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from mmray.config.choices import BenchmarkName
from mmray.evaluation.benchmarks import published
from mmray.evaluation.benchmarks.labelled_set import labelled_set
from mmray.evaluation.benchmarks.published import find_benchmark
from mmray.system.errors import InputError
from mmray.system.locations import read_bytes
from tests.made.benchmark_samples import cells, structs

OXFORD = ["all_souls_000001", "all_souls_000002", "ashmolean_000007", "oxford_000003"]
PARIS = ["paris_defense_000001", "paris_defense_000002", "paris_eiffel_000005"]
CORRUPT = "paris_pantheon_000284"
BOX = (1.0, 2.0, 7.0, 8.0)
INSTRE = ["INSTRE-S1/01a_book/001.jpg", "INSTRE-S1/02a_can/001.jpg", "INSTRE-M/01/001.jpg"]
INSTRE_QUERIES = ["INSTRE-S1/01a_book/002.jpg", "INSTRE-S1/02a_can/002.jpg"]


@cache
def jpg():
    file = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file, "JPEG")
    return file.getvalue()


def put(file, data=None):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(jpg() if data is None else data)


def put_texts(folder, query, image, *, good, ok="", junk=""):
    put(folder / f"{query}_query.txt", f"{image} {' '.join(map(str, BOX))}\n".encode())
    for kind, names in (("good", good), ("ok", ok), ("junk", junk)):
        put(folder / f"{query}_{kind}.txt", "".join(f"{n}\n" for n in names.split()).encode())


def oxford_texts(folder):
    put_texts(
        *(folder, "all_souls_1", f"oxc1_{OXFORD[0]}"),
        good=f"{OXFORD[0]} {OXFORD[1]}",
        junk=OXFORD[3],
    )
    put_texts(folder, "ashmolean_1", f"oxc1_{OXFORD[2]}", good="", ok=OXFORD[2])


def paris_texts(folder):
    good = f"{PARIS[0]} {PARIS[1]} {CORRUPT}"
    put_texts(folder, "defense_1", PARIS[0], good=good, junk=PARIS[2])


def pickled(names, queries, gnd):
    return pickle.dumps({"imlist": names, "qimlist": queries, "gnd": gnd}, protocol=2)


def ok(*positives, junk=()):
    return {"bbx": list(BOX), "ok": list(positives), "junk": list(junk)}


def revisited(names):
    gnd = [{"bbx": list(BOX), "easy": [0], "hard": [1], "junk": []}]
    return pickled(names[:2], names[2:3], gnd)


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """All benchmarks, a folder each, as their archives leave them."""
    root = tmp_path_factory.mktemp("data")
    for name in OXFORD:
        put(root / "oxford5k" / "jpg" / f"{name}.jpg")
    oxford_texts(root / "oxford5k" / "gt_files_170407")
    put(root / "oxford5k" / "README.txt", b"not a part of it")
    for name in [*PARIS, CORRUPT]:
        put(root / "paris6k" / "paris" / name.split("_")[1] / f"{name}.jpg")
    paris_texts(root / "paris6k" / "paris_120310")
    for name in ("100000", "100001", "100002", "123400", "123401"):
        put(root / "Holidays" / "jpg" / f"{name}.jpg")
        put(root / "holidays_upright" / f"{name}.jpg")
    for name in [*INSTRE, *INSTRE_QUERIES]:
        put(root / "instre" / name)
        put((root / "instre" / name).with_suffix(".txt"), b"1 2 3 4")
    gnd = structs({"ok": np.array([[3.0, 1.0]]), "bbx": np.array([BOX])}, {"ok": 2.0, "bbx": BOX})
    content = {"imlist": cells(*INSTRE), "qimlist": cells(*INSTRE_QUERIES), "gnd": gnd}
    savemat(root / "instre" / "gnd_instre.mat", content, do_compression=True)
    put(root / "roxford5k" / "gnd_roxford5k.pkl", revisited(OXFORD))
    put(root / "rparis6k" / "gnd_rparis6k.pkl", revisited(PARIS))
    for i in range(3):
        put(root / "oxc1_100k" / f"tag{i}" / f"tag{i}_00000{i}.jpg")
    for i in range(4):
        put(root / "revisitop1m" / "jpg" / f"00{i}" / f"00{i}abc.jpg")
    return root


@pytest.fixture
def data(official, tmp_path):
    """The same, to be damaged."""
    return shutil.copytree(official, tmp_path / "data")


def stems(images):
    return [image.name.rpartition("/")[2].removesuffix(".jpg") for image in images]


def rules(queries):
    return [(q.positives.tolist(), q.junk.tolist(), q.itself) for q in queries]


def refusal(name, data, **options):
    with pytest.raises(InputError) as caught:
        find_benchmark(name, str(data), **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


# Sound ones

EXPECTED = {
    "oxford5k": (OXFORD, [OXFORD[0], OXFORD[2]], [([0, 1], [3], None), ([2], [], None)]),
    "paris6k": (PARIS, [PARIS[0]], [([0, 1], [2], None)]),
    "holidays": (
        ["100000", "100001", "100002", "123400", "123401"],
        ["100000", "123400"],
        [([1, 2], [0], 0), ([4], [3], 3)],
    ),
    "instre": (["001"] * 3, ["002"] * 2, [([0, 2], [], None), ([1], [], None)]),
    "roxford5k": (OXFORD[:2], [OXFORD[2]], [([0, 1], [], None)]),
    "rparis6k": (PARIS[:2], [PARIS[2]], [([0, 1], [], None)]),
}
EXPECTED["holidays_upright"] = EXPECTED["holidays"]
EXPECTED |= {"oxford105k": EXPECTED["oxford5k"], "paris106k": EXPECTED["paris6k"]}
EXPECTED |= {f"{name}_1m": EXPECTED[name] for name in ("roxford5k", "rparis6k")}
DISTRACTORS = {"oxford105k": 3, "paris106k": 3, "roxford5k_1m": 4, "rparis6k_1m": 4}


@pytest.mark.parametrize("name", get_args(BenchmarkName))
def test_each_benchmark_is_found_in_its_official_layout(official, name):
    found = find_benchmark(name, str(official))
    database, queries, truth = EXPECTED[name]
    assert found.name == name
    assert (stems(found.database), stems(found.queries)) == (database, queries)
    assert rules(found.ground_truth) == truth
    expected = None if name.startswith("holidays") else BOX
    assert {query.box for query in found.queries} == {expected}
    assert {image.box for image in found.database} == {None}
    assert len(found.distractors) == DISTRACTORS.get(name, 0)
    assert list(found.protocols) == (["Easy", "Medium", "Hard"] if name[0] == "r" else [])
    assert found.labels is None
    for image in [*found.database, *found.queries, *found.distractors]:
        assert Path(image.uri).read_bytes() == jpg()


def test_protocols_are_those_of_the_revisited_ground_truth(official):
    found = find_benchmark("rparis6k", str(official))
    assert {name: rules(queries) for name, queries in found.protocols.items()} == {
        "Easy": [([0], [1], None)],
        "Medium": [([0, 1], [], None)],
        "Hard": [([1], [0], None)],
    }
    assert found.ground_truth == found.protocols["Medium"]


def test_the_paths_of_instre_tell_images_of_the_same_name_apart(official):
    found = find_benchmark("instre", str(official))
    assert [image.name for image in found.database] == [f"instre/{name}" for name in INSTRE]
    assert [image.name for image in found.queries] == [f"instre/{n}" for n in INSTRE_QUERIES]


@pytest.mark.parametrize("name", ["oxford5k", "holidays", "instre"])
def test_the_folder_of_a_benchmark_may_be_given_itself_or_as_a_uri(official, name):
    folder = next(path for path in official.iterdir() if path.name.lower() == name)
    for where in (str(folder), f"{folder}/", official.as_uri(), folder.as_uri()):
        found = find_benchmark(name, where)
        assert (stems(found.database), rules(found.ground_truth)) == (
            EXPECTED[name][0],
            EXPECTED[name][2],
        )


@pytest.mark.parametrize("options", ["", "?region=x"])
@pytest.mark.parametrize("name", get_args(BenchmarkName))
def test_benchmarks_are_found_in_a_bucket(official, bucket, name, options):
    shutil.copytree(official, bucket / "my data")
    found = find_benchmark(name, f"s3://bucket/my%20data{options}")
    assert (stems(found.database), rules(found.ground_truth)) == (
        EXPECTED[name][0],
        EXPECTED[name][2],
    )
    for image in [*found.database, *found.queries, *found.distractors]:
        assert image.uri.startswith("s3://bucket/my%20data/")
        assert read_bytes(image.uri) == jpg()


def test_a_pickle_takes_the_place_of_text_files_or_of_a_mat_file(data):
    shutil.rmtree(data / "oxford5k" / "gt_files_170407")
    put(data / "oxford5k" / "gnd_oxford5k.pkl", pickled(OXFORD[:3], [OXFORD[0]], [ok(1)]))
    assert stems(find_benchmark("oxford5k", str(data)).database) == OXFORD[:3]
    (data / "instre" / "gnd_instre.mat").unlink()
    put(data / "instre" / "gnd_instre.pkl", pickled(INSTRE, INSTRE_QUERIES[:1], [ok(2)]))
    assert rules(find_benchmark("instre", str(data)).ground_truth) == [([2], [], None)]


@pytest.mark.parametrize("folder", ["Oxford", "oxbuildings", "oxbuild_images"])
def test_other_usual_names_of_folders_are_known(data, folder):
    (data / "oxford5k").rename(data / folder)
    for name in ("oxford5k", "roxford5k"):
        assert stems(find_benchmark(name, str(data)).database) == EXPECTED[name][0]


def test_texts_beside_the_folder_of_images_are_told_apart_by_their_landmarks(data):
    (data / "oxford5k" / "gt_files_170407").rename(data / "gt_files_170407")
    (data / "paris6k" / "paris_120310").rename(data / "paris_120310")
    for name in ("oxford5k", "paris6k"):
        found = find_benchmark(name, str(data))
        assert (stems(found.database), rules(found.ground_truth)) == (
            EXPECTED[name][0],
            EXPECTED[name][2],
        )


def test_text_files_in_the_own_folder_may_have_other_names(data):
    for file in (data / "oxford5k" / "gt_files_170407").iterdir():
        file.rename(file.with_name(f"x_{file.name}"))
    found = find_benchmark("oxford5k", str(data))
    assert [query.name for query in found.ground_truth] == ["x_all_souls_1", "x_ashmolean_1"]
    (data / "oxford5k" / "gt_files_170407").rename(data / "gt_files_170407")
    assert "no ground truth" in refusal("oxford5k", data)


def test_the_database_of_text_files_is_never_that_of_several_benchmarks(data):
    (data / "oxford5k" / "jpg").rename(data / "somewhere")
    assert "4 of 4 names fit none of the 0 images" in refusal("oxford5k", data)
    (data / "somewhere").rename(data / "oxbuild_images")
    assert stems(find_benchmark("oxford5k", str(data)).database) == OXFORD


def test_a_pickle_and_images_elsewhere_in_the_data_are_found(data):
    (data / "roxford5k" / "gnd_roxford5k.pkl").rename(data / "gnd_roxford5k.pkl")
    (data / "oxford5k").rename(data / "somewhere")
    put(
        data / "roxford5k" / "jpg" / f"{OXFORD[0]}.jpg"
    )  # there twice, which its own folder decides
    found = find_benchmark("roxford5k", str(data))
    assert [image.name for image in (*found.database, *found.queries)] == [
        f"roxford5k/jpg/{OXFORD[0]}.jpg",
        f"somewhere/jpg/{OXFORD[1]}.jpg",
        f"somewhere/jpg/{OXFORD[2]}.jpg",
    ]


def test_distractors_that_lie_beside_are_no_part_of_the_database(data):
    """A folder of one benchmark alone, that has the distractors in it."""
    (data / "oxc1_100k").rename(data / "oxford5k" / "oxc1_100k")
    shutil.copytree(data / "oxford5k" / "oxc1_100k", data / "oxford5k" / "more")
    folder = data / "oxford5k"
    found = find_benchmark("oxford105k", str(folder), distractors=str(folder / "more"))
    assert (stems(found.database), len(found.distractors)) == (OXFORD, 3)
    assert all("/more/" in image.uri for image in found.distractors)
    shutil.rmtree(folder / "more")
    assert stems(find_benchmark("oxford5k", str(folder)).database) == OXFORD


@pytest.mark.parametrize("name", get_args(BenchmarkName))
def test_a_set_is_complete_when_it_has_the_published_numbers(official, monkeypatch, name):
    assert not find_benchmark(name, str(official)).complete
    database, queries, _ = EXPECTED[name]
    known = published._PUBLISHED[name]
    assert (known.images, known.queries) != (len(database), len(queries))
    counts = {"images": len(database), "queries": len(queries)}
    others = known.distractors
    if others is not None:
        counts["distractors"] = published.replace(others, images=DISTRACTORS[name])
    exact = published.replace(known, **counts)
    monkeypatch.setitem(published._PUBLISHED, name, exact)
    assert find_benchmark(name, str(official)).complete
    for field in ("images", "queries"):
        changed = published.replace(exact, **{field: 99})
        monkeypatch.setitem(published._PUBLISHED, name, changed)
        assert not find_benchmark(name, str(official)).complete
    if others is not None:
        fewer = published.replace(exact, distractors=others)
        monkeypatch.setitem(published._PUBLISHED, name, fewer)
        assert not find_benchmark(name, str(official)).complete


def test_the_published_numbers_are_those_of_the_papers():
    numbers = {name: (p.images, p.queries) for name, p in published._PUBLISHED.items()}
    assert numbers == {
        "oxford5k": (5063, 55),
        "oxford105k": (5063, 55),
        "paris6k": (6392, 55),
        "paris106k": (6392, 55),
        "holidays": (1491, 500),
        "holidays_upright": (1491, 500),
        "instre": (27293, 1250),
        "roxford5k": (4993, 70),
        "rparis6k": (6322, 70),
        "roxford5k_1m": (4993, 70),
        "rparis6k_1m": (6322, 70),
    }
    beside = {p.distractors.images for p in published._PUBLISHED.values() if p.distractors}
    assert beside == {100_071, 1_001_001}
    assert len(published._PUBLISHED["paris6k"].corrupt) == 20
    assert set(published._PUBLISHED) == set(get_args(BenchmarkName))


# What is missing

WHERE = {
    "oxford5k": "oxbuild_images.tgz at https://www.robots.ox.ac.uk/~vgg/data/oxbuildings/",
    "paris6k": "paris_120310.tgz beside them",
    "holidays": "jpg1.tar.gz and jpg2.tar.gz at http://lear.inrialpes.fr/~jegou/data.php",
    "instre": "gnd_instre.mat at ftp://ftp.irisa.fr/local/texmex/corpus/instre/",
    "roxford5k": "gnd_roxford5k.pkl at http://cmp.felk.cvut.cz/revisitop/",
    "rparis6k": "gnd_rparis6k.pkl at http://cmp.felk.cvut.cz/revisitop/",
}
WHERE["holidays_upright"] = WHERE["holidays"]
WHERE |= {"oxford105k": WHERE["oxford5k"], "paris106k": WHERE["paris6k"]}
WHERE |= {f"{name}_1m": WHERE[name] for name in ("roxford5k", "rparis6k")}
MISSING = {
    "oxford5k": f"oxford5k/jpg/{OXFORD[1]}.jpg",
    "paris6k": f"paris6k/paris/defense/{PARIS[1]}.jpg",
    "holidays": "Holidays/jpg/123400.jpg",
    "holidays_upright": "holidays_upright/123400.jpg",
    "instre": f"instre/{INSTRE[1]}",
    "roxford5k": f"oxford5k/jpg/{OXFORD[2]}.jpg",
    "rparis6k": f"paris6k/paris/defense/{PARIS[0]}.jpg",
}
SAID = {
    "oxford5k": "1 of 4 names fit none of the 3 images: 'all_souls_000002' (all_souls_1_good.tx",
    "paris6k": "1 of 3 names fit none of the 2 images: 'paris_defense_000002' (defense_1_good.tx",
    "holidays": "1 groups have no query, whose number ends in 00: those of Holidays/jpg/123401.jpg",
    "holidays_upright": "whose number ends in 00: those of holidays_upright/123401.jpg",
    "instre": f"1 of 5 names fit none of the 4 images: '{INSTRE[1]}' (imlist[2])",
    "roxford5k": "1 of 3 names fit none of the 3 images: 'ashmolean_000007' (qimlist[0])",
    "rparis6k": "1 of 3 names fit none of the 3 images: 'paris_defense_000001' (imlist[0])",
}


@pytest.mark.parametrize("name", list(MISSING))
def test_a_missing_image_is_named_with_the_place_it_is_published_at(data, name):
    (data / MISSING[name]).unlink()
    text = refusal(name, data)
    assert SAID[name] in text
    assert WHERE[name] in text


@pytest.mark.parametrize("name", get_args(BenchmarkName))
def test_of_data_without_the_benchmark_it_is_said_where_it_is_published(tmp_path, name):
    for folder in ("oxc1_100k", "revisitop1m"):
        (tmp_path / folder).mkdir()
        put(tmp_path / folder / "x.jpg")
    text = refusal(name, tmp_path)
    assert text.startswith(f"{tmp_path}: no ")
    assert WHERE[name] in text


def test_a_ground_truth_that_is_missing_is_named(data):
    shutil.rmtree(data / "oxford5k" / "gt_files_170407")
    expected = "oxford5k: no ground truth, gnd_oxford5k.pkl or a folder of *_query.txt files, in"
    assert expected in refusal("oxford5k", data)
    (data / "rparis6k" / "gnd_rparis6k.pkl").unlink()
    assert "rparis6k: no ground truth, gnd_rparis6k.pkl, in this" in refusal("rparis6k", data)
    (data / "oxford5k" / "gt" / "x").mkdir(parents=True)
    put(data / "oxford5k" / "gt" / "lone_ok.txt", b"")
    assert "no ground truth" in refusal("oxford5k", data)


def test_distractors_that_are_missing_are_asked_for(data, tmp_path):
    shutil.rmtree(data / "oxc1_100k")
    text = refusal("paris106k", data)
    assert "no folder of distractors in it (oxc1_100k, flickr100k, oxford100k, distractors)" in text
    assert "--distractors" in text
    assert "oxc1_100k.part01.rar to" in text
    assert "no such file or folder" in refusal("oxford105k", data, distractors=f"{tmp_path}/none")


@pytest.mark.parametrize("name", ["oxford5k", "holidays"])
def test_data_that_are_not_there_are_refused(tmp_path, name):
    assert "none: cannot be listed (FileNotFoundError" in refusal(name, tmp_path / "none")
    put(tmp_path / "file")
    assert "name the folder that holds the benchmarks" in refusal(name, tmp_path / "file")
    assert "cannot be listed" in refusal(name, "ftp9://host/data")


# What is wrong


def test_two_ground_truths_are_not_chosen_from(data):
    put(data / "oxford5k" / "gnd_oxford5k.pkl", pickled(OXFORD, OXFORD[:1], [ok(1)]))
    text = refusal("oxford5k", data)
    assert f"two ground truths, {data}/oxford5k/gnd_oxford5k.pkl and {data}/oxford5k/gt_" in text
    shutil.copytree(data / "paris6k" / "paris_120310", data / "paris6k" / "copy")
    assert "paris6k/copy and " in refusal("paris6k", data)


def test_a_line_that_names_no_image_is_named(data):
    put(data / "oxford5k" / "gt_files_170407" / "ashmolean_1_ok.txt", b"ashmolean_000007\nnone\n")
    assert "'none' (ashmolean_1_ok.txt:2)" in refusal("oxford5k", data)
    put(data / "paris6k" / "paris_120310" / "defense_1_query.txt", b"paris_x 1 2 3 4")
    assert "'paris_x' (defense_1_query.txt:1)" in refusal("paris6k", data)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickled([], [OXFORD[0]], [ok()]), "imlist: expected a list that is not empty"),
        (pickled(OXFORD, [], []), "qimlist: expected a list that is not empty"),
        (pickled(OXFORD, OXFORD[:1], [ok(9)]), "gnd[0] (all_souls_000001): ok holds 9"),
        (pickle.dumps([1]), "not a ground truth: expected a dict"),
        (b"", "not a pickle"),
    ],
)
def test_a_damaged_pickle_is_named(data, content, message):
    shutil.rmtree(data / "oxford5k" / "gt_files_170407")
    put(data / "oxford5k" / "gnd_oxford5k.pkl", content)
    text = refusal("oxford5k", data)
    assert text.startswith(f"{data}/oxford5k/gnd_oxford5k.pkl: {message}")


class Calls:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_pickle_that_would_run_something_is_refused(data, tmp_path):
    content = pickle.dumps({"imlist": Calls(str(tmp_path / "witness"))})
    put(data / "roxford5k" / "gnd_roxford5k.pkl", content)
    assert "refused: it asks for" in refusal("roxford5k", data)
    assert not (tmp_path / "witness").exists()


@pytest.mark.parametrize("cut", [0, 100, 200, -5])
def test_a_damaged_mat_file_is_named(data, cut):
    file = data / "instre" / "gnd_instre.mat"
    file.write_bytes(file.read_bytes()[:cut])
    assert f"{file}: " in refusal("instre", data)


def test_images_of_another_benchmark_among_holidays_are_named(data):
    put(data / "Holidays" / "jpg" / "photo.jpg")
    text = refusal("holidays", data)
    assert "1 of 6 images are not named by six digits: Holidays/jpg/photo.jpg" in text


def test_a_file_out_of_reach_is_named(data):
    (data / "oxford5k" / "jpg" / "z.jpg").symlink_to("nowhere.jpg")
    assert "jpg/z.jpg: FileNotFoundError" in refusal("oxford5k", data)
    # Elsewhere in the data it matters to no other benchmark.
    assert find_benchmark("holidays", str(data)).name == "holidays"
    assert find_benchmark("roxford5k", str(data)).name == "roxford5k"


# A set of one's own


def test_a_set_of_ones_own_is_paired_with_its_ground_truth(data):
    file = data / "roxford5k" / "gnd_roxford5k.pkl"
    found = labelled_set(str(data / "oxford5k"), str(file))
    assert (found.name, stems(found.database), found.complete) == ("roxford5k", OXFORD[:2], True)
    assert list(found.protocols) == ["Easy", "Medium", "Hard"]
    assert [query.box for query in found.queries] == [BOX]


def test_without_a_ground_truth_the_folders_are_the_classes(data):
    found = labelled_set(str(data / "paris6k" / "paris"), None)
    assert found.name == "paris"
    assert found.labels == ("defense", "defense", "eiffel", "pantheon")
    assert rules(found.ground_truth) == [
        *(([1], [0], 0), ([0], [1], 1), ([], [2], 2), ([], [3], 3))
    ]
    assert found.items == list(found.database)
    with pytest.raises(InputError, match=r"5 of 5 images are in no class: 100000\.jpg, 10"):
        labelled_set(str(data / "Holidays" / "jpg"), None)
