"""A small part of tests/fuzz.py: every reader meets some damaged files."""

import pytest

from tests.fuzz import READERS, outcome, run_case

FEW = 20


def test_every_whole_sample_is_read(tmp_path):
    for place, (name, reader) in enumerate(READERS.items()):
        if reader.share < 0.1 or name == "config.json":  # starts a process; is without its weights
            continue
        for number, sample in enumerate(reader.samples()):
            whole = sample.files | {sample.target: sample.pack(sample.files[sample.target])}
            folder = tmp_path / f"{place}-{number}" / "indexes"
            folder.mkdir(parents=True)
            assert outcome(reader, whole, folder) == "read", name


@pytest.mark.parametrize("name", [name for name, reader in READERS.items() if reader.share > 0.1])
def test_damaged_files_end_in_a_result_or_in_a_sentence(name):
    samples = READERS[name].samples()
    found = {number: run_case(name, number, 1, samples) for number in range(FEW)}
    assert {n: result for n, result in found.items() if result not in ("read", "refused")} == {}
