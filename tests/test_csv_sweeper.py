"""The rows of a CSV as the jobs of a sweep: which, in which order, and what is refused."""

import itertools
from pathlib import Path

import pytest
from conftest import ROOT, SMALL, Train, run_script
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.test_utils.launcher_common_tests import (
    BatchedSweeperTestSuite,
    IntegrationTestSuite,
    LauncherTestSuite,
)
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.csv_sweeper import CsvSweeper
from polyp.errors import InputError
from polyp.training.job_labels import make_label

Jobs = list[tuple[list[str], str]]


# Hydra's suites look for the log of a job where it ran; if not asked, Hydra warns that it will not change
# there.
CSV = ["hydra/sweeper=csv", "hydra.job.chdir=true"]


@pytest.mark.parametrize(("launcher_name", "overrides"), [("basic", CSV)])
class TestWithALauncher(LauncherTestSuite):
    """Hydra's own suite for launchers and the sweepers they work with."""


@pytest.mark.parametrize(
    ("launcher_name", "overrides"), [("basic", [*CSV, "hydra.sweeper.max_batch_size=2"])]
)
class TestInBatches(BatchedSweeperTestSuite):
    """Hydra's own suite for sweepers with batches."""


@pytest.mark.parametrize(("task_launcher_cfg", "extra_flags"), [({}, ["-m", "hydra/sweeper=csv"])])
class TestInAnApplication(IntegrationTestSuite):
    """Hydra's own suite of small applications."""


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's own folder is the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def composed(*arguments: str) -> DictConfig:
    """What Hydra composes for `train.py -m ARGUMENTS`."""
    return (
        GlobalHydra.instance().config_loader().load_configuration("train", list(arguments), RunMode.MULTIRUN)
    )


def jobs_of(*arguments: str) -> Jobs:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return CsvSweeper.jobs(composed(*arguments))


def jobs(content: str | bytes, *arguments: str) -> Jobs:
    """The jobs of my.csv."""
    Path("my.csv").write_bytes(content.encode() if isinstance(content, str) else content)
    return jobs_of("hydra/sweeper=csv", "hydra.sweeper.path=my.csv", *arguments)


def overrides(content: str | bytes, *arguments: str) -> list[list[str]]:
    return [job for job, _ in jobs(content, *arguments)]


def test_sweeper_is_found_by_hydra() -> None:
    assert "CsvSweeper" in [found.__name__ for found in Plugins.instance().discover(Sweeper)]


@pytest.mark.parametrize("sweeper", ["basic", "csv"])
def test_jobs_without_a_file_are_the_command_lines(sweeper: str) -> None:
    assert jobs_of(f"hydra/sweeper={sweeper}", "name=mine", "seed=1,2") == [
        (["name=mine", "seed=1"], "from the command line"),
        (["name=mine", "seed=2"], "from the command line"),
    ]


def test_row_is_a_job_named_by_its_line(workdir: Path) -> None:
    assert jobs("# mine\n\nseed,optim.decoder_lr\n1,1e-3\n# later\n2,1e-4\n") == [
        (["seed=1", "optim.decoder_lr=1e-3"], "row 1 of my.csv (line 4)"),
        (["seed=2", "optim.decoder_lr=1e-4"], "row 2 of my.csv (line 6)"),
    ]


def test_swept_overrides_multiply_each_row(workdir: Path) -> None:
    grid = ("name=mine", "seed=range(2)", "model.loss=dice,bce")
    assert overrides("model.arch\nunet\nlinknet\n", *grid) == [
        ["name=mine", f"seed={seed}", f"model.loss={loss}", f"model.arch={arch}"]
        for arch in ("unet", "linknet")
        for seed in (0, 1)
        for loss in ("dice", "bce")
    ]


def test_params_of_the_sweeper_multiply_each_row(workdir: Path) -> None:
    jobs = overrides("model.arch\nunet\nlinknet\n", "experiment=encoders")
    encoders = ["mobilenet_v2", "resnet18", "resnet34", "efficientnet-b0", "tu-convnext_atto"]
    assert [(job[0], job[-1]) for job in jobs] == [
        (f"model.encoder={encoder}", f"model.arch={arch}")
        for arch in ("unet", "linknet")
        for encoder in encoders
    ]
    with pytest.raises(InputError, match=r"model\.encoder is given .* hydra\.sweeper\.params too"):
        overrides("model.encoder\nresnet18\n", "experiment=encoders")


def test_glob_lists_the_choices_of_a_group(workdir: Path) -> None:
    assert [job[0] for job in overrides("seed\n1\n", "augment=glob(*)")] == [
        "augment=light",
        "augment=multiscale",
        "augment=none",
        "augment=strong",
    ]


def test_blank_cell_leaves_the_default(workdir: Path) -> None:
    assert overrides("seed,patience\n1, \n ,3\n") == [["seed=1"], ["patience=3"]]


@pytest.mark.parametrize(
    ("content", "row"),
    [
        (b"\xef\xbb\xbfseed,patience\n1,2\n", ["seed=1", "patience=2"]),
        (b"seed,patience\r\n\r\n1,2\r\n", ["seed=1", "patience=2"]),
        (b"seed,patience\n1,2", ["seed=1", "patience=2"]),
        (b" seed , patience \n 1 ,\t2 \n", ["seed=1", "patience=2"]),
        (b"seed;patience\n1;2\n", ["seed=1", "patience=2"]),
        (b'"# of mine, as a spreadsheet quotes it",\nseed,patience\n1,2\n', ["seed=1", "patience=2"]),
        (b"\xef\xbb\xbf# mine\nseed\n1\n", ["seed=1"]),
        (b'model.decoder_channels, seed\n"[64,32,16]", 1\n', ["model.decoder_channels=[64,32,16]", "seed=1"]),
        (b"model.decoder_channels;seed\n[64,32,16];1\n", ["model.decoder_channels=[64,32,16]", "seed=1"]),
        (b"model.decoder_attention\nnull\n", ["model.decoder_attention=null"]),
        (b"optim.decoder_lr\n1.00E-05\n", ["optim.decoder_lr=1.00E-05"]),
        (b"optim.decoder_lr\n${optim.encoder_lr}\n", ["optim.decoder_lr=${optim.encoder_lr}"]),
        (b"data,data.masks\nfolder,Ground Truth\n", ["data=folder", "data.masks=Ground Truth"]),
        (b"name\n'a(b'\n", ["name='a(b'"]),
        (b"name\n'\xc3\xa9t\xc3\xa9'\n", ["name='été'"]),
        (
            b"augment,+trainer.limit_test_batches\nstrong,2\n",
            ["augment=strong", "+trainer.limit_test_batches=2"],
        ),
        (b"data.root,++extra.key\nsomewhere,2\n", ["data.root=somewhere", "++extra.key=2"]),
    ],
)
def test_csv_of_spreadsheets_is_read(content: bytes, row: list[str], workdir: Path) -> None:
    assert overrides(content) == [row]


def test_keys_of_another_choice_of_a_group_are_allowed(workdir: Path) -> None:
    assert (
        overrides("data.count\n20\n", "data=synthetic,synthetic") == [["data=synthetic", "data.count=20"]] * 2
    )
    with pytest.raises(InputError, match=r"data\.count is no key"):
        jobs("data.count\n20\n", "data=kvasir_seg")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"my\.csv has no rows: .* names keys"),
        ("# mine\n\n", r"my\.csv has no rows"),
        ("seed\n", r"my\.csv has no rows"),
        (b"name\n\xe9t\xe9\n", r"my\.csv is not UTF-8: save it"),
        ("seed\n1\n".encode("utf-16"), r"my\.csv is not UTF-8: save it"),
        ("\nseed,\n1,2\n", r"my\.csv, line 2: column 2 has no key"),
        ("seed,+\n1,2\n", r"line 1: column 2 has no key"),
        ("seed,seed\n1,2\n", r"line 1: seed has two columns"),
        ("seed,+seed\n1,2\n", r"line 1: seed has two columns"),
        ("optim.decoderlr\n1\n", r"line 1: optim\.decoderlr is no key .*did you mean optim\.decoder_lr"),
        ("decoder_lr\n1\n", r"line 1: decoder_lr is no key .*did you mean optim\.decoder_lr"),
        ("augmented\n1\n", r"line 1: augmented is no key .*did you mean augment"),
        ("~seed\n1\n", r"line 1: ~seed is no key .*did you mean seed"),
        (
            "hydra.sweep.dir\nhere\n",
            r"line 1: hydra\.sweep\.dir is the same for all jobs.*on the command line",
        ),
        ("hydra/launcher\njoblib\n", r"line 1: hydra/launcher is the same for all jobs"),
        ("seed,patience\n1,2\n1\n", r"line 3: 1 cells for 2 keys"),
        ("model.decoder_channels\n[64,32]\n", r"line 2: 2 cells for 1 keys; a list is one cell in quotes"),
        ("seed,patience\n1,2\n,\n", r"line 3: all cells are blank"),
        ('seed\n"1\n', r"my\.csv, line 2: .*quote"),
        ('seed\n"1,2"\n', r"line 2: seed=1,2 is several values: give each a row"),
        ("seed\nrange(3)\n", r"line 2: seed=range\(3\) is several values"),
        ('seed\n"choice(1,2)"\n', r"line 2: seed=choice\(1,2\) is several values"),
        ("augment\nglob(*)\n", r"line 2: augment=glob\(\*\) is several values"),
        (
            "optim.decoder_lr;seed\n0,001;1\n",
            r"line 2: optim\.decoder_lr=0,001 is several.*decimals with a point",
        ),
        (
            "name\n${oc.env:HOME}\n",
            r"line 2: name=\$\{oc\.env:HOME\} is a value that depends on this machine",
        ),
        ("experiment\n../../theirs\n", r"line 2: experiment=\.\./\.\./theirs is a file outside"),
        ("name\na(b\n", r"line 2: name=a\(b cannot be understood: put single quotes around the value"),
    ],
)
def test_malformed_csv_is_refused_with_its_line(content: str | bytes, message: str, workdir: Path) -> None:
    with pytest.raises(InputError, match=message) as error:
        jobs(content)
    assert str(error.value).startswith("my.csv") and "\n" not in str(error.value)


@pytest.mark.parametrize("override", ["seed=1", "seed=1,2", "++seed=3"])
def test_column_that_is_also_an_override_is_refused(override: str, workdir: Path) -> None:
    with pytest.raises(
        InputError, match=r"my\.csv, line 1: seed is given on the command line.* too: give it once"
    ):
        jobs("seed\n1\n", override)


def test_file_is_found_in_working_directory_before_conf(workdir: Path) -> None:
    named = "hydra/sweeper=csv", "hydra.sweeper.path=hyperparameters.csv"
    assert jobs_of(*named)[0][1] == f"row 1 of {ROOT}/conf/sweep/hyperparameters.csv (line 3)"
    Path("hyperparameters.csv").write_text("seed\n1\n")
    assert jobs_of(*named) == [(["seed=1"], "row 1 of hyperparameters.csv (line 2)")]
    assert jobs_of(named[0], f"hydra.sweeper.path={workdir}/hyperparameters.csv") == jobs_of(*named)
    with pytest.raises(InputError) as error:
        jobs_of(named[0], "hydra.sweeper.path=none.csv")
    assert str(error.value) == (
        f"hydra.sweeper.path=none.csv does not exist, looked for as {workdir}/none.csv and "
        f"{ROOT}/conf/sweep/none.csv: give the path of a CSV"
    )


def test_folder_as_csv_is_refused(workdir: Path) -> None:
    Path("my.csv").mkdir()
    with pytest.raises(
        InputError, match=r"^my\.csv cannot be read \(Is a directory\): give .*path=FILE\.csv$"
    ):
        jobs_of("hydra/sweeper=csv", "hydra.sweeper.path=my.csv")


def test_shipped_trials_are_eighteen(workdir: Path) -> None:
    shipped = jobs_of("experiment=hyperparameters")
    rates = [("1e-5", "1e-3"), ("1e-6", "1e-4"), ("1e-7", "1e-5")]
    assert [job for job, _ in shipped] == [
        [
            "experiment=hyperparameters",
            f"model.decoder_attention={attention}",
            f"model.encoder_depth={depth}",
            f"optim.encoder_lr={encoder}",
            f"optim.decoder_lr={decoder}",
        ]
        for attention, depth, (encoder, decoder) in itertools.product(("scse", "null"), (3, 4, 5), rates)
    ]
    assert len(shipped) == 18
    job, origin = shipped[15]
    assert origin == f"row 16 of {ROOT}/conf/sweep/hyperparameters.csv (line 18)"
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        trial = GlobalHydra.instance().config_loader().load_configuration("train", job, RunMode.RUN)
    assert (trial.model.arch, trial.model.encoder) == ("unetplusplus", "mobilenet_v2")
    assert (trial.model.encoder_depth, trial.model.decoder_attention) == (5, None)
    assert (trial.optim.encoder_lr, trial.optim.decoder_lr) == (1e-5, 1e-3)


@pytest.mark.slow
def test_each_row_leaves_a_finished_run(train: Train, workdir: Path) -> None:
    Path("my.csv").write_text("optim.decoder_lr,model.loss\n1e-3,\n1e-2,focal\n")
    outputs = train(
        "experiment=hyperparameters", "hydra.sweeper.path=my.csv", *SMALL, "+trainer.limit_train_batches=1"
    )
    finished = sorted(path.parent.name for path in outputs.rglob("metrics.json"))
    assert finished == ["0_decoder_lr-1e-3", "1_decoder_lr-1e-2_loss-focal"]
    (config,) = outputs.rglob("1_*/config.yaml")
    assert OmegaConf.load(config).optim.decoder_lr == 1e-2


def test_shipped_trials_have_labels(workdir: Path) -> None:
    (Path.cwd() / "multirun.yaml").write_text(
        "hydra: {overrides: {task: [experiment=hyperparameters], hydra: []}}"
    )
    labels = [make_label(job, str(workdir)) for job, _ in jobs_of("experiment=hyperparameters")]
    assert labels[15] == "decoder_attention-null_encoder_depth-5_encoder_lr-1e-5_decoder_lr-1e-3"
    labels = [make_label(job, str(workdir)) for job, _ in jobs_of("experiment=hyperparameters", "seed=0,1")]
    assert labels[31].startswith("seed-1_decoder_attention-null_encoder_depth-5_")


def test_malformed_csv_starts_no_job(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("my.csv").write_text("optim.decoderlr\n1\n")
    with pytest.raises(SystemExit):
        run_script("-m", "hydra/sweeper=csv", "hydra.sweeper.path=my.csv", *SMALL)
    assert not list(workdir.rglob("metrics.json"))
