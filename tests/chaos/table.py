"""The table of what was done to the runs of all rounds, and what came of it."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any


def table_of(rounds: Sequence[Mapping[str, Any]]) -> str:
    """Return a table in Markdown: a row for each kind of disturbance, and a sum of the rounds."""
    done, went_on, damaged = Counter[str](), Counter[str](), Counter[str]()
    stages: dict[str, set[str]] = {}
    for line in (line for round_ in rounds for line in round_["lines"]):
        if match := re.match(r"(\w+ [A-Z]+) in (\w+), status (\S+) ", line):
            done[match[1]] += 1
            went_on[match[1]] += match[3] == "0"
            stages.setdefault(match[1], set()).add(match[2])
        elif match := re.match(r"damaged: .* (cut|emptied|zeroed|flipped)$", line):
            damaged[match[1]] += 1
    rows = [
        "| process, signal | times | the run went on to its end | in or after the stages |",
        "|-|-:|-:|-|",
    ]
    rows += [
        f"| {what} | {done[what]} | {went_on[what]} | {', '.join(sorted(stages[what]))} |"
        for what in sorted(done)
    ]
    rows += ["", "| damage to one of the newest files | times |", "|-|-:|"]
    rows += [f"| {what} | {times} |" for what, times in damaged.most_common()]
    bad = sum(bool(round_["findings"]) for round_ in rounds)
    told = sum(round_["told"] and not round_["findings"] for round_ in rounds)
    rows += [
        "",
        f"{len(rounds)} rounds, {sum(round_['runs'] for round_ in rounds)} runs, "
        f"{sum(round_['seconds'] for round_ in rounds) / 60:.0f} minutes: "
        f"{len(rounds) - bad - told} ended as the undisturbed run, {told} were told that MLflow's "
        f"database is damaged, {bad} had findings",
    ]
    return "\n".join(rows)
