"""The parts of `jobs/benchmark.py`: what is measured, and how."""
