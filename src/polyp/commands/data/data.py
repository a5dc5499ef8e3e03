"""`polyp data`: inspects a data set before training, and shows the result in the terminal and as a page."""

from pathlib import Path

from polyp import terminal
from polyp.commands.data.options import Options
from polyp.commands.data.page import TITLE, build_page, build_values_page
from polyp.commands.data.summary import print_summary
from polyp.commands.data.survey import AmbiguousValuesError, inspect_images
from polyp.commands.options import name_options
from polyp.data.sources import NAMED, find_source
from polyp.data.split_files import SUBSETS
from polyp.errors import InputError, describe_error
from polyp.files import check_writable, write_text
from polyp.report.tables import to_csv


def run(options: Options) -> None:
    """Inspect a data set; print a summary, write a page and the suggested split beside it.

    Raises:
        InputError: the data set does not exist, has no usable pair, or has masks with ambiguous values; the
            split does not fit, or the page cannot be written.
    """
    try:
        name, source = find_source(options.data, options.root, options.archive, **options.layout)
        page = Path(options.out).expanduser() if options.out else Path("outputs", "data", f"{name}.html")
        _check_page(page)
        with terminal.status("finding the images"):
            source.prepare()
            listing = source.find()
        try:
            survey = inspect_images(name, listing, source.default_split, options)
        except AmbiguousValuesError as error:
            build_values_page(name, str(error), error.pairs, error.checks).write(page)
            raise InputError(f"{error}\n  {page} shows the values") from error
        split_file = _write_split(survey.suggestion, page) if survey.suggestion else None
        with terminal.status("drawing the page"):
            build_page(survey, split_file).write(page)
    except InputError as error:
        text = name_options(str(error))
        names = f"; give a folder, {' or '.join(NAMED)}" if text.endswith(" is not a folder") else ""
        raise InputError(text + names) from error
    print_summary(survey, page, split_file)


def _check_page(page: Path) -> None:
    try:
        if page.exists() and f"<title>{TITLE}" not in page.read_text("utf-8", errors="replace")[:300]:
            raise InputError(f"{page} is there and is not a page of `polyp data`: give another --out")
        check_writable(page.parent)
    except OSError as error:
        raise InputError(f"cannot write {page}: {describe_error(error)}") from error


def _write_split(subsets: dict[str, list[str]], page: Path) -> Path:
    """Write NAME_split.csv, or NAME_split_2.csv if there is another split, which may be in use."""
    rows = sorted((stem, name) for name in SUBSETS for stem in subsets[name])
    text = to_csv([{"stem": stem, "subset": name} for stem, name in rows], ("stem", "subset"))
    number, file = 1, page.with_name(f"{page.stem}_split.csv")
    while file.exists() and file.read_bytes() != text.encode():
        number += 1
        file = page.with_name(f"{page.stem}_split_{number}.csv")
    if not file.exists():
        write_text(file, text)
    return file
