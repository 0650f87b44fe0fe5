"""Write a model that a run left as an ONNX file, and compare the two.

The file takes uint8 RGB images (batch, 3, height, width) and gives l2-normalised, whitened
descriptors. The one line printed says where it is and how far ONNX Runtime is away from torch. Exit
status: 0 done, 2 unusable arguments or input, 1 anything else, 130 interrupted.
"""

import sys
from pathlib import Path

import tyro

from mmray.config.command_line import exit_status
from mmray.config.tools import ExportConfig


def main() -> int:
    config = tyro.cli(ExportConfig, description=__doc__)

    def job() -> None:
        # Imported only now: --help and a misspelt flag should not wait for torch.
        from mmray.pipeline.registry import model_folder
        from mmray.serving.encoder import Describer
        from mmray.serving.onnx_export import export_onnx
        from mmray.system.folder import Folder
        from mmray.system.locations import absolute

        storage = Folder(absolute(config.storage))
        with model_folder(config.model, storage=storage, uri=config.tracking_uri) as folder:
            describer = Describer.load(folder, dims=config.dims)
        difference = export_onnx(describer.net, config.output, describer.framing)
        size = Path(config.output).stat().st_size / 1e6
        print(
            f"{config.output}: {size:.1f} MB, {describer.net.dim} dimensions, at most "
            f"{difference:.1e} away from torch"
        )

    return exit_status(job)


if __name__ == "__main__":
    sys.exit(main())
