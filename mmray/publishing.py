"""What a user takes away from a run: the model, ready to be loaded, and the page to look at."""

from mmray.config.learning import LearningConfig, all_stages
from mmray.describer import TrainedModel
from mmray.learning import Outcome
from mmray.learning_report import learning_report
from mmray.model_registry import log_model
from mmray.run_report import write_report
from mmray.session import Session
from mmray.system.folder import Folder
from mmray.system.progress import announce


def publish(session: Session[LearningConfig], outcome: Outcome) -> None:
    """Log the model and register it in MLflow, and write the report."""
    if outcome.model is not None:
        _log(session, outcome.model)
    config, last = session.config, session.chosen[-1]
    part = None if last == all_stages(config)[-1] else last
    write_report(session, learning_report(config, outcome, part=part), part=part)


def _log(session: Session[LearningConfig], folder: Folder) -> None:
    model = TrainedModel.read(folder)
    uri = log_model(
        session.run,
        folder,
        dims=model.network.dim,
        digest=model.digest(),
        registered=session.config.registered_model or None,
    )
    if uri is not None:
        announce(f"model: registered in MLflow as {uri}")
