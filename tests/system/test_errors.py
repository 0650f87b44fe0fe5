"""Names of others do not reach a terminal as commands."""

import pytest

from mmray.system.errors import DamagedFileError, InputError, explained, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x07\x00", r"\x1b[2J\x07\x00"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x7f\x85\x9b31m", r"\x7f\x85\x9b31m"),
        ("a\u202egpj.exe\u2066\u2069\u200f", r"a\u202egpj.exe\u2066\u2069\u200f"),
        ("a\u2028b\u2029\ufeff", r"a\u2028b\u2029\ufeff"),
        ("a\udce9", r"a\udce9"),
    ],
)
def test_control_characters_are_made_visible(text, shown):
    assert printable(text) == shown


@pytest.mark.parametrize(
    "text", ["a b|c\\n", "Füße", "日本\u3000語", "שלום", "👨‍👩‍👧", "cafe\u0301", ""]
)
def test_letters_of_any_script_stay(text):
    assert printable(text) == text


def test_an_error_is_explained_unless_a_stage_mends_its_cause():
    remedied = explained("--pca 3", "choose None")
    with pytest.raises(InputError, match=r"^--pca 3: all are equal; choose None$"), remedied:
        raise InputError("all are equal")
    remedied = explained("--pca 3", "choose None")
    with pytest.raises(DamagedFileError, match=r"^x\.npy: "), remedied:
        raise DamagedFileError("x.npy", "cut")
