"""The parts of the pipeline that run on Ray; no other module imports Ray."""
