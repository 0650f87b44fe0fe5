"""Published benchmarks and labelled sets of one's own."""
