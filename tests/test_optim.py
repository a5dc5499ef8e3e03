import io
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import segmentation_models_pytorch as smp
import torch
from conftest import SMALL, Train
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader, TensorDataset

from polyp.errors import InputError
from polyp.model.optim import OPTIMIZERS, Optim
from polyp.settings import check_keys

VALID: dict[str, Any] = {"encoder_lr": 0.1, "decoder_lr": 1, "weight_decay": 0.01, "ema_decay": None}


def weights() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(2))]


def rates(total_steps: int, steps: int, **keys: Any) -> list[tuple[float, float]]:
    """The learning rates of encoder and decoder at each step."""
    built: Any = Optim(**VALID | keys).build([weights()], weights(), total_steps, "val/dice")
    rates_by_step = []
    for _ in range(steps):
        rates_by_step.append(tuple(group["lr"] for group in built["optimizer"].param_groups))
        built["optimizer"].step()
        built["lr_scheduler"]["scheduler"].step()
    return rates_by_step


def test_cosine() -> None:
    # 10 steps of warm-up in 100: 1/11 … 10/11, 1 at step 10, half at step 55, 0 at the end and after it.
    rates_by_step = rates(100, 103, schedule="cosine", warmup=0.1)
    by_hand = {
        0: 1 / 11,
        4: 5 / 11,
        9: 10 / 11,
        10: 1,
        40: (1 + 0.5) / 2,  # a third of the way: cos 60°
        55: 0.5,
        70: (1 - 0.5) / 2,
        99: (1 + math.cos(math.pi * 89 / 90)) / 2,
        100: 0,
        102: 0,
    }
    for step, factor in by_hand.items():
        assert rates_by_step[step] == pytest.approx((0.1 * factor, factor), abs=1e-12), step


def test_poly() -> None:
    rates_by_step = rates(20, 21, schedule="poly", warmup=0)
    assert [rates_by_step[step][1] for step in (0, 5, 10, 19, 20)] == pytest.approx(
        [1, 0.75**0.9, 0.5**0.9, 0.05**0.9, 0]
    )


def test_constant() -> None:
    rates_by_step = rates(20, 30, schedule="constant", warmup=0.1)
    assert [decoder for _, decoder in rates_by_step] == pytest.approx([1 / 3, 2 / 3] + [1] * 28)


def test_a_run_too_short_for_its_warm_up_still_learns() -> None:
    assert rates(1, 1, warmup=0.99) == [(0.05, 0.5)]
    assert rates(3, 3, warmup=0.05)[0] == (0.1, 1)


def test_onecycle_is_torchs() -> None:
    steps = 1000
    rates_by_step = rates(steps, steps, schedule="onecycle", warmup=0)
    optimizer = torch.optim.AdamW([{"params": weights()}, {"params": weights()}])
    torchs = torch.optim.lr_scheduler.OneCycleLR(optimizer, [0.1, 1], steps)
    for step in range(steps - 1):  # torch divides them by one less
        assert rates_by_step[step] == pytest.approx(torchs.get_last_lr(), abs=0.003), step
        optimizer.step()
        torchs.step()
    assert rates_by_step[0] == pytest.approx((0.1 / 25, 1 / 25)) and max(rates_by_step)[1] == 1


def test_plateau() -> None:
    built: Any = Optim(**VALID | {"schedule": "plateau", "warmup": 0}).build(
        [weights()], weights(), 100, "val/dice"
    )
    scheduler = built["lr_scheduler"].pop("scheduler")
    assert built["lr_scheduler"] == {"interval": "epoch", "monitor": "val/dice"}
    rates_by_step = []
    # best in the second epoch; the fourth one without progress halves
    for dice in [0.5, 0.6, 0.6, 0.5, 0.4, 0.6, 0.7]:
        scheduler.step(dice)
        rates_by_step.append(built["optimizer"].param_groups[1]["lr"])
    assert rates_by_step == [1, 1, 1, 1, 1, 0.5, 0.5]


def test_plateau_of_a_metric_that_should_fall() -> None:
    built: Any = Optim(**VALID | {"schedule": "plateau", "warmup": 0}).build(
        [weights()], weights(), 100, "val/loss", "min"
    )
    for loss in [0.6, 0.5, 0.4, 0.3, 0.2, 0.1]:
        built["lr_scheduler"]["scheduler"].step(loss)
    assert built["optimizer"].param_groups[1]["lr"] == 1


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_groups(optimizer: str) -> None:
    encoder, decoder = nn.Linear(2, 2), nn.Linear(2, 3)
    keys = VALID | {"optimizer": optimizer, "momentum": 0.8, "warmup": 0}
    built: Any = Optim(**keys).build([encoder.parameters()], decoder.parameters(), 10, "val/dice")
    groups = built["optimizer"].param_groups
    assert type(built["optimizer"]).__name__.lower() == optimizer
    assert [group["name"] for group in groups] == ["encoder", "decoder"]
    assert [group["lr"] for group in groups] == [0.1, 1]
    assert [group["weight_decay"] for group in groups] == [0.01, 0.01]
    assert [group.get("momentum") for group in groups] == [0.8 if optimizer == "sgd" else None] * 2
    for group, module in zip(groups, (encoder, decoder), strict=True):
        assert {id(p) for p in group["params"]} == {id(p) for p in module.parameters()}


def test_layer_decay_lowers_the_rates_towards_the_stem() -> None:
    built: Any = Optim(**VALID | {"layer_decay": 0.5, "warmup": 0}).build(
        [weights(), weights(), weights()], weights(), 10, "val/dice"
    )
    rates = {group["name"]: group["lr"] for group in built["optimizer"].param_groups}
    assert rates == {"encoder_1": 0.025, "encoder_2": 0.05, "encoder_3": 0.1, "decoder": 1}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_of_torch_learns_and_is_restored_or_is_refused(name: str) -> None:
    keys = VALID | {"optimizer": OPTIMIZERS[name].__name__, "weight_decay": 0}
    if name in ("lbfgs", "muon", "sparseadam"):
        with pytest.raises(InputError, match=f"(?i)optim.optimizer={name} does not work: [^\n]*$"):
            Optim(**keys)
        return

    def make() -> tuple[nn.Module, Any]:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 1, 1))
        built: Any = Optim(**keys).build([network[0].parameters()], network[1].parameters(), 10, "val/dice")
        return network, built["optimizer"]

    def step(network: nn.Module, optimizer: Any) -> None:
        optimizer.zero_grad()
        network(torch.ones(1, 2, 4, 4)).square().mean().backward()
        optimizer.step()

    network, optimizer = make()
    before = network[0].weight.clone()
    step(network, optimizer)
    assert not torch.equal(network[0].weight, before)
    file = io.BytesIO()
    torch.save([network.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    resumed, restored = make()
    weights_before, state = torch.load(file, weights_only=True)
    resumed.load_state_dict(weights_before)
    restored.load_state_dict(state)
    step(network, optimizer)
    step(resumed, restored)
    assert torch.equal(network[0].weight, resumed[0].weight)


def test_options_are_the_optimizers_arguments() -> None:
    keys = VALID | {"optimizer": "RAdam", "options": {"betas": [0.8, 0.95]}}
    built: Any = Optim(**keys).build([weights()], weights(), 10, "val/dice")
    assert [tuple(group["betas"]) for group in built["optimizer"].param_groups] == [(0.8, 0.95)] * 2


def test_a_weight_in_both_groups_is_refused() -> None:
    shared = weights()
    with pytest.raises(ValueError, match="more than one parameter group"):
        Optim(**VALID).build([shared], shared, 10, "val/dice")


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_encoder_lr_0_leaves_the_encoder_as_it_is(optimizer: str) -> None:
    encoder, decoder = weights(), weights()
    keys = VALID | {"encoder_lr": 0, "optimizer": optimizer, "weight_decay": 0.5}
    built: Any = Optim(**keys).build([encoder], decoder, 10, "val/dice")
    (encoder[0].sum() + decoder[0].sum()).backward()
    built["optimizer"].step()
    assert torch.equal(encoder[0], torch.ones(2))
    assert not torch.equal(decoder[0], torch.ones(2))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optimizer", "adamW2", r"optim\.optimizer=adamw2 is unknown: did you mean .*adamw"),
        ("schedule", "cosin", r"optim\.schedule=cosin is unknown: did you mean cosine"),
        ("encoder_lr", -1, r"optim\.encoder_lr=-1 .* >= 0"),
        ("encoder_lr", "1e-4", r"optim\.encoder_lr='1e-4' .* number"),
        ("encoder_lr", True, r"optim\.encoder_lr=True .* number"),
        ("encoder_lr", None, r"optim\.encoder_lr=None .* number"),
        ("decoder_lr", 0, r"optim\.decoder_lr=0 .* > 0"),
        ("decoder_lr", math.nan, r"optim\.decoder_lr=nan .* > 0"),
        ("decoder_lr", math.inf, r"optim\.decoder_lr=inf .* > 0"),
        ("layer_decay", 0, r"optim\.layer_decay=0 .* null"),
        ("layer_decay", 1.5, r"optim\.layer_decay=1\.5 .* null"),
        ("weight_decay", -0.1, r"optim\.weight_decay=-0\.1 .* >= 0"),
        ("momentum", 1, r"optim\.momentum=1 .* \[0, 1\)"),
        ("warmup", 1.0, r"optim\.warmup=1\.0 .* \[0, 1\)"),
        ("warmup", -0.1, r"optim\.warmup=-0\.1 .* \[0, 1\)"),
        ("ema_decay", 1, r"optim\.ema_decay=1 .* null"),
        ("ema_decay", 0, r"optim\.ema_decay=0 .* null"),
        ("schedule", "plateau", r"optim\.warmup=0\.05 .*plateau: set optim\.warmup=0"),
        ("schedule", "onecycle", r"optim\.warmup=0\.05 .*onecycle: set optim\.warmup=0"),
        ("optimizer", "rprop", r"optim\.weight_decay=0\.01 .*rprop.*: set optim\.weight_decay=0"),
        ("optimizer", 3, r"optim\.optimizer=3 is unknown"),
        ("options", {"beta": [0.9, 0.95]}, r"optim\.options\.beta is unknown: did you mean betas"),
        ("options", {"betas": 0.9}, r"optim\.options\.betas=0\.9 cannot work: it must be a list"),
        ("options", {"betas": [0.9]}, r"optim\.options={'betas': \[0\.9\]} does not work"),
        ("options", {"eps": -1}, r"does not work: Invalid epsilon"),
        ("options", {"weight_decay": 0}, r"optim\.options\.weight_decay is unknown"),
    ],
)
def test_a_value_that_cannot_work_is_refused_in_one_line(key: str, value: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as refusal:
        Optim(**VALID | {key: value})
    assert "\n" not in str(refusal.value)


def test_values_that_work() -> None:
    keys = VALID | {"encoder_lr": 0, "decoder_lr": 1e-3, "weight_decay": 0, "ema_decay": 0.999, "warmup": 0}
    assert asdict(Optim(**keys)).items() >= keys.items()


@pytest.mark.parametrize("total_steps", [math.inf, 0, -1])
def test_a_run_without_end_has_no_schedule(total_steps: float) -> None:
    with pytest.raises(InputError, match=r"optim\.schedule=cosine needs an end"):
        Optim(**VALID).build([weights()], weights(), total_steps, "val/dice")


class Tiny(pl.LightningModule):
    def __init__(self, optim: Optim) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(2, 2), nn.Linear(2, 1)
        self.optim = optim
        self.rates: list[float] = []

    def training_step(self, batch: list[Tensor]) -> Tensor:
        self.rates.append(self.trainer.optimizers[0].param_groups[1]["lr"])
        return self.decoder(self.encoder(batch[0])).square().mean()

    def validation_step(self, batch: list[Tensor]) -> None:
        self.log("val/dice", 0.5)  # never better: plateau will halve

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        steps = self.trainer.estimated_stepping_batches
        return self.optim.build([self.encoder.parameters()], self.decoder.parameters(), steps, "val/dice")


# Lightning 2.6.6 asks torch 2.15 in a way that is going out; a tiny data set needs no worker processes.
@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.parametrize("schedule", ["cosine", "onecycle", "plateau"])
def test_a_resumed_run_goes_on_where_it_stopped(schedule: str, tmp_path: Path) -> None:
    optim = Optim(**VALID | {"schedule": schedule, "warmup": 0.25 if schedule == "cosine" else 0})

    def fit(module: Tiny, max_epochs: int, stop_after: int, checkpoint: Path | None = None) -> pl.Trainer:
        class Stop(pl.Callback):
            def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
                trainer.should_stop = trainer.current_epoch + 1 >= stop_after

        trainer = pl.Trainer(
            max_epochs=max_epochs,
            accelerator="cpu",
            callbacks=[Stop()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=1,
            num_sanity_val_steps=0,
        )
        data = DataLoader(TensorDataset(torch.eye(2).repeat(3, 1)), batch_size=2)  # three steps per epoch
        trainer.fit(module, data, data, ckpt_path=checkpoint, weights_only=True)
        return trainer

    pl.seed_everything(0)
    whole = Tiny(optim)
    first = Tiny(optim)
    first.load_state_dict(whole.state_dict())
    fit(whole, max_epochs=8, stop_after=8)

    saved = tmp_path / "last.ckpt"
    fit(first, max_epochs=8, stop_after=2).save_checkpoint(saved)
    state = torch.load(saved, weights_only=True)
    assert [group["name"] for group in state["optimizer_states"][0]["param_groups"]] == ["encoder", "decoder"]
    assert len(state["lr_schedulers"]) == 1

    second = Tiny(optim)
    trainer = fit(second, max_epochs=8, stop_after=8, checkpoint=saved)
    assert first.rates + second.rates == whole.rates
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))
    if schedule == "cosine":
        assert whole.rates[:7] == pytest.approx([n / 7 for n in range(1, 8)])
        assert whole.rates[15] == pytest.approx(0.5)
    elif schedule == "plateau":
        assert isinstance(trainer.lr_scheduler_configs[0].scheduler, ReduceLROnPlateau)
        assert whole.rates[::3] == [1, 1, 1, 1, 1, 0.5, 0.5, 0.5]


@pytest.mark.slow
@pytest.mark.parametrize("override", ["optim.encoder_lr=0", "model.freeze=encoder"])
def test_a_frozen_encoder_stays_as_it_was_pretrained(override: str, train: Train, tmp_path: Path) -> None:
    encoder = smp.encoders.get_encoder("mobilenet_v2", weights=None)
    pretrained = {
        name: torch.rand_like(value) + 0.5 if value.is_floating_point() else value + 1007
        for name, value in encoder.state_dict().items()
    }
    torch.save(pretrained, tmp_path / "weights.pt")
    # with an average
    run = train(*SMALL, f"model.encoder_weights={tmp_path}/weights.pt", override) / "run"

    def check() -> None:
        for checkpoint in ("best", "last"):
            state = torch.load(run / "checkpoints" / f"{checkpoint}.ckpt", weights_only=True)["state_dict"]
            for name, value in pretrained.items():
                assert torch.equal(state[f"network.stages.0.encoder.{name}"], value), (checkpoint, name)

    check()
    train(f"resume={run}", "trainer.max_epochs=2")
    check()


@pytest.mark.parametrize("keys", [VALID | {"lr": 1}, VALID | {3: 1}, {"encoder_lr": 0.1}])
def test_a_key_too_many_or_too_few_is_named(keys: dict[Any, Any]) -> None:
    with pytest.raises(InputError, match=r"optim\.(lr|3|decoder_lr)"):
        check_keys("optim", keys, Optim)
