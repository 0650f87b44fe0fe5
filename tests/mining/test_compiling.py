"""Compiled functions work where their machine code can be kept nowhere, or was damaged."""

import errno

import numba.core.caching
import pytest

from mmray.mining.compiling import compiled


def twice(value):
    return 2 * value


def test_without_a_folder_for_machine_code_a_function_is_compiled_anew(monkeypatch):
    asked = []

    def nowhere(self, function):
        asked.append(function)
        raise RuntimeError("cannot cache function: no locator available")

    assert compiled(twice)(21) == 42
    monkeypatch.setattr(numba.core.caching.FunctionCache, "__init__", nowhere)
    assert compiled(twice)(21) == 42
    assert asked == [twice]


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
@pytest.mark.parametrize("content", [b"", b"\x80", b"no pickle"])
def test_machine_code_that_a_power_cut_damaged_is_made_anew(tmp_path, monkeypatch, suffix, content):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    assert compiled(twice)(21) == 42
    for file in tmp_path.rglob(f"*{suffix}"):
        file.write_bytes(content)
    assert compiled(twice)(21) == 42
    again = compiled(twice)
    assert again(21) == 42
    assert sum(again.stats.cache_hits.values()) == 1


def test_a_full_disk_keeps_no_machine_code_and_is_no_error(tmp_path, monkeypatch):
    def full(self, key, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(numba.core.caching.IndexDataCacheFile, "save", full)
    assert compiled(twice)(21) == 42
