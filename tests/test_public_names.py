"""What others call is exported by the folders, and importing it is cheap."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import mmray

LIBRARIES = (
    *("system", "config", "images", "descriptors", "mining", "evaluation", "training", "serving"),
)
PUBLIC = {
    "mining": {
        *("nearest_neighbors", "reciprocal_knn_graph", "normalize_graph", "select_anchors"),
        *("stationary_distribution", "diffuse", "Diffusion", "mine_pools", "Pools", "Neighbors"),
    },
    "descriptors": {
        *("mac", "rmac", "gem", "EmbeddingNet", "build", "load", "save"),
        *("pca_whitening", "lda_whitening", "Whitening"),
    },
    "training": {"contrastive_loss", "triplet_loss"},
    "evaluation": {"mean_average_precision", "recall_at_k", "normalized_mutual_information"},
    "serving": {"ImageEncoder"},
}


@pytest.mark.parametrize("library", PUBLIC)
def test_public_names_are_exported_by_their_folder(library):
    package = importlib.import_module(f"mmray.{library}")
    assert set(package.__all__) == PUBLIC[library]
    for name in package.__all__:
        exported = getattr(package, name)
        assert exported.__module__.startswith(f"mmray.{library}."), name
        assert (exported.__doc__ or "").strip(), name
    with pytest.raises(AttributeError, match=f"module 'mmray.{library}' has no attribute 'nope'"):
        package.nope  # noqa: B018


def test_the_folders_are_the_eight_libraries_and_the_application():
    root = Path(mmray.__file__).parent
    folders = {path.parent.name for path in root.glob("*/__init__.py")}
    assert folders == {*LIBRARIES, "pipeline"}


@pytest.mark.process
def test_importing_a_library_loads_neither_ray_nor_mlflow_nor_torch_where_it_needs_none():
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print(sorted({'ray', 'mlflow', 'torch'} & set(sys.modules)))"
    )

    def loaded(*modules):
        done = subprocess.run(
            [sys.executable, "-c", code, *modules], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    assert loaded(*(f"mmray.{name}" for name in LIBRARIES)) == "[]"
    assert loaded("mmray.__main__", "mmray.mining.graph", "mmray.mining.files") == "[]"
    every = [
        f"mmray.{library}.{path.stem}"
        for library in LIBRARIES
        for path in (Path(mmray.__file__).parent / library).glob("[!_]*.py")
    ]
    assert loaded(*every) == "['torch']"
    # With torch their processes would start twice as long, and take 470 MB more each.
    light = ("caching", "decoding", "listing", "units")
    assert loaded(*(f"mmray.pipeline.distributed.{name}" for name in light)) == "['ray']"
