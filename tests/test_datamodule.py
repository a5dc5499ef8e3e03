"""The data of a run: samples and batches, which nothing but the seed decides."""

import gc
import logging
import multiprocessing
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import SMALL, Train
from drawn import picture, polyp, write
from PIL import Image
from torch import Tensor

from polyp.data.datamodule import PolypDataModule
from polyp.data.masks import read_mask
from polyp.errors import InputError
from polyp.images import read_image
from polyp.training.module import TrainingModule

COUNT = 20  # 16 / 2 / 2
FLIPS = [{"_target_": f"albumentations.{way}Flip", "p": 0.5} for way in ("Horizontal", "Vertical")]

Batches = list[dict[str, Any]]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("drawn")


def module(root: Any, **changes: Any) -> PolypDataModule:
    settings: dict[str, Any] = {
        "dataset": "synthetic",
        "split": "random",
        "split_seed": 0,
        "image_size": [48, 64],
        "batch_size": 5,
        "num_workers": 0,
        "cache": True,
        "allow_empty": False,
        "augment": [],
        "seed": 0,
    }
    if changes.get("dataset", "synthetic") == "synthetic":
        settings |= {"count": COUNT, "size": 48}
    return PolypDataModule(**settings | {"root": str(root) if isinstance(root, Path) else root} | changes)


def ready(root: Path, **changes: Any) -> PolypDataModule:
    data_module = module(root, **changes)
    data_module.prepare_data()
    data_module.setup("fit")
    return data_module


def train_batches(dm: PolypDataModule, epoch: int) -> Batches:
    loader = dm.train_dataloader()
    loader.sampler.set_epoch(epoch)  # type: ignore[union-attr]  # Lightning's part
    return list(loader)


def are_equal(one: Batches, other: Batches) -> bool:
    return len(one) == len(other) and all(
        a["stem"] == b["stem"] and torch.equal(a["image"], b["image"]) and torch.equal(a["mask"], b["mask"])
        for a, b in zip(one, other, strict=True)
    )


# Samples and batches


def test_a_training_batch(drawn: Path) -> None:
    for batch in train_batches(ready(drawn, augment=FLIPS), 0):
        assert batch["image"].shape == (5, 3, 48, 64) and batch["image"].dtype == torch.uint8
        assert batch["mask"].shape == (5, 48, 64) and batch["mask"].dtype == torch.uint8
        assert set(batch["mask"].unique().tolist()) == {0, 1}
        assert batch["size"].shape == (5, 2) and len(set(batch["stem"])) == 5


@pytest.mark.parametrize("cache", [True, False])
def test_samples_are_the_files(drawn: Path, cache: bool) -> None:
    dm = ready(drawn, cache=cache)
    root = dm.source.prepare()
    resized = {}
    for loader in (dm.train_dataloader(), dm.val_dataloader()):
        for batch in loader:
            for image, mask, stem, size in zip(
                *(batch[k] for k in ("image", "mask", "stem", "size")), strict=True
            ):
                resized[stem] = (image, mask, tuple(size.tolist()))
    assert len(resized) == 15 + 2
    for stem, (image, mask, size) in resized.items():
        original = read_image(root / "images" / f"{stem}.jpg"), read_mask(root / "masks" / f"{stem}.png")
        assert size == original[1].shape
        # Red stays red and up stays up; cv2's resizing is another, so near is near enough.
        near = cv2.resize(original[0], (64, 48), interpolation=cv2.INTER_AREA).astype(float)
        assert np.abs(image.permute(1, 2, 0).numpy() - near).mean() < 8
        assert (
            mask.numpy() != cv2.resize(original[1], (64, 48), interpolation=cv2.INTER_NEAREST)
        ).mean() < 0.03
        assert near[..., 0].mean() > near[..., 2].mean() + 8


def test_test_images_are_the_files_at_their_own_sizes(drawn: Path) -> None:
    dm = ready(drawn)
    root = dm.source.prepare()
    ((batch,),) = dm.test_dataloader()
    assert all(isinstance(values, list) and len(values) == 2 for values in batch.values())
    for image, mask, stem, size in zip(
        *(batch[key] for key in ("image", "mask", "stem", "size")), strict=True
    ):
        assert image.dtype == mask.dtype == torch.uint8
        assert np.array_equal(image.permute(1, 2, 0).numpy(), read_image(root / "images" / f"{stem}.jpg"))
        assert np.array_equal(mask.numpy(), read_mask(root / "masks" / f"{stem}.png"))
        assert tuple(size.tolist()) == tuple(mask.shape)


def test_subsets_are_apart_and_complete(drawn: Path) -> None:
    dm = ready(drawn)
    batches = {
        "train": [stem for batch in train_batches(dm, 0) for stem in batch["stem"]],
        "val": [stem for batch in dm.val_dataloader() for stem in batch["stem"]],
        "test": [stem for loader in dm.test_dataloader() for batch in loader for stem in batch["stem"]],
    }
    assert {name: len(stems) for name, stems in batches.items()} == {"train": 15, "val": 2, "test": 2}
    everything = [stem for stems in batches.values() for stem in stems]
    assert len(set(everything)) == len(everything)
    assert dm.describe()["images"] == {"train": 16, "val": 2, "test": 2}
    assert dm.describe()["image_size"] == [48, 64]


@pytest.mark.parametrize(("batch_size", "train", "val"), [(1, 16, 2), (3, 5, 1), (16, 1, 1)])
def test_an_incomplete_last_batch_is_for_scores_only(
    drawn: Path, batch_size: int, train: int, val: int
) -> None:
    dm = ready(drawn, batch_size=batch_size)
    batches = train_batches(dm, 0)
    assert [len(batch["stem"]) for batch in batches] == [batch_size] * train
    assert len(dm.train_dataloader()) == train
    for loader in (dm.val_dataloader(), *dm.test_dataloader()):
        assert [len(batch["stem"]) for batch in loader] == [min(batch_size, 2)] * val


# What decides what is seen


def test_seed_and_epoch_decide_and_workers_do_not(drawn: Path) -> None:
    alone = ready(drawn, augment=FLIPS)
    first, second = train_batches(alone, 0), train_batches(alone, 1)
    assert are_equal(first, train_batches(alone, 0))
    assert not are_equal(first, second)
    np.random.seed(3)
    torch.manual_seed(3)
    helped = ready(drawn, augment=FLIPS, num_workers=2)
    loader = helped.train_dataloader()
    for epoch, expected in ((0, first), (1, second), (0, first)):  # the same workers, epoch after epoch
        loader.sampler.set_epoch(epoch)  # type: ignore[union-attr]
        assert are_equal(list(loader), expected), epoch
    other = ready(drawn, augment=FLIPS, seed=1)
    assert other.subsets == alone.subsets and not are_equal(train_batches(other, 0), first)


def test_the_random_split_has_its_own_seed(drawn: Path) -> None:
    first, again, other = (ready(drawn, split_seed=number, seed=number % 2) for number in (1, 1, 2))
    assert first.subsets == again.subsets != other.subsets
    assert first.describe()["split_seed"] == 1 and other.describe()["split_seed"] == 2
    split = drawn / "split.csv"
    split.write_text(
        "\n".join(["stem,subset", *(f"{s},{k}" for k, stems in first.subsets.items() for s in stems)])
    )
    assert "split_seed" not in ready(drawn, split=str(split), split_seed=1).describe()


def test_epochs_differ_in_order_and_in_what_is_done(drawn: Path) -> None:
    dm = ready(drawn, augment=FLIPS, batch_size=16)
    epochs = []
    for epoch in range(4):
        (batch,) = train_batches(dm, epoch)
        epochs.append(dict(zip(batch["stem"], batch["image"], strict=True)))
    assert len({tuple(images) for images in epochs}) == 4
    for stem, image in epochs[0].items():
        flipped = [image.flip(dims) for dims in ((), (1,), (2,), (1, 2))]
        assert all(any(torch.equal(other[stem], one) for one in flipped) for other in epochs)
    assert any(not torch.equal(epochs[0][stem], epochs[1][stem]) for stem in epochs[0])


def test_neighbours_in_a_batch_are_augmented_apart(drawn: Path) -> None:
    plain, flipped = (train_batches(ready(drawn, augment=a, batch_size=16), 0)[0] for a in ([], FLIPS))
    assert plain["stem"] == flipped["stem"]
    same_image = [torch.equal(a, b) for a, b in zip(plain["image"], flipped["image"], strict=True)]
    assert 0 < sum(same_image) < 16


def test_validation_and_test_are_never_augmented(drawn: Path) -> None:
    plain, augmented = ready(drawn), ready(drawn, augment=[FLIPS[0] | {"p": 1.0}])
    assert are_equal(list(plain.val_dataloader()), list(augmented.val_dataloader()))
    for one, other in zip(plain.test_dataloader()[0], augmented.test_dataloader()[0], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one["image"], other["image"], strict=True))
    assert not are_equal(train_batches(plain, 0), train_batches(augmented, 0))


def test_the_cache_changes_nothing(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings: dict[str, Any] = {"augment": FLIPS}
    without = ready(drawn, cache=False, **settings)
    assert not list(tmp_path.rglob("*.npy"))
    for cache in (True, True, str(tmp_path / "elsewhere")):  # built, read again, in another place
        kept = ready(drawn, cache=cache, **settings)
        for epoch in (0, 1):
            assert are_equal(train_batches(without, epoch), train_batches(kept, epoch))
        assert are_equal(list(without.val_dataloader()), list(kept.val_dataloader()))
        assert without.describe() == kept.describe()
    assert list((tmp_path / "cache").rglob("*.npy")) and list((tmp_path / "elsewhere").rglob("*.npy"))


def test_each_file_is_decoded_once(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode, counts = Image.open, []
    monkeypatch.setattr(Image, "open", lambda *a, **b: (counts.append(1), decode(*a, **b))[-1])
    module(drawn).prepare_data()
    for size, expected in ((64, 2 * COUNT), (64, 0), (96, 2 * COUNT), (64, 0)):
        counts.clear()
        dm = ready(drawn, image_size=size, cache=str(tmp_path))
        train_batches(dm, 0), list(dm.val_dataloader())
        assert len(counts) == expected, size


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (2, 1), (99, 2)])
def test_evaluation_has_its_own_batches_and_workers(drawn: Path, batch_size: int, workers: int) -> None:
    plain, other = ready(drawn), ready(drawn, eval_batch_size=batch_size, eval_workers=workers)
    for loaders in (
        (plain.val_dataloader(), other.val_dataloader()),
        (plain.test_dataloader()[0], other.test_dataloader()[0]),
    ):
        prediction_images, theirs = (
            [image for batch in loader for image in batch["image"]] for loader in loaders
        )
        assert all(torch.equal(a, b) for a, b in zip(prediction_images, theirs, strict=True))
        assert (loaders[1].batch_size, loaders[1].num_workers) == (batch_size, workers)
    assert other.train_dataloader().batch_size == 5 and other.train_dataloader().num_workers == 0
    del loaders
    gc.collect()
    assert not multiprocessing.active_children()


def test_evaluation_takes_training_s_batch_size_and_workers_unless_told(drawn: Path) -> None:
    dm = ready(drawn, num_workers=1, batch_size=3)
    for loader in (dm.val_dataloader(), *dm.test_dataloader()):
        assert (loader.batch_size, loader.num_workers) == (3, 1)


def test_showcase_goes_from_the_smallest_polyp_to_the_largest(drawn: Path) -> None:
    dm = ready(drawn)
    root = dm.source.prepare()
    share = {stem: read_mask(root / "masks" / f"{stem}.png").mean() for stem in dm.subsets["train"]}
    shown = dm.showcase("train")
    assert len(shown) == 6 and shown == sorted(shown, key=share.__getitem__)
    assert share[shown[0]] == min(share.values()) and share[shown[-1]] == max(share.values())
    again = ready(drawn, image_size=32, batch_size=2, cache=False, augment=FLIPS)
    assert again.showcase("train") == shown
    assert len(dm.showcase("test")) == 2 and len(dm.showcase("train", count=99)) == 16
    assert len(dm.showcase("train", count=1)) == 1


# Parts of an epoch


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The images of each training step of the runs of a test."""
    batches: list[Tensor] = []
    step = TrainingModule.training_step

    def recorded(self: TrainingModule, batch: Any, batch_idx: int) -> Tensor:
        batches.append(batch["image"].clone())
        return step(self, batch, batch_idx)

    monkeypatch.setattr(TrainingModule, "training_step", recorded)
    return batches


@pytest.mark.slow
def test_overfit_batches_trains_on_one_batch_also_when_resumed(train: Train, steps: list[Tensor]) -> None:
    run = train(*SMALL, "+trainer.overfit_batches=1", "trainer.max_epochs=2") / "run"
    train(f"resume={run}", "trainer.max_epochs=4")
    assert len(steps) == 4
    assert all(torch.equal(images, steps[0]) for images in steps)  # augmented alike, too


@pytest.mark.slow
def test_epochs_of_some_batches_go_on_with_the_next_epoch(
    train: Train, steps: list[Tensor], tmp_path: Path
) -> None:
    part = (*SMALL, "+trainer.limit_train_batches=2")
    train(*part, "trainer.max_epochs=2", f"hydra.run.dir={tmp_path}/whole")
    whole = list(steps)
    steps.clear()
    run = train(*part) / "run"
    train(f"resume={run}", "trainer.max_epochs=2")
    assert len(whole) == len(steps) == 4
    assert all(torch.equal(one, other) for one, other in zip(whole, steps, strict=True))


# Folders


def clinic(root: Path, count: int = 12) -> Path:
    """As CVC-ClinicDB lies on a disk: numbered TIFFs in 'Original' and 'Ground Truth'."""
    rng = np.random.default_rng(0)
    for number in range(1, count + 1):
        image = cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), (80, 60), interpolation=cv2.INTER_CUBIC)
        mask = cv2.circle(np.zeros((60, 80), np.uint8), (20 + 3 * number, 30), 8 + number, 255, -1)
        for folder, pixels in (("Original", image), ("Ground Truth", mask)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(root / folder / f"{number}.tif"), pixels)
    return root


def test_a_folder_like_clinicdb(tmp_path: Path) -> None:
    root = clinic(tmp_path / "CVC ClinicDB")
    named = ready(root, dataset="folder", images="Original", masks="Ground Truth", batch_size=4)
    dm = ready(root, dataset="folder", batch_size=4)
    assert dm.subsets == named.subsets
    assert [len(batch["stem"]) for batch in train_batches(dm, 0)] == [4, 4]
    ((batch,),) = dm.test_dataloader()
    assert [tuple(image.shape) for image in batch["image"]] == [(3, 60, 80)]
    assert batch["mask"][0].sum() > 100
    # nothing is written beside the user's data
    assert sorted(os.listdir(root)) == ["Ground Truth", "Original"]


def test_an_empty_mask_is_a_mistake_unless_it_is_meant(tmp_path: Path) -> None:
    root = clinic(tmp_path)
    cv2.imwrite(str(root / "Ground Truth" / "3.tif"), np.zeros((60, 80), np.uint8))
    settings: dict[str, Any] = {"dataset": "folder", "batch_size": 4}
    with pytest.raises(InputError, match=r"3\.tif: the mask is empty \(data\.allow_empty=true"):
        ready(root, **settings)
    assert ready(root, **settings, allow_empty=True).describe()["images"] == {
        "train": 10,
        "val": 1,
        "test": 1,
    }


# Several data sets, folds and normal frames


def small(root: Path, count: int = 14, first: int = 0, folder: str = "") -> Path:
    """`count` pairs whose pictures have nothing in common; other numbers give other pictures."""
    for number in range(first, first + count):
        write(root / folder / f"images/{number}.jpg", picture(number))
        write(root / folder / f"masks/{number}.png", polyp(number) * 255)
    return root


def folders(root: Any, **changes: Any) -> PolypDataModule:
    settings = {"dataset": "folder", "split": "auto", "image_size": 32, "batch_size": 4} | changes
    data_module = module(root, **settings)
    data_module.check()
    data_module.setup("fit")
    return data_module


def stems_of(dm: PolypDataModule) -> dict[str, str]:
    return {stem: name for name in ("train", "val", "test") for stem in dm.subsets[name]}


@pytest.mark.parametrize("as_mapping", [False, True])
def test_several_data_sets(tmp_path: Path, as_mapping: bool, caplog: pytest.LogCaptureFixture) -> None:
    kvasir, clinic = small(tmp_path / "Kvasir-SEG"), small(tmp_path / "CVC", first=7)
    root = {"k": str(kvasir), "c": str(clinic)} if as_mapping else [str(kvasir), str(clinic)]
    names = ["k", "c"] if as_mapping else ["Kvasir-SEG", "CVC"]
    with caplog.at_level(logging.INFO):
        dm = folders(root)
    assert sorted(dm.sources) == sorted(names) and dm.source_of(f"{names[0]}/0") == names[0]
    assert dm.describe()["sources"] == {name: 14 for name in names}
    assert f"14 {names[0]}" in caplog.text and f"14 {names[1]}" in caplog.text
    subset = stems_of(dm)
    assert len(subset) == 28  # equal stems in both are two images
    for number in range(7, 14):  # and the same pictures stay together
        assert subset[f"{names[0]}/{number}"] == subset[f"{names[1]}/{number}"]


def test_a_data_set_among_several_has_keys_of_its_own(tmp_path: Path) -> None:
    first = small(tmp_path / "first")
    for number in range(14):
        write(tmp_path / f"second/frames of mine/{number}_0000.jpg", picture(20 + number))
        write(tmp_path / f"second/truth of mine/{number}.png", polyp(number) * 2 + (polyp(number + 3) & 1))
    second = {"root": str(tmp_path / "second"), "images": "frames of mine", "masks": "truth of mine"}
    dm = folders({"a": str(first), "b": second | {"image_name": "{stem}_0000", "polyp_values": [2, 3]}})
    assert dm.describe()["sources"] == {"a": 14, "b": 14}
    for pair in dm.pairs:
        number = int(pair.stem.split("/")[1])
        assert np.array_equal(pair.read()[1], polyp(number))


@pytest.mark.parametrize(
    ("root", "part"),
    [
        ([], "data.root=FOLDER is needed"),
        ({}, "data.root=FOLDER is needed"),
        (3, "must be a folder, a list of folders, or a mapping"),
        ({"a": {"root": ["x"]}}, "must be a folder, or a mapping with root: FOLDER"),
        ([3], "must be a folder, a list of folders, or a mapping"),
        ({"": "x"}, "needs a name"),
        (["gone"], "data.root=gone is not a folder"),
        (["a/x", "b/x"], "two folders are named x"),
        ({"a": {"images": "x"}}, "data.root.a"),
        ({"a": {"root": "x", "mask": "y"}}, "data.root.a.mask is unknown: did you mean masks"),
    ],
)
def test_roots_that_cannot_be(root: Any, part: str) -> None:
    with pytest.raises(InputError) as caught:
        folders(root)
    assert part in str(caught.value) and "\n" not in str(caught.value)


def test_codings_are_judged_by_source(tmp_path: Path) -> None:
    first, second = small(tmp_path / "first"), small(tmp_path / "second", first=20)
    for path in (second / "masks").iterdir():
        write(path, polyp(int(path.stem)) + 2 * polyp(int(path.stem) + 3))
    with pytest.raises(InputError, match=r"second/masks: the masks hold several values") as caught:
        folders([str(first), str(second)])
    assert "\n" not in str(caught.value) and "255" not in str(caught.value)


def test_folds_test_every_image_once(tmp_path: Path) -> None:
    root = str(small(tmp_path / "data", 20))
    modules = [folders(root, folds=4, fold=fold, group="folder" if fold > 9 else None) for fold in range(4)]
    assert sorted(stem for dm in modules for stem in dm.subsets["test"]) == sorted(modules[0].rows)
    for fold, dm in enumerate(modules):
        assert len(stems_of(dm)) == 20 and dm.subsets["val"]
        assert (dm.describe()["folds"], dm.describe()["fold"], dm.describe()["split_seed"]) == (4, fold, 0)
    assert "folds" not in folders(root).describe() and "sources" not in folders(root).describe()


def test_normal_frames(tmp_path: Path) -> None:
    root = small(tmp_path / "data")
    for video in range(5):
        for number in range(2):
            write(tmp_path / f"normal/video{video}/{number}.jpg", picture(100 + 2 * video + number))
    dm = folders(str(root), normal=str(tmp_path / "normal"))
    assert dm.describe()["images"] == {"train": 12 + 8, "val": 1, "test": 1, "normal": 2}
    trained = {stem for stem in dm.subsets["train"] if stem.startswith("normal/")}
    assert len(trained) == 8 and not trained & set(dm.subsets["normal"])
    masks = {
        stem: mask
        for batch in dm.train_dataloader()
        for stem, mask in zip(batch["stem"], batch["mask"], strict=True)
    }
    assert {stem for stem, mask in masks.items() if not mask.any()} == trained
    tests = [[stem for batch in loader for stem in batch["stem"]] for loader in dm.test_dataloader()]
    assert tests == [dm.subsets["test"], dm.subsets["normal"]]
    assert dm.sources == [] and len(folders(str(root)).test_dataloader()) == 1


def test_normal_frames_are_no_masks_and_no_source(tmp_path: Path) -> None:
    root = small(tmp_path / "data")
    with pytest.raises(InputError, match=r"data\.normal=.*gone is not a folder"):
        folders(str(root), normal=str(tmp_path / "gone"))
    (small(tmp_path / "frames", 6, 50)).joinpath("masks/50.png").unlink()
    dm = folders(str(root), normal=str(tmp_path / "frames"))
    assert sum(stem.startswith("normal/") for stem in dm.rows) == 6
    both = small(small(tmp_path / "both", folder="normal"), first=20, folder="other")
    assert folders(str(both)).describe()["sources"] == {"normal": 14, "other": 14}
    with pytest.raises(InputError, match=r"data\.normal=.*has images in a folder 'normal'"):
        folders(str(both), normal=str(tmp_path / "frames"))


def test_images_without_a_mask_can_be_empty(tmp_path: Path) -> None:
    root = small(tmp_path)
    (root / "masks/3.png").unlink()
    with pytest.raises(InputError, match=r"images/3\.jpg: no mask"):
        folders(str(root))
    dm = folders(str(root), missing_mask="empty")
    assert dm.inspection.shares[dm.rows["3"]] == 0 < dm.inspection.shares[dm.rows["4"]]
    assert all(pair.mask is not None for pair in dm.pairs if pair.stem != "3")
    with pytest.raises(InputError, match=r"data\.missing_mask=yes is unknown"):
        folders(str(root), missing_mask="yes")


def test_ignored_pixels_reach_the_batches(tmp_path: Path) -> None:
    root = small(tmp_path)
    for path in (root / "masks").iterdir():
        mask = polyp(int(path.stem))
        mask[0] = 255
        write(path, mask)
    with pytest.raises(InputError, match=r"data\.ignore_value=255"):
        folders(str(root))
    dm = folders(str(root), polyp_values=[1], ignore_value=255)
    (batch,) = dm.val_dataloader()
    assert set(batch["mask"].unique().tolist()) == {0, 1, 255}
    share = {pair.stem: polyp(int(pair.stem)).sum() / (39 * 48) for pair in dm.pairs}
    assert all(abs(dm.inspection.shares[row] - share[stem]) < 0.01 for stem, row in dm.rows.items())


def test_suspicious_masks_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = small(tmp_path)
    for path in (root / "masks").iterdir():
        write(path, 255 - polyp(int(path.stem)) * 255)
    folders(str(root))
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "look inverted or full" in record.message and "== 0" in record.message
    caplog.clear()
    folders(str(root), polyp_values="== 0")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


# What is refused


def refusal(root: Path, *parts: str, **changes: Any) -> str:
    with pytest.raises(InputError) as caught:
        module(root, **changes)
    text = str(caught.value)
    assert "\n" not in text and all(part in text for part in parts), text
    return text


def test_a_batch_larger_than_the_training_set(drawn: Path) -> None:
    with pytest.raises(InputError) as caught:
        ready(drawn, batch_size=17)
    text = str(caught.value)
    assert "\n" not in text and "data.batch_size=17" in text and " 16 training images" in text
    ready(drawn, batch_size=16)


@pytest.mark.parametrize("value", [0, -1, 2.5, "8", True, None])
def test_batch_size(tmp_path: Path, value: Any) -> None:
    refusal(tmp_path, f"data.batch_size={value}", "at least 1", batch_size=value)


@pytest.mark.parametrize("value", [-1, 0.5, "two", None])
def test_num_workers(tmp_path: Path, value: Any) -> None:
    refusal(tmp_path, f"data.num_workers={value}", "at least 0", num_workers=value)


@pytest.mark.parametrize(
    ("key", "value"), [("split_seed", -1), ("split_seed", None), ("eval_batch_size", 0), ("eval_workers", -1)]
)
def test_numbers_of_the_split_and_of_evaluation(tmp_path: Path, key: str, value: Any) -> None:
    refusal(tmp_path, f"data.{key}={value}", **{key: value})


@pytest.mark.parametrize("value", [0, 31, -64, [64], [64, 31], [64, 64, 3], [64, 64.0], 64.5, "64", None, []])
def test_image_size(tmp_path: Path, value: Any) -> None:
    refusal(tmp_path, f"data.image_size={value}", "32", image_size=value)


def test_dataset(tmp_path: Path) -> None:
    refusal(tmp_path, "data.dataset=kvasir", "did you mean kvasir_seg", dataset="kvasir")


def test_augmentation(tmp_path: Path) -> None:
    refusal(
        tmp_path, "augment.transforms", "albumentations.Flop", augment=[{"_target_": "albumentations.Flop"}]
    )
