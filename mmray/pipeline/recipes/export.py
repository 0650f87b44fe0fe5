"""The recipe of `jobs/export.py`: a model as an ONNX file."""

from pathlib import Path

from mmray.config.bounds import check_not_empty
from mmray.config.tools import ExportConfig
from mmray.pipeline.registry import model_folder, newest_model
from mmray.serving.encoder import ImageEncoder
from mmray.serving.onnx_export import export_onnx
from mmray.system.folder import Folder
from mmray.system.locations import absolute


def run(config: ExportConfig) -> str:
    """Write the model as an ONNX file, and return a sentence about it.

    Raises
    ------
    InputError
        There is no such model, it has no such file, or the file cannot be written.
    """
    check_not_empty(config)
    storage, uri = Folder(absolute(config.storage)), config.tracking_uri
    model = config.model or newest_model(storage, uri=uri, experiment=config.experiment)
    with model_folder(model, storage=storage, uri=uri) as folder:
        encoder = ImageEncoder.load(folder, dims=config.dims)
    difference = export_onnx(encoder.net, config.output, encoder.preprocessing)
    size = Path(config.output).stat().st_size / 1e6
    return (
        f"{config.output}: {size:.1f} MB, {encoder.net.dim} dimensions, at most "
        f"{difference:.1e} away from torch"
    )
