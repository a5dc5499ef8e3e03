"""Hyperparameters of a run, and TensorBoard's HPARAMS tab."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from polyp.runs import identity
from polyp.runs.folder import RunFolder
from polyp.training.job_labels import read_varied

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

DEFAULT_COLUMNS = (
    *("model/arch", "model/encoder", "model/loss", "optim/encoder_lr", "optim/decoder_lr"),
    *("data/image_size", "data/batch_size", "trainer/max_epochs", "seed"),
)
"""Hyperparameters that are commonly tuned: the columns of a run that is no job of a sweep."""


def list_hyperparameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that can change a result, by names such as `optim/encoder_lr`."""
    groups = ("seed", "data", "model", "optim", "trainer")
    settings = identity.select_decisive(config).items()
    return {key.replace(".", "/"): value for key, value in settings if identity.matches(key, groups)}


def read_varied_hyperparameters(folder: RunFolder) -> dict[str, str]:
    """The settings in which a job differs from the other jobs of its sweep, by names such as
    `optim/encoder_lr`; empty if the run is no job.

    Raises:
        DamagedError: a file of the sweep is damaged.
    """
    overrides = read_varied(folder.path) if folder.is_sweep_job else {}
    return {key.lstrip("+").replace(".", "/"): value for key, value in overrides.items()}


def write_hparams(
    writer: "SummaryWriter", config: Mapping[str, Any], varied: Mapping[str, str], monitor: str
) -> None:
    """Write a run's row of the HPARAMS tab.

    The tab has the columns of the first run that it finds: what differs between the jobs of its sweep, or
    what is commonly tuned. With more of them the scores would be outside the window. The rows have all
    hyperparameters, for tables with runs of several sweeps.

    Args:
        writer: of the run's events.
        config: the run's.
        varied: see `read_varied_hyperparameters`.
        monitor: the number that has chosen the best checkpoint.
    """
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
    from torch.utils.tensorboard.summary import hparams

    values: dict[str, Any] = dict(varied)
    for name, value in list_hyperparameters(config).items():
        if value is not None:
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            values[name] = value if is_number else str(value)
    columns = [
        api_pb2.HParamInfo(
            name=name,
            type="DATA_TYPE_STRING" if isinstance(values[name], str) else "DATA_TYPE_FLOAT64",
            differs=name in varied,
        )
        for name in varied or DEFAULT_COLUMNS
        if name in values
    ]
    scores = [
        api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag), display_name=label)
        for tag, label in ((f"{monitor}_best", monitor), ("test/dice", "test/dice"))
    ]
    experiment, *session = hparams(values, {})
    table = api_pb2.Experiment(hparam_infos=columns, metric_infos=scores)  # torch's has no order
    content = plugin_data_pb2.HParamsPluginData(experiment=table)
    experiment.value[0].metadata.CopyFrom(metadata.create_summary_metadata(content))
    for summary in (experiment, *session):
        writer._get_file_writer().add_summary(summary)
