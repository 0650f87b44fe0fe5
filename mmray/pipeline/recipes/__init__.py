"""The recipes of the jobs: the stages that each runs, in order."""
