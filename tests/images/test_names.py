"""A name in a file of a user means one image, and how many do is counted."""

import pytest

from mmray.images.names import fit, forms, joined
from mmray.system.errors import InputError

NFC, NFD = "caf\u00e9", "cafe\u0301"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b.tar.jpg", (("a/b.tar.jpg",), ("b.tar.jpg",), ("b.tar",))),
        (f"./{NFD}/ x.png ", ((f"{NFC}/ x.png",), ("x.png",), ("x",))),
        (
            "s3://b/c%20d.jpg?region=x",
            (
                ("s3://b/c%20d.jpg?region=x", "s3://b/c d.jpg"),
                ("c%20d.jpg?region=x", "c d.jpg"),
                ("c%20d", "c d"),
            ),
        ),
        ("100%25.jpg", (("100%25.jpg",), ("100%25.jpg",), ("100%25",))),
    ],
)
def test_an_image_is_named_by_path_file_name_or_stem(name, expected):
    assert forms(name) == expected


def test_the_most_exact_name_counts():
    named = {"a/x.jpg": "path", "x.jpg": "file", "y": "stem", "none": "nothing"}
    names = ["a/x.jpg", "x.jpg", "b/x.jpg", "c/y.png", "z.jpg"]
    # x.jpg is the label of that path, and not of b/x.jpg too.
    assert joined(named, names) == ["path", "file", "", "stem", ""]
    # Nor for the only one of them in a sample.
    assert joined(named, names[::3]) == ["path", "stem"]


def test_names_in_either_form_of_unicode_are_one():
    assert joined({NFC: "bar"}, [f"x/{NFD}.jpg"]) == ["bar"]


@pytest.mark.parametrize(
    ("named", "names", "words"),
    [
        (
            {"x.jpg": "1"},
            ["a/x.jpg", "b/x.jpg"],
            r"'x\.jpg' may be a/x\.jpg or b/x\.jpg; give their",
        ),
        ({"x": "1"}, ["x.jpg", "x.png"], r"'x' may be x\.jpg or x\.png; give"),
        ({f"{NFC}.jpg": "1"}, [f"{NFC}.jpg", f"{NFD}.jpg"], "may be"),
        ({"x.jpg": "1", "x": "2"}, ["x.jpg"], r"x\.jpg has the label '1' by .*, and '2' by 'x'"),
    ],
)
def test_a_name_of_two_images_and_an_image_of_two_labels_are_refused(named, names, words):
    with pytest.raises(InputError, match=words):
        joined(named, names)


def test_an_image_that_is_listed_twice_has_one_label():
    named, names = {"x.jpg": "1"}, ["x.jpg", "photos/x.jpg"]
    assert joined(named, names) == ["1", ""]
    assert joined(named, names, ["/photos/x.jpg"] * 2) == ["1", "1"]
    with pytest.raises(
        InputError, match=r"may be /a/x\.jpg or /b/x\.jpg; name the folder of both .* within an"
    ):
        joined(named, ["x.jpg"] * 2, ["/a/x.jpg", "/b/x.jpg"])
    assert joined({"x.jpg": "1", "x": "1"}, ["x.jpg"]) == ["1"]


def test_the_names_that_fit_are_counted():
    given = {f"{i}.jpg" for i in range(1200)}
    fitting = {name for name in given if name != "7.jpg"}
    assert fit("--x f", given, given, ["0.jpg"]) == "1,200 of the 1,200 names of --x f fit an image"
    said = fit("--x f", given, fitting, ["0.jpg"])
    assert said == "1,199 of the 1,200 names of --x f fit an image; '7.jpg' fits none"
    with pytest.raises(
        InputError,
        match=r"--x f: none of the 1,200 names, such as 0\.jpg, is that "
        r"of an image, such as a/b\.png: give paths",
    ):
        fit("--x f", given, frozenset(), ["a/b.png"])
    with pytest.raises(InputError, match=r"^--x f: there is no name in it; give one in each line$"):
        fit("--x f", {}, frozenset(), ["a/b.png"])
