"""Images in classes are read from folders per class and from the files of CUB-200-2011."""

from pathlib import Path

import pytest

from mmray.evaluation.benchmarks.classes import class_set
from mmray.system.errors import InputError

IMAGES = """\
3 002.Laysan/c.jpg
1 001.Black footed/z 1.jpg
2 001.Black footed/a.jpg
10 010.Auk/x/d.jpg
"""
LABELS = "1 1\n2 1\n3 2\n10 10\n99 7\n"
NAMES = "10 010.Auk\n7 007.Ani\n1 001.Black footed\n2 002.Laysan\n"
CUB = Path(__file__).resolve().parents[3] / "shared" / "data" / "cub50" / "CUB_200_2011"


def put(file, content=b"an image"):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def folders(root, *names):
    for name in names:
        put(root / "birds" / name)
    return str(root / "birds")


@pytest.fixture
def cub(tmp_path):
    """Four images of three classes, laid out as CUB_200_2011."""
    root = tmp_path / "CUB_200_2011"
    for line in IMAGES.splitlines():
        put(root / "images" / line.split(maxsplit=1)[1])
    texts = {"images.txt": IMAGES, "image_class_labels.txt": LABELS, "classes.txt": NAMES}
    for file, text in texts.items():
        put(root / file, text.encode())
    return root


def names(found):
    return [image.name for image in found.images]


# A folder per class


def test_the_folder_of_an_image_is_its_class(tmp_path):
    images = ["b/x.jpg", "a/y.jpg", "a/sub/z.jpg", "a/x.jpg", "b/w.jpg", "b/y.jpg"]
    source = folders(tmp_path, *images, "images.txt", "classes.txt")
    found = class_set(source)
    assert found.source == source
    assert names(found) == ["a/sub/z.jpg", "a/x.jpg", "a/y.jpg", "b/w.jpg", "b/x.jpg", "b/y.jpg"]
    assert found.labels == ("a/sub", "a", "a", "b", "b", "b")
    assert found.classes == ("a", "a/sub", "b")
    assert found.images[1].uri == f"{source}/a/x.jpg"


def test_a_class_is_one_in_either_form_of_unicode(tmp_path):
    source = folders(tmp_path, "caf\u00e9/x.jpg", "cafe\u0301/y.jpg", "b/z.jpg")
    assert class_set(source).classes == ("b", "caf\u00e9")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            ["a/x.jpg", "a/y.jpg", "z.jpg"],
            "1 of 3 images are in no class: z.jpg; put each in a folder of its class",
        ),
        (
            ["a/x.jpg", "b/x.jpg"],
            "no two of 2 images are in the same folder, so that nothing could be found; put the "
            "images of a class in one folder",
        ),
        (["a/x.txt"], "no images in this folder (looked for .jpg .jpeg .png .webp .bmp .tif "),
    ],
)
def test_folders_that_are_no_classes_are_refused(tmp_path, images, message):
    source = folders(tmp_path, *images)
    with pytest.raises(InputError) as caught:
        class_set(source)
    assert str(caught.value).startswith(f"{source}: {message}")


# The files of CUB-200-2011


def test_the_files_of_cub_name_images_and_classes_in_their_order(cub):
    put(cub / "images" / "001.Black footed" / "extra.jpg")
    put(cub / "elsewhere.jpg")
    found = class_set(str(cub))
    assert names(found) == [
        *("images/002.Laysan/c.jpg", "images/001.Black footed/z 1.jpg"),
        *("images/001.Black footed/a.jpg", "images/010.Auk/x/d.jpg"),
    ]
    assert found.labels == ("002.Laysan", "001.Black footed", "001.Black footed", "010.Auk")
    # By number: as text, 10 comes before 2. No image is of class 7.
    assert found.classes == ("001.Black footed", "002.Laysan", "010.Auk")
    assert [Path(image.uri).exists() for image in found.images] == [True] * 4


def test_the_class_is_that_of_the_file_not_of_the_folder(cub):
    put(cub / "image_class_labels.txt", b"1 2\n2 10\n3 2\n10 2\n")
    found = class_set(str(cub))
    assert found.labels == ("002.Laysan", "002.Laysan", "010.Auk", "002.Laysan")
    assert found.classes == ("002.Laysan", "010.Auk")


def test_without_names_the_ids_are_the_classes(cub):
    (cub / "classes.txt").unlink()
    found = class_set(str(cub))
    assert (found.labels, found.classes) == (("2", "1", "1", "10"), ("1", "2", "10"))


@pytest.mark.parametrize("end", [b" \r\n\r\n", b"\r"])
def test_ends_of_lines_blank_lines_and_marks_of_other_systems_make_no_difference(cub, end):
    wanted = class_set(str(cub))
    for file in ("images.txt", "image_class_labels.txt", "classes.txt"):
        text = (cub / file).read_bytes().replace(b"\n", end).replace(b" ", b"\t", 1)
        put(cub / file, b"\xef\xbb\xbf" + text)
    found = class_set(f"{cub}/")
    assert (names(found), found.labels) == (names(wanted), wanted.labels)
    assert found.classes == wanted.classes


def test_a_uri_is_read_as_the_path_is(cub):
    found = class_set(cub.as_uri())
    assert (names(found), found.labels) == (names(class_set(str(cub))), class_set(str(cub)).labels)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("images.txt", None, "there is no such file, though image_class_labels.txt needs it; give"),
        ("images.txt", "\n", "names no image; add a line 'image id path' for each"),
        ("images.txt", "1 a.jpg\n\n2\n", ":3: '2': expected 'image id path'; mend the line"),
        ("images.txt", "x a.jpg", ":1: 'x a.jpg': expected 'image id path'; mend the line"),
        ("images.txt", f"{'9' * 5000} a.jpg", f":1: '{'9' * 79}: expected 'image id path'"),
        ("images.txt", f"1 a.jpg\n{IMAGES}", ":3: image id 1 is in line 1 too; keep one of them"),
        (
            "images.txt",
            IMAGES.replace("a.jpg", "z 1.jpg"),
            ":3: 001.Black footed/z 1.jpg is in line 2 too; keep one of them",
        ),
        (
            "images.txt",
            IMAGES.replace("a.jpg", "b.jpg").replace("Auk/", "auk/"),
            "2 of 4 images are not in the folder images beside it: 001.Black footed/b.jpg "
            "(line 3), 010.auk/x/d.jpg (line 4); add them, or remove their lines",
        ),
        ("images.txt", b"1 a.jpg\n2 \xff.jpg\n", "line 2 is not UTF-8; save the file as UTF-8"),
        ("images.txt", Path, "cannot be read (IsADirectoryError: Is a directory); make it read"),
        (
            "image_class_labels.txt",
            "1 1\n3 2\n10 10\n",
            "1 of the 4 images of images.txt have no class: 2 (001.Black footed/a.jpg); add a line",
        ),
        ("image_class_labels.txt", "1 one\n", ":1: '1 one': expected 'image id class id'; mend"),
        ("image_class_labels.txt", "1 1 1\n", ":1: '1 1 1': expected 'image id class id'; mend"),
        ("image_class_labels.txt", f"{LABELS}3 2\n", ":6: image id 3 is in line 3 too; keep one"),
        (
            "image_class_labels.txt",
            "1 1\n2 7\n3 2\n10 10\n",
            "no two of 4 images are of the same class, so that nothing could be found; give those",
        ),
        ("image_class_labels.txt", b"1 1\xff", "line 1 is not UTF-8; save the file as UTF-8"),
        (
            "classes.txt",
            "1 a\n3 b\n",
            "2 of 3 classes have no name: 2, 10; add a line for each, or remove the file",
        ),
        ("classes.txt", "1\n", ":1: '1': expected 'class id name'; mend the line"),
        (
            "classes.txt",
            "10 b\n2 a\n1 b\n",
            ":1: class 10 is named b, as class 1 is; give each class its own name",
        ),
    ],
)
def test_damage_to_the_files_of_cub_is_named_by_its_place(cub, file, content, message):
    put(cub / "001.Black footed" / "b.jpg")  # where no image of images.txt is looked for
    (cub / file).unlink()
    if content is Path:
        (cub / file).mkdir()
    elif content is not None:
        put(cub / file, content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as caught:
        class_set(str(cub))
    colon = "" if message.startswith(":") else ": "
    assert str(caught.value).startswith(f"{cub}/{file}{colon}{message}")


@pytest.mark.skipif(not CUB.exists(), reason="photos of ../shared/data/cub50 are not here")
def test_the_first_fifty_classes_of_cub_are_what_their_folders_say():
    found, by_folder = class_set(str(CUB)), class_set(str(CUB / "images"))
    assert (len(found.images), len(found.classes)) == (2889, 50)
    assert found.classes == by_folder.classes
    label_of = dict(zip(names(by_folder), by_folder.labels, strict=True))
    assert found.labels == tuple(label_of[name.removeprefix("images/")] for name in names(found))
    assert [len(half.images) for half in found.halves()] == [1402, 1487]


# Parts


@pytest.fixture
def five(tmp_path):
    """Five classes of two images each."""
    return class_set(folders(tmp_path, *(f"c{i}/{name}.jpg" for i in range(5) for name in "ab")))


def test_some_classes_are_taken_with_their_images_in_their_order(five):
    some = five.of_classes(["c3", "c1", "c3"])
    assert some.classes == ("c1", "c3")
    assert names(some) == ["c1/a.jpg", "c1/b.jpg", "c3/a.jpg", "c3/b.jpg"]
    assert some.labels == ("c1", "c1", "c3", "c3")
    assert some.source == five.source
    assert five.of_classes(five.classes).images == five.images


def test_a_class_that_is_not_there_is_refused(five):
    with pytest.raises(InputError, match=r"birds: no class is named x, y; name some of c0, c1, c2"):
        five.of_classes(["c1", "y", "x"])


def test_the_first_half_of_the_classes_trains_and_the_rest_tests(five):
    train, test = five.halves()
    assert (train.classes, test.classes) == (("c0", "c1"), ("c2", "c3", "c4"))
    assert train.images + test.images == five.images
    assert train.labels + test.labels == five.labels
    assert [len(half.classes) for half in test.of_classes(["c2", "c4"]).halves()] == [1, 1]


def test_the_halves_of_cub_are_by_the_ids_of_the_classes(cub):
    train, test = class_set(str(cub)).halves()
    assert (train.classes, test.classes) == (("001.Black footed",), ("002.Laysan", "010.Auk"))
    assert names(test) == ["images/002.Laysan/c.jpg", "images/010.Auk/x/d.jpg"]


def test_one_class_has_no_halves(five):
    with pytest.raises(InputError, match=r"birds: images of 1 class, expected at least 2.*; add"):
        five.of_classes(["c2"]).halves()


def test_names_of_cub_in_either_form_of_unicode_are_one_and_may_hold_odd_characters(cub):
    put(cub / "images" / "cafe\u0301" / "a\u2028b.jpg")
    put(cub / "images" / "caf\u00e9s" / "c\u0085d.jpg")
    text = f"\ufeff{IMAGES}11 caf\u00e9/a\u2028b.jpg\n\n12 cafe\u0301s/c\u0085d.jpg".replace(
        "\n", "\r\n"
    )
    put(cub / "images.txt", text.encode())
    put(cub / "image_class_labels.txt", f"{LABELS}11 7\n12 7\n".encode("utf-16"))
    found = class_set(str(cub))
    assert found.images[-2].name == "images/cafe\u0301/a\u2028b.jpg"
    assert found.images[-1].name == "images/caf\u00e9s/c\u0085d.jpg"
    assert found.labels[-2:] == ("007.Ani", "007.Ani")
    put(cub / "images" / "caf\u00e9" / "a\u2028b.jpg")
    with pytest.raises(InputError, match="are one name; remove one of them"):
        class_set(str(cub))


def test_where_no_image_of_cub_is_there_one_that_is_is_named(cub):
    put(cub / "images.txt", IMAGES.replace(" 0", " photos/0").encode())
    with pytest.raises(
        InputError, match=r"4 of 4 images are not in .* \(it holds '001\.Black foot"
    ):
        class_set(str(cub))
