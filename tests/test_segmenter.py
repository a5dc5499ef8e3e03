"""The Lightning module: what it scores, predicts and keeps, and three mistakes that must be caught."""

import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from conftest import SMALL, Train
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from polyp.data.datamodule import PolypDataModule
from polyp.errors import InputError
from polyp.runs.folder import RunFolder
from polyp.runs.model import ModelSource, load_checkpoint
from polyp.training import pictures
from polyp.training.module import ScoringModule, TrainingModule
from polyp.training.trainer import build_trainer

SIZE = 64
MODEL: dict[str, Any] = {
    "arch": "unet",
    "encoder": "tu-test_resnet",
    "encoder_weights": None,
    "encoder_depth": 3,
    "decoder_channels": [16, 8, 8],
    "decoder_attention": None,
    "stages": 1,
    "image_size": SIZE,
    "loss": "dice_bce",
    "threshold": 0.5,
    "init_from": None,
    "freeze": None,
    "unfreeze_epoch": None,
}
OPTIM: dict[str, Any] = {"encoder_lr": 1e-3, "decoder_lr": 1e-2, "weight_decay": 1e-4, "ema_decay": None}

Pair = tuple[np.ndarray, np.ndarray]
Answer = Callable[[Tensor], list[Tensor]]


@pytest.fixture(autouse=True)
def same_weights_each_time_and_no_advice() -> Iterator[None]:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        yield


def segmenter(**changes: Any) -> TrainingModule:
    return TrainingModule(**MODEL | {"optim": OPTIM} | changes)


# A data set whose images tell what a network will find in them: the red channel is the prediction.


def box(top: int, bottom: int, left: int, right: int, height: int = 4, width: int = 4) -> np.ndarray:
    """A mask of 16 x 16 cells, each of so many pixels; at 64 x 64 a cell has 4 x 4, so nothing is lost in
    resizing.
    """
    cells = np.zeros((16, 16), np.uint8)
    cells[top:bottom, left:right] = 1
    return np.kron(cells, np.ones((height, width), np.uint8))


TRUTHS = [box(2, 10, 3, 9), box(0, 8, 0, 8, 8, 8), box(5, 6, 9, 12, 6, 8), box(1, 15, 1, 15, 8, 4)]
PREDICTIONS = [box(2, 10, 3, 9), box(0, 8, 4, 12, 8, 8), box(4, 8, 8, 12, 6, 8), box(0, 1, 0, 16, 8, 4)]


def data(
    root: Path, pairs: list[Pair], batch_size: int = 2, eval_batch_size: int | None = None, **options: Any
) -> PolypDataModule:
    """The same pairs, as (prediction, truth), for validation and test, and four others for training."""
    lines = ["stem,subset"]
    boxes = [(box(n, n + 6, 2, 9), box(n, n + 6, 2, 9)) for n in range(4)]
    for subset, some in (("train", boxes), ("val", pairs), ("test", pairs)):
        for number, (predicted, truth) in enumerate(some):
            stem = f"{subset}{number}"
            lines.append(f"{stem},{subset}")
            blue_green_red = np.stack(
                [np.zeros_like(predicted), np.full_like(predicted, number), predicted * 255], -1
            )
            for folder, pixels in (("images", blue_green_red), ("masks", truth * 255)):
                (root / folder).mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(root / folder / f"{stem}.png"), pixels)
    (root / "split.csv").write_text("\n".join(lines))
    return PolypDataModule(
        dataset="folder",
        split=str(root / "split.csv"),
        split_seed=0,
        image_size=SIZE,
        batch_size=batch_size,
        num_workers=0,
        cache=False,
        allow_empty=True,
        augment=[],
        seed=0,
        eval_batch_size=eval_batch_size,
        root=str(root),
        **options,
    )


class Oracle(nn.Module):
    """A network that knows: logits of +-20 from the red channel, or what is made of them."""

    def __init__(self, answer: Answer = lambda logits: [logits]) -> None:
        super().__init__()
        self.answer = answer
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1))  # tells where the network is

    def forward(self, image: Tensor) -> list[Tensor]:
        return self.answer(torch.where(image[:, :1].float() > 127, 20.0, -20.0))


def knowing(answer: Answer = lambda logits: [logits], **changes: Any) -> TrainingModule:
    module = segmenter(**changes)
    module.network = Oracle(answer)
    return module


def bare_trainer(*callbacks: pl.Callback) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def scores(module: TrainingModule, dm: PolypDataModule) -> dict[str, float]:
    """All that validation and test log."""
    return evaluate("validate", module, dm) | evaluate("test", module, dm)


def evaluate(
    use: str, module: TrainingModule, dm: PolypDataModule, *callbacks: pl.Callback
) -> dict[str, float]:
    """What Lightning's `validate` or `test` logs."""
    evaluated = ScoringModule(module) if use == "test" else module
    return dict(getattr(bare_trainer(*callbacks), use)(evaluated, dm, verbose=False)[0])


def by_hand(pairs: list[Pair]) -> dict[str, float]:
    counts = np.array([[(p & t).sum(), (p & ~t & 1).sum(), (~p & 1 & t).sum()] for p, t in pairs], float)
    tp, fp, fn = counts.T
    pooled_tp, pooled_fp, pooled_fn = counts.sum(0)
    predicted = tp + fp
    return {
        "dice": float(np.mean(2 * tp / (2 * tp + fp + fn))),
        "iou": float(np.mean(tp / (tp + fp + fn))),
        "precision": float(np.mean(tp / predicted)),
        "recall": float(np.mean(tp / (tp + fn))),
        "mae": float(np.mean([(p ^ t).mean() for p, t in pairs])),
        "pooled_dice": float(2 * pooled_tp / (2 * pooled_tp + pooled_fp + pooled_fn)),
    }


# What is scored


@pytest.mark.parametrize("batch_size", [1, 3])
def test_scores_are_those_counted_by_hand(tmp_path: Path, batch_size: int) -> None:
    pairs = list(zip(PREDICTIONS, TRUTHS, strict=True))
    expected = by_hand(pairs)
    results = scores(knowing(), data(tmp_path, pairs, batch_size))
    for name in ("dice", "iou", "precision", "recall"):
        assert results[f"val/{name}"] == pytest.approx(expected[name], abs=1e-6), name
        assert results[f"test/{name}"] == pytest.approx(expected[name], abs=1e-6), name
    # At original resolution a large image brings more pixels to the pool; at network resolution all are
    # equal.
    small = [
        (cv2.resize(p, (64, 64), interpolation=0), cv2.resize(t, (64, 64), interpolation=0)) for p, t in pairs
    ]
    assert results["test/pooled_dice"] == pytest.approx(expected["pooled_dice"], abs=1e-6)
    assert results["val/pooled_dice"] == pytest.approx(by_hand(small)["pooled_dice"], abs=1e-6)
    assert results["val/mae"] == pytest.approx(by_hand(small)["mae"], abs=1e-6)
    # logits are smooth between two pixels
    assert results["test/mae"] == pytest.approx(expected["mae"], abs=0.02)
    assert abs(expected["pooled_dice"] - by_hand(small)["pooled_dice"]) > 0.01  # the cases can tell


def test_numbers_do_not_depend_on_the_size_of_evaluations_batches(tmp_path: Path) -> None:
    pairs = list(zip(PREDICTIONS, TRUTHS, strict=True))
    first, *others = (scores(knowing(), data(tmp_path, pairs, eval_batch_size=size)) for size in (1, 3, 4))
    assert all(other == first for other in others) and "val/loss" in first


def test_the_truth_scores_one_and_costs_nothing(tmp_path: Path) -> None:
    results = scores(knowing(), data(tmp_path, [(truth, truth) for truth in TRUTHS]))
    assert results["val/loss"] == pytest.approx(0, abs=1e-4)
    for name in ("dice", "iou", "precision", "recall", "pooled_dice"):
        assert (results[f"val/{name}"], results[f"test/{name}"]) == (1, 1), name


def test_empty_masks_score_one_where_nothing_is_found_and_zero_where_something_is(tmp_path: Path) -> None:
    nothing = box(0, 0, 0, 0)
    results = scores(
        knowing(), data(tmp_path, [(nothing, nothing), (TRUTHS[0], nothing), (nothing, TRUTHS[0])])
    )
    assert results["val/dice"] == results["test/dice"] == pytest.approx(1 / 3)


def test_scores_are_at_one_half_whatever_the_threshold(tmp_path: Path) -> None:
    dm = data(tmp_path, list(zip(PREDICTIONS, TRUTHS, strict=True)))
    unsure = [scores(knowing(lambda logits: [logits / 20], threshold=t), dm)["test/dice"] for t in (0.5, 0.9)]
    assert unsure[0] == unsure[1] > 0.3


# The three mistakes of design, section 4, each on the way from files to logged numbers


def test_mistake_1_inverted_masks_score_nothing(tmp_path: Path) -> None:
    results = scores(knowing(), data(tmp_path, [(truth, 1 - truth) for truth in TRUTHS]))
    assert results["val/dice"] == results["test/dice"] == 0
    assert results["val/loss"] > 10


@pytest.mark.parametrize("use", ["fit", "validate", "test", "predict"])
def test_mistake_2_a_second_channel_is_no_answer(tmp_path: Path, use: str) -> None:
    module = knowing(lambda logits: [torch.cat([logits, torch.full_like(logits, -20)], 1)])
    dm = data(tmp_path, [(truth, truth) for truth in TRUTHS])
    batch = {"image": torch.zeros(2, 3, SIZE, SIZE), "mask": torch.zeros(2, SIZE, SIZE)}
    with pytest.raises((ValueError, RuntimeError)):
        if use == "fit":
            module.training_step(batch, 0)
        elif use == "predict":
            module.predict(list(batch["image"]))
        else:
            evaluate(use, module, dm)


def test_mistake_3_a_second_sigmoid_is_far_from_perfect(tmp_path: Path) -> None:
    dm = data(tmp_path, [(truth, truth) for truth in TRUTHS])
    results = scores(knowing(lambda logits: [torch.sigmoid(logits)]), dm)
    everything = by_hand([(np.ones_like(truth), truth) for truth in TRUTHS])  # sigmoid(sigmoid(x)) >= 0.5
    assert results["val/dice"] == pytest.approx(everything["dice"], abs=1e-6) and results["val/dice"] < 0.7
    assert results["test/dice"] == pytest.approx(everything["dice"], abs=1e-6)
    assert results["val/loss"] > 0.5


class Outputs(pl.Callback):
    """Keeps what validation and test hand to callbacks."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def on_validation_batch_end(self, trainer: Any, module: Any, outputs: Any, *args: Any) -> None:
        self.seen.append(outputs)

    def on_test_batch_end(self, trainer: Any, module: Any, outputs: Any, *args: Any) -> None:
        self.seen.append(outputs)


def test_the_answer_is_one_sigmoid_of_the_last_stage_and_the_loss_is_of_all(tmp_path: Path) -> None:
    truth, kept = TRUTHS[0], Outputs()
    module = knowing(lambda logits: [-logits, logits / 10])
    dm = data(tmp_path, [(truth, truth)])
    for use in ("validate", "test"):
        evaluate(use, module, dm, kept)
    expected = torch.sigmoid(torch.where(torch.tensor(truth) > 0, 2.0, -2.0))
    validated, tested = kept.seen
    assert torch.allclose(validated["probability"][0], expected)
    assert torch.allclose(tested["probability"][0], expected)
    # A wrong first stage costs 20 and a Dice of 0; a right second one, unsure as it is, little.
    target = torch.tensor(truth)[None, None]
    first, second = (
        module.loss(sign * torch.where(target > 0, 20.0, -20.0), target).item() for sign in (-1, 0.1)
    )
    assert first == pytest.approx(21, abs=0.01) and second < 0.5
    assert float(validated["loss"]) == pytest.approx((first + second) / 2)


def test_each_test_image_has_its_row(tmp_path: Path) -> None:
    kept = Outputs()
    bare_trainer(kept).test(
        ScoringModule(knowing()),
        data(tmp_path, list(zip(PREDICTIONS, TRUTHS, strict=True))),
        verbose=False,
    )
    rows = [row for batch in kept.seen for row in batch["rows"]]
    for row, predicted, truth in zip(rows, PREDICTIONS, TRUTHS, strict=True):
        expected = by_hand([(predicted, truth)])
        assert {name: row[name] for name in ("dice", "iou", "precision", "recall")} == pytest.approx(
            {name: expected[name] for name in ("dice", "iou", "precision", "recall")}
        )
        assert row["tp"] == (predicted & truth).sum() and type(row["tp"]) is int
        assert row["polyp_share"] == pytest.approx(truth.mean())


def test_normal_frames_are_counted_apart(tmp_path: Path) -> None:
    """Frame N has N % 3 false positives, in the red channel; the other channels tell the frames apart."""
    random = np.random.default_rng(0)
    (tmp_path / "frames").mkdir()
    for number in range(20):
        frame = cv2.resize(random.integers(0, 255, (5, 5, 3), np.uint8), (64, 64))
        frame[..., 2] = 255 * sum((box(8 * n, 8 * n + 6, 3, 9) for n in range(number % 3)), box(0, 0, 0, 0))
        cv2.imwrite(str(tmp_path / "frames" / f"{number}.png"), frame)
    pairs, results = list(zip(PREDICTIONS, TRUTHS, strict=True)), []
    for options in ({}, {"normal": str(tmp_path / "frames")}):
        record = pictures.TestRecord(RunFolder(tmp_path / "run"))
        trainer, dm = bare_trainer(record), data(tmp_path / "data", pairs, **options)
        trainer.test(ScoringModule(knowing()), dm, verbose=False)
        results.append((dict(trainer.callback_metrics), record.rows))
    assert results[0] == results[1] and len(results[0][1]) == len(TRUTHS)
    expected = [int(pair.image.stem) % 3 for pair in dm.get_pairs("normal")]
    assert [row["false_positives"] for row in record.normal] == expected
    assert len(set(expected)) > 1


# Prediction


def images(*sizes: tuple[int, int]) -> list[Tensor]:
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in sizes]


def test_predictions_have_the_size_of_their_image() -> None:
    several = images((64, 64), (100, 37), (33, 250), (1, 1))
    for image, probability in zip(several, segmenter().eval().predict(several), strict=True):
        assert probability.shape == image.shape[1:]
        assert probability.dtype == torch.float32 and not probability.requires_grad
        assert 0 < probability.min() <= probability.max() < 1


def test_a_prediction_does_not_depend_on_its_company() -> None:
    """Nor on whether somebody thought of eval(): batch normalisation would make it depend, and remember the
    batch.
    """
    module = segmenter()
    several = images((64, 64), (100, 37), (33, 250))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    together = module.predict(several)
    for image, probability in zip(several, together, strict=True):
        assert torch.allclose(module.predict([image])[0], probability, atol=1e-5)
    assert torch.allclose(module.predict(several[::-1])[0], together[-1], atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_prediction_lies_where_the_polyp_is() -> None:
    truth = box(2, 10, 3, 9, 11, 7)  # 176 x 112
    red = torch.tensor(truth)
    (probability,) = knowing().predict([torch.stack([red * 255, red, red])])
    mask = probability.numpy() >= 0.5
    assert (mask & (truth > 0)).sum() / (mask | (truth > 0)).sum() > 0.95


# Checkpoints


def fit(
    folder: Path,
    module: TrainingModule,
    dm: PolypDataModule,
    *extra: pl.Callback,
    ema_decay: float | None = None,
    **settings: Any,
) -> pl.Trainer:
    settings = {"accelerator": "cpu", "max_epochs": 1, "precision": "32-true"} | settings
    config = {"seed": 0, "monitor": "val/dice", "patience": None, "optim": {"ema_decay": ema_decay}}
    trainer = build_trainer(RunFolder(folder), config | {"trainer": settings})
    trainer.callbacks.extend(extra)  # type: ignore[attr-defined]
    trainer.fit(module, dm, weights_only=True)
    return trainer


def plain(value: Any) -> bool:
    if isinstance(value, dict):
        return type(value) is dict and all(type(key) is str and plain(part) for key, part in value.items())
    if isinstance(value, list):
        return type(value) is list and all(plain(part) for part in value)
    return value is None or type(value) in (str, int, float, bool)


@pytest.mark.parametrize("stages", [1, 2])
def test_a_checkpoint_gives_the_same_network_back(tmp_path: Path, stages: int) -> None:
    module = segmenter(stages=stages, encoder_weights=None)
    trainer = fit(tmp_path / "run", module, data(tmp_path, [(truth, truth) for truth in TRUTHS[:2]]))
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    content = torch.load(tmp_path / "one.ckpt", weights_only=True)
    assert plain(dict(content["hyper_parameters"]))
    defaults = {"compile": False, "gradient_checkpointing": False}
    assert content["hyper_parameters"] == MODEL | {"stages": stages, "optim": OPTIM} | defaults
    again = TrainingModule.load_from_checkpoint(
        tmp_path / "one.ckpt", weights_only=True, encoder_weights=None
    )
    several = images((64, 64), (50, 99))
    for one, other in zip(module.eval().predict(several), again.eval().predict(several), strict=True):
        assert torch.equal(one, other)


def test_a_checkpoint_needs_no_weights_file(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    torch.save(
        segmenter(encoder_depth=5, decoder_channels=None).network.stages[0].encoder.state_dict(), weights
    )
    module = segmenter(encoder_weights=str(weights))
    trainer = fit(tmp_path / "run", module, data(tmp_path, [(TRUTHS[0], TRUTHS[0])]))
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    weights.unlink()
    again = TrainingModule.load_from_checkpoint(
        tmp_path / "one.ckpt", weights_only=True, encoder_weights=None
    )
    several = images((64, 64))
    assert torch.equal(again.eval().predict(several)[0], module.eval().predict(several)[0])


# Training


class Each(pl.Callback):
    """Does something after each training step."""

    def __init__(self, action: Callable[[TrainingModule, int], None]) -> None:
        self.action = action

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.action(pl_module, batch_idx)


@pytest.mark.parametrize(("after", "stage", "step"), [(0, "train", 1), (1, "val", 2)])
def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path, after: int, stage: str, step: int) -> None:
    def poison(module: TrainingModule, batch: int) -> None:
        if batch == after:
            next(module.network.decoder_parameters()).data.fill_(float("nan"))

    with pytest.raises(InputError) as caught:
        fit(tmp_path / "run", segmenter(), data(tmp_path, [(TRUTHS[0], TRUTHS[0])]), Each(poison))
    text = str(caught.value)
    assert "\n" not in text
    assert f"{stage} loss is nan at step {step}" in text and "epoch 0" in text
    assert "optim.decoder_lr" in text and "optim.encoder_lr" in text


def test_a_loss_that_is_no_number_is_not_saved(tmp_path: Path) -> None:
    """As when the user or the machine stops the run in the middle of an epoch, between two looks at the
    losses.
    """
    kept: list[pl.Trainer] = []

    def poison_and_save(module: TrainingModule, batch: int) -> None:
        next(module.network.decoder_parameters()).data.fill_(float("nan"))
        if batch == 1:
            kept.append(module.trainer)
            module.trainer.save_checkpoint(tmp_path / "saved.ckpt")

    dm = data(tmp_path, [(TRUTHS[0], TRUTHS[0])], batch_size=1)
    with pytest.raises(InputError) as caught:
        fit(tmp_path / "run", segmenter(), dm, Each(poison_and_save))
    assert kept and "at step 1" in str(caught.value)
    assert not list(tmp_path.rglob("*.ckpt"))


class Waits(TorchFunctionMode):
    """Counts what makes the CPU wait for a GPU: numbers and copies that Python asks tensors for."""

    NAMES = ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__float__", "__int__", "__index__")
    FUNCTIONS = {getattr(Tensor, name) for name in NAMES} | {torch.nonzero, torch.is_nonzero}

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        caller = sys._getframe(1)
        # an optimiser's step, which is on the CPU
        if func in self.FUNCTIONS and caller.f_code.co_name != "_get_value":
            self.found.append(f"{func.__name__} in {caller.f_code.co_filename}:{caller.f_lineno}")
        return func(*args, **kwargs or {})


class Steps(pl.Callback):
    """What was counted from the start of each training step to the start of the next."""

    def __init__(self, waits: Waits) -> None:
        self.waits = waits
        self.of: list[list[str]] = []

    def on_train_batch_start(self, *args: Any) -> None:
        self.waits.found = []
        self.of.append(self.waits.found)


def four_steps(tmp_path: Path, step: pl.Callback, accelerator: str = "cpu", **changes: Any) -> None:
    dm = data(tmp_path, [(TRUTHS[0], TRUTHS[0])], batch_size=1)
    dm.cache = str(tmp_path / "cache")  # so that loading a batch is no more than a copy
    module = segmenter(**changes, optim=OPTIM | {"ema_decay": 0.9})
    fit(tmp_path / "run", module, dm, step, ema_decay=0.9, gradient_clip_val=1.0, accelerator=accelerator)


@pytest.mark.parametrize("changes", [{}, {"stages": 2, "loss": "structure"}])
def test_a_training_step_does_not_wait_for_the_gpu(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Beside the first step of an epoch, which looks at its numbers, and the last, which logs the epoch's."""
    waits = Waits()
    steps = Steps(waits)
    with waits:
        four_steps(tmp_path, steps, **changes)
    assert len(steps.of) == 4 and steps.of[0] and steps.of[3]
    assert steps.of[1:3] == [[], []]


class NoWaiting(pl.Callback):
    """Lets CUDA refuse to wait in the steps between the first and the last."""

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        torch.cuda.set_sync_debug_mode("error" if batch_idx in (1, 2) else "default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_agrees_that_a_training_step_does_not_wait(tmp_path: Path) -> None:
    try:
        four_steps(tmp_path, NoWaiting(), "gpu")
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_learning_rates_arrive(tmp_path: Path) -> None:
    module = segmenter(
        optim=OPTIM | {"encoder_lr": 0.0, "decoder_lr": 0.05, "warmup": 0.0, "schedule": "constant"}
    )
    before = {name: value.clone() for name, value in module.network.named_parameters()}
    trainer = fit(tmp_path / "run", module, data(tmp_path, [(TRUTHS[0], TRUTHS[0])]))
    groups = {group["name"]: group for group in trainer.optimizers[0].param_groups}
    assert {name: group["lr"] for name, group in groups.items()} == {"encoder": 0.0, "decoder": 0.05}
    assert {id(p) for group in groups.values() for p in group["params"]} == {
        id(p) for p in module.parameters()
    }
    moved = {
        name for name, value in module.network.named_parameters() if not torch.equal(value, before[name])
    }
    assert moved and not any(".encoder." in name for name in moved)
    assert sum(value.numel() for name, value in before.items() if name in moved) > 100


def test_training_batches_have_several_sizes_and_validation_its_own(tmp_path: Path) -> None:
    module = segmenter()
    seen: dict[bool, list[int]] = {True: [], False: []}
    module.network.register_forward_pre_hook(
        lambda network, images: seen[network.training].append(images[0].shape[-1])
    )
    dm = data(tmp_path, [(TRUTHS[0], TRUTHS[0])], scales=[0.5, 1, 1.5])
    fit(tmp_path / "run", module, dm, max_epochs=12)
    assert set(seen[True]) == {32, 64, 96} and len(seen[True]) == 24
    assert set(seen[False]) == {64}


def test_gradient_checkpointing_saves_memory_and_changes_nothing() -> None:
    networks = [segmenter(gradient_checkpointing=on).network for on in (False, True)]
    networks[1].load_state_dict(networks[0].state_dict())
    image, kept = torch.rand(2, 3, SIZE, SIZE), []
    for network in networks:
        storages: dict[int, int] = {}

        def keep(tensor: Tensor, storages: dict[int, int] = storages) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        for _ in range(2):
            storages.clear()  # the addresses of the pass before are free for other tensors
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                logits = network(image)[-1]
            logits.square().mean().backward()
        kept.append(sum(storages.values()))
    assert kept[1] < kept[0]
    parameters = zip(*(network.parameters() for network in networks), strict=True)
    assert all(torch.equal(ours.grad, theirs.grad) for ours, theirs in parameters)
    states = [network.state_dict() for network in networks]
    for name, value in states[0].items():  # such as the running averages of batch norms
        assert name.endswith("num_batches_tracked") or torch.equal(value, states[1][name]), name


@pytest.mark.slow
@pytest.mark.nightly
def test_compiled_network_has_the_same_weights_and_numbers(tmp_path: Path) -> None:
    module, eager = segmenter(compile=True), segmenter()
    assert module.state_dict().keys() == eager.state_dict().keys()
    eager.load_state_dict(module.state_dict())
    image = torch.rand(2, 3, SIZE, SIZE)
    torch.testing.assert_close(module.eval()(image), eager.eval()(image), rtol=1e-3, atol=1e-4)
    trainer = fit(tmp_path / "run", module, data(tmp_path, [(TRUTHS[0], TRUTHS[0])]), ema_decay=0.5)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    loaded = load_checkpoint(ModelSource.of(str(tmp_path / "one.ckpt")))
    torch.testing.assert_close(loaded.eval()(image), module.eval()(image), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_compiling_without_a_compiler_is_one_line(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/no/compiler")
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "/no/compiler"))
    with pytest.raises(SystemExit, match=r"model\.compile=true does not work here [^\n]*$"):
        train(*SMALL, "model.compile=true")


def test_the_average_of_the_weights_is_what_is_kept_validated_and_tested(tmp_path: Path) -> None:
    decay, seen = 0.6, []

    def remember(module: TrainingModule, batch: int) -> None:
        seen.append({name: value.detach().clone() for name, value in module.named_parameters()})

    dm = data(tmp_path, list(zip(PREDICTIONS, TRUTHS, strict=True)))
    run = tmp_path / "run"
    trainer = fit(
        run, segmenter(optim=OPTIM | {"ema_decay": decay}), dm, Each(remember), ema_decay=decay, max_epochs=1
    )
    assert len(seen) == 2
    average = {name: decay * seen[0][name] + (1 - decay) * seen[1][name] for name in seen[0]}
    kept = torch.load(RunFolder(run).best_checkpoint, weights_only=True)
    model = load_checkpoint(ModelSource.of(str(RunFolder(run).best_checkpoint)))
    parameters = dict(model.named_parameters())
    for name, value in average.items():
        assert torch.allclose(kept["state_dict"][name], value, atol=1e-6), name
        assert torch.equal(kept["current_model_state"][name], seen[-1][name]), name
        assert torch.equal(parameters[name], kept["state_dict"][name]), name
    assert any(not torch.allclose(value, seen[-1][name], atol=1e-4) for name, value in average.items())

    validated = float(trainer.callback_metrics["val/loss"])
    averaged = TrainingModule.load_from_checkpoint(RunFolder(run).best_checkpoint, weights_only=True)
    assert bare_trainer().validate(averaged, dm, verbose=False)[0]["val/loss"] == pytest.approx(
        validated, rel=1e-5
    )

    tested = trainer.test(ScoringModule(model), dm, verbose=False)[0]["test/mae"]
    last = load_checkpoint(ModelSource.of(str(RunFolder(run).best_checkpoint)))
    last.load_state_dict(kept["current_model_state"])
    errors = []
    for one in (model, last):
        pairs = [
            (cv2.imread(str(path))[..., ::-1], int(path.stem[-1]))
            for path in (tmp_path / "images").glob("test*")
        ]
        pictures = [torch.tensor(np.ascontiguousarray(image)).permute(2, 0, 1) for image, _ in pairs]
        results = one.eval().predict(pictures)
        errors.append(
            np.mean([np.abs(p.numpy() - TRUTHS[n]).mean() for p, (_, n) in zip(results, pairs, strict=True)])
        )
    assert tested == pytest.approx(errors[0], abs=1e-5)
    assert tested != pytest.approx(errors[1], abs=1e-4)


# Values that cannot work


@pytest.mark.parametrize("threshold", [0, 1, 1.5, -0.1, float("nan"), None, "half"])
def test_a_threshold_lies_between_0_and_1(threshold: Any) -> None:
    with pytest.raises(InputError, match=r"model\.threshold="):
        segmenter(threshold=threshold)


def test_names_are_checked_before_anything_is_built() -> None:
    with pytest.raises(InputError, match=r"model\.loss=dise is unknown: did you mean dice"):
        segmenter(loss="dise")
    with pytest.raises(InputError, match=r"optim\.optimizer=adamm is unknown"):
        segmenter(optim=OPTIM | {"optimizer": "adamm"})
