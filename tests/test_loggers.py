"""The curves for other libraries, and the user's own callbacks."""

import csv
import json
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import SMALL, Train, run_script
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from polyp import cli

Points = list[tuple[str, int, float]]

CALLBACKS = """
from pathlib import Path
import pytorch_lightning as pl

Path(__file__).with_name("imported").touch()

class Stop(pl.Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        module.log("own/number", 2.0)
        if trainer.global_step == self.step:
            raise RuntimeError("stopped")

class Other:
    pass
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module own_callbacks, which leaves the file `imported` beside it when it is imported."""
    folder = tmp_path / "module"
    folder.mkdir()
    (folder / "own_callbacks.py").write_text(CALLBACKS)
    monkeypatch.syspath_prepend(folder)
    yield folder
    sys.modules.pop("own_callbacks", None)


def tensorboard(run: Path) -> Points:
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("Overview/")]
    return [(tag, event.step, event.value) for tag in tags for event in events.Scalars(tag)]


def from_csv(run: Path) -> Points:
    rows = list(csv.DictReader((run / "curves.csv").read_text().splitlines()))
    steps = [int(row.pop("step")) for row in rows]
    assert steps == sorted(set(steps))
    pairs = zip(steps, rows, strict=True)
    return [(name, step, float(value)) for step, row in pairs for name, value in row.items() if value]


def from_mlflow(run: Path) -> Points:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run / 'mlflow.db'}")
    (record,) = client.search_runs([each.experiment_id for each in client.search_experiments()])
    assert record.info.status == "FINISHED" and record.info.run_name == run.name
    assert record.data.params["model/encoder"] == "mobilenet_v2"
    histories = {name: client.get_metric_history(record.info.run_id, name) for name in record.data.metrics}
    return [(name, point.step, point.value) for name, points in histories.items() for point in points]


def read_log(data: bytes) -> list[bytes]:
    """The records of a log of LevelDB, in which W&B writes: blocks of 32 KB, which hold parts of records;
    each part has a header of checksum, length and type (1 whole, 2 first, 3 middle, 4 last).
    """
    records, position = [b""], len(":W&B") + 3  # then three bytes for the version
    while position + 7 <= len(data):
        if (left := -position % 32768) and left < 7:  # too few bytes for a header
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        records[-1] += data[position + 7 : position + 7 + length]
        records += [b""] if kind in (1, 4) else []
        position += 7 + length
    return records[:-1]


def from_wandb(run: Path) -> Points:
    from wandb.proto.wandb_internal_pb2 import Record

    files = sorted((run / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2 and len({file.name for file in files}) == 1  # two parts of one run
    points = []
    for file in files:
        for content in read_log(file.read_bytes()):
            history = Record.FromString(content).history
            values = {item.key or item.nested_key[0]: float(item.value_json) for item in history.item}
            step = int(values.pop("_step", -1))
            points += [(name, step, value) for name, value in values.items() if not name.startswith("_")]
    return points


READERS = {"csv": from_csv, "wandb": from_wandb, "mlflow": from_mlflow}


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("wandb", "mlflow")]


@pytest.mark.parametrize("logger", ["csv", *SLOW])
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_logger_has_the_points_of_tensorboard_also_after_an_interruption(
    logger: str, train: Train, module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if logger != "csv":
        pytest.importorskip(logger)
    monkeypatch.chdir(tmp_path)
    stop = "callbacks=[{_target_: own_callbacks.Stop, step: 6}]"  # in the second epoch
    with pytest.raises(SystemExit):
        train(*SMALL, "trainer.max_epochs=2", "trainer.log_every_n_steps=1", f"logger={logger}", stop)
    run = tmp_path / "outputs" / "run"
    train(f"resume={run}", "callbacks=null")
    points = READERS[logger](run)
    assert max(Counter((name, step) for name, step, _ in points).values()) == 1
    expected = {(name, step): value for name, step, value in tensorboard(run)}
    assert expected.keys() >= {("val/dice", 3), ("val/dice", 7), ("test/dice", 8), ("own/number", 2)}
    ours = {(name, step): value for name, step, value in points}
    assert ours == {key: pytest.approx(value, rel=1e-6) for key, value in expected.items()}
    test = json.loads((run / "metrics.json").read_text())["test"]
    assert ours["test/dice", 8] == pytest.approx(test["dice"], rel=1e-6)
    assert {path.name for path in tmp_path.iterdir()} == {"module", "outputs"}


@pytest.mark.slow
def test_a_curve_in_csv_forgets_what_the_run_repeats(train: Train) -> None:
    """The result of a finished run that trains on, as TensorBoard does; and what is damaged is refused."""
    run = train(*SMALL, "logger=csv") / "run"
    config = yaml.safe_load((run / "config.yaml").read_text())
    del config["logger"], config["callbacks"]  # as in a run of version 0.6
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    train(f"resume={run}", "trainer.max_epochs=2", "logger=csv")
    steps = [(name, step) for name, step, _ in from_csv(run) if name in ("val/dice", "test/dice")]
    assert sorted(steps) == [("test/dice", 8), ("val/dice", 3), ("val/dice", 7)]
    before = (run / "curves.csv").read_text().replace("step", "other", 1)
    (run / "curves.csv").write_text(before)
    with pytest.raises(SystemExit, match=r"curves\.csv is damaged"):
        train(f"resume={run}", "trainer.max_epochs=3")
    assert (run / "curves.csv").read_text() == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("logger=tensorflow", "logger=tensorflow is unknown"),
        ("callbacks=own_callbacks.Stop", "must be a list"),
        ("callbacks=[Stop]", "is no import path"),
        ("callbacks=[nowhere_to_be_found.Stop]", "cannot be imported"),
        ("callbacks=[own_callbacks.Missing]", "cannot be imported"),
        ("callbacks=[own_callbacks.Other]", "must be a class derived from"),
        ("callbacks=[own_callbacks.Stop]", "cannot be made: .*'step'"),
    ],
)
def test_a_wrong_logger_or_callback_is_one_line_and_leaves_nothing(
    override: str, message: str, train: Train, module: Path, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=message):
        train(*SMALL, override)
    assert not (tmp_path / "outputs" / "run").exists()


def test_a_missing_package_is_named(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyp.errors.find_spec", lambda name: None)
    for logger in ("wandb", "mlflow"):
        with pytest.raises(SystemExit, match=rf"{logger} is not installed: pip install .*\[{logger}\]"):
            train(*SMALL, f"logger={logger}")
    assert not (tmp_path / "outputs" / "run").exists()


@pytest.mark.slow
def test_nothing_that_a_stored_run_or_sweep_names_is_imported(
    train: Train, module: Path, tmp_path: Path
) -> None:
    run = train(*SMALL) / "run"
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["callbacks"] = [{"_target_": "own_callbacks.Stop", "step": 100}]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit, match=r"was trained with callbacks=.*own_callbacks\.Stop"):
        train(f"resume={run}", "trainer.max_epochs=2")
    train(f"resume={run}", "trainer.max_epochs=2", "callbacks=null")
    assert yaml.safe_load((run / "config.yaml").read_text())["callbacks"] is None
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert cli.main(["evaluate", str(run)]) in (None, 0)

    sweep = tmp_path / "sweep"
    sweep.mkdir()
    (sweep / "jobs.json").write_text("[]")
    task = [*SMALL, "seed=0,1", "callbacks=[own_callbacks.Stop]"]
    command = {"hydra": {"overrides": {"task": task, "hydra": []}}}
    (sweep / "multirun.yaml").write_text(yaml.safe_dump(command))
    with pytest.raises(SystemExit, match="names code to import"):
        run_script(f"resume={sweep}")
    rows = tmp_path / "rows.csv"
    rows.write_text("seed,callbacks\n0,[own_callbacks.Stop]\n")
    with pytest.raises(SystemExit, match="names code to import"):
        train("-m", *SMALL, "hydra/sweeper=csv", f"hydra.sweeper.path={rows}")
    assert not (module / "imported").exists()
