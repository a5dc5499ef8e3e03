"""Runs written by a test, with scores that are known."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

DEFINITIONS = {
    name: f"what {name} is" for name in ("dice", "iou", "precision", "recall", "mae", "pooled_dice", "test")
}


def write_run(
    folder: Path,
    dice: Sequence[float],
    val: float = 0.8,
    seed: int = 0,
    changed: Any = (),
    numbers: Sequence[int] | None = None,
    sources: Sequence[str] | None = None,
    **metrics: Any,
) -> Path:
    """A finished run.

    Args:
        folder: where.
        dice: of each test image; half of them have small polyps.
        val: validation Dice.
        seed: of the training.
        changed: overrides of the configuration, such as model.encoder=resnet34.
        numbers: of the test images, which are named image_NUMBER; from 0 on by default.
        sources: of each test image, if there are several.
        metrics: what is different in metrics.json; a dict is merged.
    """
    config = OmegaConf.create(
        {
            "name": folder.name,
            "seed": seed,
            "resume": None,
            "monitor": "val/dice",
            "data": {"dataset": "folder", "split": "official", "image_size": 64, "root": str(folder)},
            "augment": {"transforms": []},
            "model": {
                "arch": "unet",
                "encoder": "mobilenet_v2",
                "encoder_weights": None,
                "encoder_depth": None,
                "decoder_channels": [16, 16, 8, 8, 8],
                "decoder_attention": None,
                "stages": 1,
                "image_size": 64,
                "threshold": 0.5,
            },
            "optim": {"decoder_lr": 1e-3},
            "trainer": {"max_epochs": 2},
        }
    )
    config.merge_with_dotlist(list(changed))
    folder.mkdir(parents=True)
    OmegaConf.save(config, folder / "config.yaml")
    (folder / "train.log").write_text("epoch 1 of 2   val/dice 0.5\nepoch 2 of 2   val/dice 0.8\n")
    scores = np.asarray(dice, dtype=float)
    rows = [
        {"stem": f"image_{n}", **({"source": sources[place]} if sources else {}), "tp": 50, "fp": 10,
         "fn": 10 + n, "dice": score, "iou": score, "precision": score, "recall": score, "mae": 1 - score,
         "polyp_share": 0.02 if n % 2 else 0.1}
        for place, (n, score) in enumerate(zip(numbers or range(len(scores)), scores, strict=True))
    ]  # fmt: skip
    with (folder / "per_image.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    mean = float(scores.mean())
    content: dict[str, Any] = {
        "test": dict.fromkeys(("dice", "iou", "precision", "recall", "mae", "pooled_dice"), mean)
        | {"n": len(rows)},
        "best": {"monitor": "val/dice", "value": val, "epoch": 1},
        "definitions": DEFINITIONS | {"best": "the monitored number"},
        "seed": seed,
        "data": {
            "dataset": "folder",
            "fingerprint": "abc",
            "split": "official",
            "image_size": [64, 64],
            "images": {"train": 100, "val": 10, "test": len(rows)},
        },
        "parameters": 2_000_000,
        "epochs": 2,
        "seconds": 50.0,
        "peak_memory_mb": 1000,
        "device": "a CPU",
        "precision": "32-true",
        "versions": {"polyp": "0.2.0"},
    }
    for name, value in metrics.items():
        content[name] = content[name] | value if isinstance(value, dict) else value
    (folder / "metrics.json").write_text(json.dumps(content))
    return folder


def write_folds(
    folder: Path,
    dice: Sequence[float],
    vals: Sequence[float],
    only: Sequence[int] | None = None,
    shift: int = 0,
    seed: int = 0,
    changed: Sequence[str] = (),
) -> list[Path]:
    """The finished runs of a cross-validation, in folder/0, folder/1, ...

    Args:
        folder: where.
        dice: of all images; image n is in fold (n + shift) modulo the number of folds.
        vals: validation Dice of each fold.
        only: the folds that were trained; all by default.
        shift: another one is another division of the same images.
        seed, changed: as for `write_run`.
    """
    runs = []
    for fold in range(len(vals)) if only is None else only:
        numbers = [n for n in range(len(dice)) if (n + shift) % len(vals) == fold]
        overrides = [*changed, f"data.folds={len(vals)}", f"data.fold={fold}", "data.split_seed=0"]
        runs.append(
            write_run(
                folder / str(fold),
                [dice[n] for n in numbers],
                vals[fold],
                seed,
                overrides,
                numbers,
                data={"split": f"{len(vals)} folds", "folds": len(vals), "fold": fold},
            )
        )
    return runs


def write_model_run(folder: Path, seed: int = 0) -> Path:
    """A run with a small network of random weights, whose probabilities are of all sizes."""
    import torch

    from polyp.model.segmenter import PolypSegmenter

    torch.manual_seed(seed)
    write_run(folder, [0.5], seed=seed)
    settings = {
        "arch": "unet",
        "encoder": "mobilenet_v2",
        "encoder_weights": None,
        "encoder_depth": 3,
        "decoder_channels": [16, 16, 8],
        "decoder_attention": None,
        "stages": 1,
        "image_size": 64,
        "loss": "dice",
        "threshold": 0.5,
    }
    model = PolypSegmenter(**{name: value for name, value in settings.items() if name != "loss"}).eval()
    picture = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8).float().div(255)
    with torch.inference_mode():
        logits = model(torch.nn.functional.avg_pool2d(picture, 9, 1, 4))
    head = model.network.state_dict()
    *_, weight, bias = (name for name in head if "segmentation_head" in name)
    with torch.no_grad():
        head[weight].mul_(2 / logits.std())
        head[bias].copy_((head[bias] - logits.mean()) * 2 / logits.std())
    (folder / "checkpoints").mkdir()
    content = {"hyper_parameters": settings, "state_dict": model.state_dict()}
    torch.save(content, folder / "checkpoints" / "best.ckpt")
    return folder


def on_drawn_images(run: Path, count: int = 20, size: int = 48) -> Path:
    """The same run, as if its data were drawn images."""
    config = OmegaConf.load(run / "config.yaml")
    config.data = {
        **{
            "dataset": "synthetic",
            "count": count,
            "size": size,
            "drawing_seed": 0,
            "split": "random",
            "root": None,
        },
        **{"image_size": 64, "batch_size": 4, "num_workers": 0, "cache": True, "allow_empty": False},
    }
    OmegaConf.save(config, run / "config.yaml")
    stems, tenth = [f"synthetic_{number:04}" for number in range(count)], count // 10
    split = {"train": stems[2 * tenth :], "val": stems[tenth : 2 * tenth], "test": stems[:tenth]}
    (run / "split.json").write_text(json.dumps(split))
    return run
