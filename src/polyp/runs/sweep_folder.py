"""The folder of a sweep: its command, its jobs, and whether they have finished."""

from pathlib import Path

from polyp.errors import describe_error, override_word
from polyp.files import DamagedError, read_yaml
from polyp.runs.folder import RESULTS_FILE, SWEEP_FILE, RunFolder

JOBS_FILE = "jobs.json"
"""The jobs of a sweep, by number, each a list of overrides."""


def is_sweep(folder: Path) -> bool:
    """Whether a folder is a sweep's."""
    return (folder / SWEEP_FILE).is_file()


def read_command(folder: Path) -> tuple[list[str], list[str]]:
    """The overrides of a sweep's command: those of the task, and those of Hydra's keys.

    Raises:
        DamagedError: multirun.yaml is missing or damaged.
    """
    file = folder / SWEEP_FILE
    try:
        overrides = read_yaml(file)["hydra"]["overrides"]
        task, hydra = overrides["task"], overrides["hydra"]
        if not all(isinstance(override, str) for override in [*task, *hydra]):
            raise TypeError("its overrides are no texts")
    except (DamagedError, LookupError, TypeError) as error:
        reason = error if isinstance(error, DamagedError) else f"{file} is damaged ({describe_error(error)})"
        directory = override_word("hydra.sweep.dir", folder)
        raise DamagedError(f"{reason}: give the original command with -m resume=auto {directory}") from error
    return task, hydra


def find_jobs(folder: Path) -> dict[int, Path]:
    """The folders of a sweep's jobs, by number: `0_seed-0`, `1_seed-1`."""
    jobs = [(job.name.partition("_")[0], job) for job in folder.glob("[0-9]*_*/")]
    return dict(sorted((int(number), job) for number, job in jobs if number.isdecimal()))


def is_sweep_finished(folder: Path) -> bool:
    """Whether all jobs of a sweep have finished and its results.csv has each of them in its first column."""
    jobs = find_jobs(folder)
    try:
        with (folder / RESULTS_FILE).open(encoding="utf-8") as lines:
            numbers = {number for line in lines for number in line.partition(",")[0].split()}
    except (OSError, ValueError):
        return False
    return set(map(str, jobs)) <= numbers and all(RunFolder(job).is_finished for job in jobs.values())
