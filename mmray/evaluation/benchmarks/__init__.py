"""Published benchmarks, and labelled sets of your own."""
