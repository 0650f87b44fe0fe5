"""The table of results says what was measured."""

from mmray.report import Score, results_table


def test_the_table_lists_mac_before_rmac_and_rounds_to_a_tenth_of_a_percent():
    scores = [
        Score("initial", "rmac", "none", 0.51249),
        Score("initial", "mac", "PCA", 1.0),
        Score("fine-tuned", "mac", "LDA", 0.0),
    ]
    assert results_table(scores).splitlines() == [
        "| descriptor | network    | whitening |   mAP |",
        "| ---------- | ---------- | --------- | ----: |",
        "| MAC        | initial    | PCA       | 100.0 |",
        "| MAC        | fine-tuned | LDA       |   0.0 |",
        "| R-MAC      | initial    | none      |  51.2 |",
    ]
