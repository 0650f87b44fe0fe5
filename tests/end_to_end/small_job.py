"""The main job as its tests run it: small settings, and what it prints and logs."""

import shlex

import mlflow

# The demonstration made small: 8 objects, 36 photos in each part, the same path through all stages.
SMALL = shlex.split(
    """
    --demo.objects 4 --demo.photos 8 --demo.distractors 4 --demo.longest-side 96
    --extraction.longest-side 96 --extraction.shard-size 8 --training.longest-side 96
    --evaluation.longest-side 96 --mining.graph-k 6 --mining.component all
    --mining.selection all --mining.anchors 24 --mining.anchor-block 4 --mining.positive-k 6
    --mining.negative-k 12 --training.epochs 2 --training.anchors-per-epoch 8
    """
)


def table(text):
    return [line for line in text.splitlines() if line.startswith("|")]


def the_run(uri):
    """The one MLflow run there is, and what reads it."""
    client = mlflow.MlflowClient(uri)
    (experiment,) = client.search_experiments(filter_string="name = 'mmray'")
    (run,) = client.search_runs([experiment.experiment_id])
    return client, run
