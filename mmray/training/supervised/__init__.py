"""Training from labels: the supervised baselines of Tables 2 and 3."""
