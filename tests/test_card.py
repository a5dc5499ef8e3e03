"""The model card says what the run's numbers show, and nothing else."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from markdown_it import MarkdownIt
from run_writers import write_run

from polyp.commands.compare.card import write_card
from polyp.commands.compare.comparison import Comparison, compare
from polyp.commands.compare.read_runs import RunRecord, find_runs
from polyp.commands.compare.summary import build_table


@pytest.fixture
def card(tmp_path: Path) -> Callable[..., str]:
    """The text of a run's card."""

    def read(run: RunRecord, comparison: Comparison | None = None) -> str:
        write_card(tmp_path / "MODEL_CARD.md", run, comparison)
        return (tmp_path / "MODEL_CARD.md").read_text(encoding="utf-8")

    return read


def test_card_has_numbers_strata_and_limits(tmp_path: Path, card: Callable[..., str]) -> None:
    dice = np.array(
        [0.9, 0.4, 0.8, 0.0, 0.9, 0.5]
    )  # every other image, from the second on, has a small polyp
    write_run(tmp_path / "a", dice, data={"dataset": "kvasir_seg"})
    (run,) = find_runs([tmp_path])
    text = card(run)
    assert "not a medical device, and not for diagnosis" in text and "Kvasir-SEG may be used" in text
    assert (
        f"| dice | {dice.mean():.3f} |" in text
        and "what dice is" in text
        and " GMACs for an image at 64x64" in text
    )
    assert f"| size: small (below 5 %) | 3 | {dice[1::2].mean():.3f} |" in text
    assert "On 2 of the 6 test images Dice is below 0.5, on 1 of them the polyp is not found at all." in text
    assert "Weakest on size: small (below 5 %): mean Dice 0.300 on 3 images" in text
    assert "A single seed: how far" in text and "false alarms on normal images are not measured" in text
    worst = text.split("Worst test images:")[1].split("##")[0].splitlines()
    assert [line.split(" | ")[0] for line in worst if "image_" in line][:2] == ["| image_3", "| image_1"]
    assert "| `optim.decoder_lr` | 1e-3 |" in text and "resume" not in text


ATTACK = (
    "<img src=x onerror=alert(1)> | [here](http://evil.org) http://evil.org &lt;b&gt; ```"
    "\n\n# head\n\n<script>"
)


def test_card_escapes_values(tmp_path: Path, card: Callable[..., str]) -> None:
    run = write_run(
        tmp_path / "a",
        [0.9, 0.8],
        data={"dataset": ATTACK, "split": ATTACK, "fingerprint": ATTACK},
        definitions=dict.fromkeys(("dice", "test", "best"), ATTACK),
        versions={ATTACK: ATTACK},
        **dict.fromkeys(("device", "precision"), ATTACK),
        best={"monitor": ATTACK, "value": 0.5, "epoch": 0},
    )
    config = yaml.safe_load((run / "config.yaml").read_text())
    config |= {"monitor": ATTACK, "model": {"arch": ATTACK, "encoder": ATTACK, "=1": {ATTACK: ATTACK}}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    scores = (run / "per_image.csv").read_text().replace("image_1", '"<b>image|1"')
    (run / "per_image.csv").write_text(scores)
    text = card(find_runs([run])[0])
    blocks = MarkdownIt("commonmark").enable("table").parse(text)
    inner = [token for block in blocks for token in block.children or ()]
    assert not {token.type for token in (*blocks, *inner)} & {
        "html_block",
        "html_inline",
        "link_open",
        "image",
        "fence",
    }
    read = [
        "".join(token.content for token in block.children or ()) for block in blocks if block.type == "inline"
    ]
    as_one_line = " ".join(ATTACK.split())
    for name in ("data set", "split", "fingerprint of all images and masks"):
        assert read[read.index(name) + 1] == as_one_line
    for name in ("model.arch", f"model.=1.{as_one_line}"):
        assert read[read.index(name) + 1] == ATTACK.replace("\n", r"\n")
    assert "<b>image|1" in read and "head" not in read
    assert "<script" not in text and "<img" not in text and "http://" not in text


def test_false_alarm_is_not_a_missed_polyp(tmp_path: Path, card: Callable[..., str]) -> None:
    run = write_run(tmp_path / "a", [0.9, 0.0, 0.0])
    rows = (run / "per_image.csv").read_text().splitlines()
    rows[2] = rows[2].replace("image_1,50,10,11", "image_1,0,60,0")
    (run / "per_image.csv").write_text("\n".join(rows))
    text = card(find_runs([tmp_path])[0])
    assert "On 2 of the 3 test images Dice is below 0.5, on 1 of them the polyp is not found at all." in text


def test_card_and_table_have_false_alarms(tmp_path: Path, card: Callable[..., str]) -> None:
    test = {"normal": {"n": 8, "false_alarms": 0.25}}
    write_run(tmp_path / "a", [0.9, 0.8], test=test)
    write_run(tmp_path / "b", [0.9, 0.8], val=0.1, changed=["model.loss=bce"])
    comparison = compare(find_runs([tmp_path]))
    text = card(comparison.reference.first, comparison)
    assert "False alarms on 2 of 8 normal frames" in text and "not measured" in text
    assert "false alarms on normal images are not measured" not in text
    table = build_table(comparison)
    place = table.labels.index("false alarms")
    assert [cells[place] for cells in table.cells] == ["25.0%", ""]


def test_card_counts_epochs_as_defined(tmp_path: Path, card: Callable[..., str]) -> None:
    run = write_run(tmp_path / "a", [0.9, 0.8], definitions={"best": "of the best epoch (the first is 0)"})
    epoch = json.loads((run / "metrics.json").read_text())["best"]["epoch"]
    assert f"in epoch {epoch}: of the best epoch (the first is 0)." in card(find_runs([tmp_path])[0])


def test_card_has_seeds_and_rank(tmp_path: Path, card: Callable[..., str]) -> None:
    images = np.linspace(0.6, 0.9, 30)
    for seed in (0, 1):
        write_run(tmp_path / f"a{seed}", images + seed / 50, val=0.9, seed=seed)
    write_run(tmp_path / "b", images - 0.5, val=0.5, changed=["model.loss=bce"])
    write_run(tmp_path / "c", images, val=0.4, changed=["model.loss=dice", "monitor=test/dice"])
    comparison = compare(find_runs([tmp_path]))
    text = card(comparison.reference.first, comparison)
    assert "number 1 by validation of 3 configurations. 1 of the 2 other configurations is not" in text
    assert "over 2 seeds test Dice is 0.760 ± 0.014" in text
    second = card(comparison.recipes[1].first, comparison)
    assert (
        "number 2 by validation of 3 configurations; against the best of them: worse than the best by 0.5"
        in second
    )
    assert "standard deviation of 0.014 between seeds" in second
