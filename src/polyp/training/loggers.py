"""Loggers: a run's curves for TensorBoard, and with `logger=` for another library."""

import csv
import logging
import os
import re
import time
from collections.abc import Mapping
from typing import Any

from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only

from polyp import files
from polyp.errors import InputError, describe_error, pick, require
from polyp.report.tables import to_csv
from polyp.runs.folder import RunFolder
from polyp.training.distributed import is_worker
from polyp.training.hparams import list_hyperparameters, read_varied_hyperparameters, write_hparams

Points = Mapping[int, Mapping[str, float]]
"""Values by step and name."""


class Writer:
    """Writes the points of a run for another library, in the run's folder.

    Nothing is written before `open` is called. Points arrive in the order of their steps.

    Args:
        folder, config: the run's.
        steps_done: optimiser steps of the checkpoint that training continues from.

    Raises:
        InputError: the files in the folder cannot be continued, or a package is missing.
    """

    def __init__(self, folder: RunFolder, config: Mapping[str, Any], steps_done: int) -> None:
        self.folder, self.config, self.steps_done = folder.path.resolve(), config, steps_done

    def open(self) -> None:
        """Begin, or continue the files in the folder."""

    def write(self, points: Points) -> None:
        """Write points."""
        raise NotImplementedError

    def close(self, succeeded: bool) -> None:
        """End; nothing is written afterwards."""


class CsvWriter(Writer):
    """curves.csv: a row for each step, a column for each name."""

    def __init__(self, folder: RunFolder, config: Mapping[str, Any], steps_done: int) -> None:
        super().__init__(folder, config, steps_done)
        self.file = self.folder / "curves.csv"
        self.rows: dict[int, dict[str, float]] = {}
        if not steps_done or not self.file.exists():
            return
        try:
            with self.file.open(encoding="utf-8", newline="") as stream:
                for row in csv.DictReader(stream):
                    if (step := int(row.pop("step"))) < steps_done:
                        self.rows[step] = {name: float(value) for name, value in row.items() if value}
        except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
            raise files.DamagedError(
                f"{self.file} is damaged ({describe_error(error)}): move it elsewhere, or continue with "
                "logger=null"
            ) from error

    def write(self, points: Points) -> None:
        """Replace the file."""
        for step, values in points.items():
            self.rows[step] = self.rows.get(step, {}) | dict(values)
        names = sorted({name for values in self.rows.values() for name in values})
        rows = [{"step": step} | values for step, values in sorted(self.rows.items())]
        files.write_text(self.file, to_csv(rows, ["step", *names]))


class WandbWriter(Writer):
    """Weights & Biases in the folder wandb/, offline unless the variable WANDB_MODE has another mode.

    Each process that trains the run adds a folder there, with the id of the first.
    """

    def __init__(self, folder: RunFolder, config: Mapping[str, Any], steps_done: int) -> None:
        super().__init__(folder, config, steps_done)
        require("wandb", "wandb")
        self.mode: Any = os.environ.get("WANDB_MODE", "offline")
        if self.mode in ("offline", "dryrun", "disabled"):
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read by the import; it sends to W&B
            return
        import wandb

        try:
            wandb.login()  # asks for the key where there is a terminal and none is known
        except wandb.errors.Error as error:
            raise InputError(
                f"logger=wandb: WANDB_MODE={self.mode} needs an account ({describe_error(error)}): call "
                "wandb login first, or leave WANDB_MODE unset to write to the run's folder only"
            ) from error

    def open(self) -> None:
        """Begin a run of W&B, or one more part of the run whose id is in the folder."""
        import wandb

        names = [path.name for path in sorted((self.folder / "wandb").glob("*run-*"))]
        ids = [match[1] for name in names if (match := re.fullmatch(r"(?:offline-)?run-[\d_]+-(\w+)", name))]
        self.run = wandb.init(
            dir=self.folder,
            project=os.environ.get("WANDB_PROJECT") or str(self.config["name"]),
            name=self.folder.name,
            id=ids[0] if ids else None,
            resume=None if self.mode == "offline" else "allow",  # offline W&B warns that it cannot
            config=list_hyperparameters(self.config),
            mode=self.mode,
            settings=wandb.Settings(silent=True, console="off"),
        )

    def write(self, points: Points) -> None:
        """Write a row of W&B's history for each step."""
        for step, values in points.items():
            self.run.log(dict(values), step=step)

    def close(self, succeeded: bool) -> None:
        """Wait until W&B has written everything."""
        self.run.finish(exit_code=0 if succeeded else 1)


class MlflowWriter(Writer):
    """MLflow in the database mlflow.db, which has one run."""

    BATCH = 1000
    """The most values that MLflow takes at once."""

    def __init__(self, folder: RunFolder, config: Mapping[str, Any], steps_done: int) -> None:
        super().__init__(folder, config, steps_done)
        require("mlflow", "mlflow", "sqlalchemy")
        self.file = self.folder / "mlflow.db"
        if set(str(self.file)) & {"?", "#", "%"}:
            raise InputError(f"logger=mlflow: {folder} must have none of ? # % in its path")

    def open(self) -> None:
        """Begin the run of MLflow, or continue the one in the folder."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # after the import, which sets it
        self.client = MlflowClient(f"sqlite:///{self.file}")
        name = str(self.config["name"])
        if experiment := self.client.get_experiment_by_name(name):
            experiment_id = experiment.experiment_id
        else:
            artifacts = (self.folder / "mlartifacts").as_uri()
            experiment_id = self.client.create_experiment(name, artifacts)
        runs = self.client.search_runs([experiment_id])
        run = runs[0] if runs else self.client.create_run(experiment_id, run_name=self.folder.name)
        self.id = run.info.run_id
        self.client.update_run(self.id, status="RUNNING")
        self.last_steps = {
            metric: max(point.step for point in self.client.get_metric_history(self.id, metric))
            for metric in run.data.metrics
        }
        for key, value in list_hyperparameters(self.config).items():
            text = str(value)[:500]
            if key not in run.data.params:
                self.client.log_param(self.id, key, text)
            elif run.data.params[key] != text:  # parameters of MLflow cannot be changed
                self.client.set_tag(self.id, key, text)

    def write(self, points: Points) -> None:
        """Write the points after those that are in the database."""
        from mlflow.entities import Metric

        milliseconds = int(time.time() * 1000)
        metrics = [
            Metric(name, value, milliseconds, step)
            for step, values in points.items()
            for name, value in values.items()
            if step > self.last_steps.get(name, -1)
        ]
        for start in range(0, len(metrics), self.BATCH):
            self.client.log_batch(self.id, metrics=metrics[start : start + self.BATCH])

    def close(self, succeeded: bool) -> None:
        """Record how the run has ended."""
        self.client.set_terminated(self.id, "FINISHED" if succeeded else "FAILED")


WRITERS: dict[str, type[Writer]] = {"csv": CsvWriter, "wandb": WandbWriter, "mlflow": MlflowWriter}
"""The values of `logger=`."""

MAIN_CURVES = ("train/dice", "train/loss", "val/dice", "val/loss")
"""Curves that TensorBoard shows first, in a group: it sorts groups by name, capitals first, and opens two."""


class RunLogger(TensorBoardLogger):
    """TensorBoard's events in the run's folder, and the same points for the library of `logger=`.

    The hyperparameters are in config.yaml, so that there is no hparams.yaml. The other library gets its
    points when a checkpoint is saved, so that a run that continues repeats none.

    Args:
        folder, config: the run's.
        steps_done: optimiser steps of the checkpoint that training continues from; later points in the
            folder are forgotten.

    Raises:
        InputError: an unknown `logger`, as `Writer`, or a file of the sweep is damaged.
    """

    def __init__(self, folder: RunFolder, config: Mapping[str, Any], steps_done: int) -> None:
        super().__init__(folder.path, name="", version="", default_hp_metric=False, purge_step=steps_done)
        self.last_steps: dict[str, int | None] = {}
        self.config, self.varied = config, read_varied_hyperparameters(folder)
        self.writer: Writer | None = None
        self.points: dict[int, dict[str, float]] = {}
        self.is_open = False
        if (name := config.get("logger")) is not None:
            writer_class = pick("logger", name, WRITERS)
            self.writer = None if is_worker() else writer_class(folder, config, steps_done)

    def save(self) -> None:
        """Write no hparams.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write one point per curve and step, also where several batches make one step.

        Lightning's `epoch` is a ramp that says nothing, and its `lr-AdamW/encoder` is `lr/encoder` here.
        TensorBoard gets the `MAIN_CURVES` twice.
        """
        values = {}
        for name, value in metrics.items():
            name = re.sub("^lr-[^/]+", "lr", name)
            if name != "epoch" and self.last_steps.get(name) != step:
                values[name] = value
                self.last_steps[name] = step
        overview = {f"Overview/{name}": values[name] for name in MAIN_CURVES if name in values}
        super().log_metrics(values | overview, step)
        if self.writer is None or step is None:
            return
        if not self.is_open:
            self.writer.open()
            self.is_open = True
        self.points.setdefault(step, {}).update({name: float(value) for name, value in values.items()})

    @rank_zero_only
    def flush(self) -> None:
        """Write everything to the disk; a checkpoint that continues the curve is saved after it."""
        self.experiment.flush()
        if self.writer is not None and self.points:
            self.writer.write(self.points)
            self.points = {}

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the files of a run that has failed or was stopped; a trained one goes on with its test."""
        super().finalize(status)
        if status != "success":
            self._close_writer(succeeded=False)

    @rank_zero_only
    def write_result(self, test: Mapping[str, float], monitor: str, best: float, step: int) -> None:
        """Write the final numbers, TensorBoard's HPARAMS tab among them, and close the files.

        Args:
            test: the numbers of the test, by names such as `test/dice`.
            monitor, best: the number that has chosen the best checkpoint, and its value.
            step: the last one.
        """
        self.log_metrics({**test, f"{monitor}_best": best}, step)
        write_hparams(self.experiment, self.config, self.varied, monitor)
        super().finalize("success")
        if self.writer is not None:
            self.flush()
            self._close_writer(succeeded=True)

    def _close_writer(self, succeeded: bool) -> None:
        if self.writer is not None and self.is_open:
            self.is_open = False
            self.writer.close(succeeded)
