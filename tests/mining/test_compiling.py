"""Compiled functions work where their machine code can be kept nowhere."""

import numba.core.caching

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
