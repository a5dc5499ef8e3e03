"""`polyp …`: what can be asked of data and of runs. Nothing but arguments: each command imports its room when asked."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from polyp.errors import InputError
from polyp.files import catch_disk_errors


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; what is wrong with the user's input is said in one line, and the exit code is then 1."""
    parser = argparse.ArgumentParser(
        prog="polyp", description="Look at data, score models, compare runs, use the best."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in COMMANDS:
        add(commands)
    given = parser.parse_args(argv)
    try:
        with catch_disk_errors("free some space and give the command again"):
            given.run(given)
    except InputError as error:
        sys.exit(f"polyp: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def _data(commands: Any) -> None:
    command = commands.add_parser("data", help="look at a data set before training")
    command.add_argument("data", nargs="?", default="kvasir_seg", metavar="FOLDER", help="or kvasir_seg or synthetic")
    command.add_argument("--root", help="where kvasir_seg or synthetic is or shall be")
    command.add_argument("--archive", help="the zip file of kvasir_seg")
    command.add_argument("--images", default="images", help="name of the folder's subfolder of images")
    command.add_argument("--masks", default="masks", help="name of the folder's subfolder of masks")
    command.add_argument("--split", help="official, pranet, random or a CSV: which near-duplicates straddle it")
    command.add_argument("--allow-empty", action="store_true", help="a mask without a polyp is no problem")
    command.add_argument("--encoder", help="an encoder that helps to find near-duplicates, with --weights")
    command.add_argument("--weights", help="its weights, a .safetensors or .pt file")
    command.add_argument("--seed", type=int, default=0, help="of the suggested split")
    command.add_argument("--out", metavar="FILE.html", help="the page; the suggested split goes beside it")

    def run(given: argparse.Namespace) -> None:
        from polyp.survey.survey import survey

        survey(**{key: value for key, value in vars(given).items() if key != "run"})

    command.set_defaults(run=run)


def _evaluate(commands: Any) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="score a trained model",
        description="Score a trained model, or the average of several, and leave the numbers, a row for each image and "
        "a page with pictures in the run's folder, under evaluations/.",
    )
    parser.add_argument(
        "models", nargs="+", metavar="RUN_OR_CHECKPOINT", help="of several the probabilities are averaged"
    )
    what = parser.add_argument_group("what to score on; the run's own test images if nothing is said")
    what.add_argument("--data", metavar="FOLDER", help="images/ and masks/, or several folders that hold these")
    what.add_argument("--images", metavar="NAME", help="of the folder of images (images)")
    what.add_argument("--masks", metavar="NAME", help="of the folder of masks (masks)")
    what.add_argument("--normal", action="store_true", help="no image of FOLDER shows a polyp; there are no masks")
    what.add_argument("--subset", choices=("test", "val", "train"), help="of the run's own images (test)")
    what.add_argument("--root", metavar="FOLDER", help="where the run's data are, if they have moved")
    what.add_argument("--archive", metavar="FILE", help="the archive of the run's data, if it has moved")
    how = parser.add_argument_group("how")
    how.add_argument("--tta", action="store_true", help="average over the image and its flips")
    how.add_argument("--scales", type=_numbers, metavar="S,S", help="average over these scales, such as 0.75,1,1.25")
    how.add_argument("--threshold", type=float, metavar="P", help="polyp from this probability on (0.5)")
    how.add_argument("--missed", type=float, metavar="SHARE", help="of a polyp's pixels that may be missed (0.1) ...")
    how.add_argument(
        "--confidence", type=float, metavar="P", help="... by a threshold chosen on validation, as sure (0.95)"
    )
    how.add_argument("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps (auto)")
    _add_compute(how)
    how.add_argument("--name", help="of the folder under evaluations/")
    how.add_argument("--overwrite", action="store_true", help="replace an evaluation of that name")

    def run(given: argparse.Namespace) -> None:
        from polyp.evaluation.evaluate import Options, evaluate

        chosen = {key: value for key, value in vars(given).items() if value is not None}
        evaluate(chosen.pop("models"), Options(**{key: chosen[key] for key in chosen.keys() - {"run"}}))

    parser.set_defaults(run=run)


def _add_compute(parser: Any) -> None:
    parser.add_argument(
        "--compute",
        choices=("exact", "fast"),
        default="exact",
        help="exact: each image by itself, in the precision that the run was tested in; fast: several at once, in the "
        "precision that the device gains from (exact)",
    )


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} must be numbers such as 0.75,1,1.25") from None


def _compare(commands: Any) -> None:
    parser = commands.add_parser(
        "compare",
        help="compare runs",
        description="Compare runs: what differs between them, which is best, which differences are more than chance. "
        "Leaves a page with pictures, a table and the model card of one run.",
    )
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help="a run, a sweep, or a folder of these: outputs/")
    parser.add_argument("--out", metavar="FOLDER", help="where to write (outputs/comparisons/DATE_TIME)")
    parser.add_argument("--overwrite", action="store_true", help="replace the comparison that is there")
    parser.add_argument("--card", metavar="RUN", help="the run whose model card is written (the best by validation)")
    parser.add_argument(
        "--root", metavar="FOLDER", help="where the runs' data are, if they have moved; for the pictures"
    )
    parser.add_argument("--no-pictures", dest="pictures", action="store_false", help="the numbers alone, in seconds")

    def run(given: argparse.Namespace) -> None:
        if not (given.folders or given.card):
            parser.error("give a FOLDER of runs, such as outputs/")
        from polyp.comparison.compare import main

        main(given.folders, given.out, given.card, given.root, given.overwrite, given.pictures)

    parser.set_defaults(run=run)


def _predict(commands: Any) -> None:
    parser = commands.add_parser(
        "predict",
        help="find polyps in new images and videos",
        description="Find polyps in new images and videos: masks of their size, pictures with the polyps drawn on "
        "them, and tables. A command that was interrupted goes on where it was when it is given again.",
    )
    parser.add_argument("model", metavar="RUN", help="a run's folder, a checkpoint, or an exported model")
    parser.add_argument("given", nargs="+", metavar="INPUT", help="an image, a video, or a folder of these")
    parser.add_argument(
        "--with", dest="others", action="append", default=[], metavar="RUN", help="average with this one; repeatable"
    )
    what = parser.add_argument_group("what to write")
    what.add_argument("--out", metavar="FOLDER", help="where (RUN/predictions/NAME, NAME being that of the folder)")
    what.add_argument("--threshold", type=float, metavar="P", help="polyp from this probability on (the run's own)")
    what.add_argument("--probabilities", action="store_true", help="maps as PNG of 16 bits too: 65535 is 1")
    what.add_argument(
        "--no-overlays", dest="overlays", action="store_false", help="no pictures, masks and tables alone"
    )
    what.add_argument("--overwrite", action="store_true", help="again what is finished; replace another model's")
    how = parser.add_argument_group("how")
    how.add_argument("--tta", action="store_true", help="average over the image and its flips")
    _add_compute(how)
    how.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps (auto)")

    def run(given: argparse.Namespace) -> None:
        from polyp.prediction.job import Options
        from polyp.prediction.predict import predict

        chosen = {key: value for key, value in vars(given).items() if key != "run"}
        models = [chosen.pop("model"), *chosen.pop("others")]
        predict(models, chosen.pop("given"), Options(**chosen))

    parser.set_defaults(run=run)


def _export(commands: Any) -> None:
    parser = commands.add_parser(
        "export",
        help="make a trained model a file that runs without polyp",
        description="Write the model of a run as an ONNX file that takes images of any size and returns probabilities, "
        "measure how good and how fast it is beside the checkpoint, and leave both in the run's folder, under export/.",
    )
    parser.add_argument("model", metavar="RUN", help="its folder, or a checkpoint in it")
    parser.add_argument("--onnx", action="store_true", required=True, help="as ONNX, the one format that there is")
    parser.add_argument("--fp16", action="store_true", help="also in float16, for GPUs")
    parser.add_argument(
        "--int8", action="store_true", help="also in 8-bit integers, for CPUs; validation sets their range"
    )
    parser.add_argument("--out", metavar="FOLDER", help="where to write (RUN/export)")
    parser.add_argument("--root", metavar="FOLDER", help="where the run's data are, if they have moved")
    parser.add_argument("--archive", metavar="FILE", help="the archive of the run's data, if it has moved")
    parser.add_argument("--overwrite", action="store_true", help="replace an export that is there")

    def run(given: argparse.Namespace) -> None:
        from polyp.export.export import Options, export

        options = {key: value for key, value in vars(given).items() if key not in ("run", "model", "onnx")}
        export(given.model, Options(**options))

    parser.set_defaults(run=run)


def _app(commands: Any) -> None:
    parser = commands.add_parser(
        "app",
        help="a page in the browser, and an HTTP API",
        description="Serve trained models: choose or upload an image in the browser and see the polyps; or ask over "
        "HTTP. Works without a network. For research use, not for diagnosis.",
    )
    parser.add_argument("given", nargs="*", metavar="RUN", help="run folders or checkpoints; the first is asked first")
    parser.add_argument("--demo", action="store_true", help="the newest run below outputs/, or train one")
    parser.add_argument("--root", metavar="FOLDER", help="where the runs' data are, if they have moved")
    parser.add_argument("--host", default="127.0.0.1", help="to listen on; 0.0.0.0 lets other machines in (127.0.0.1)")
    parser.add_argument("--port", type=int, default=7860, metavar="N", help="0 is any that is free (7860)")
    parser.add_argument("--auth", metavar="USER:PASSWORD", help="which page and API then ask for")
    parser.add_argument("--max-upload", default="20MB", metavar="SIZE", help="of a file (20MB)")
    _add_compute(parser)
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps (auto)")

    def run(given: argparse.Namespace) -> None:
        from polyp.app.launch import AppOptions
        from polyp.app.launch import run as run_app

        options = {key: value for key, value in vars(given).items() if key not in ("run", "given")}
        run_app(AppOptions(tuple(given.given), **options))

    parser.set_defaults(run=run)


COMMANDS: Sequence[Callable[[Any], None]] = (_data, _evaluate, _compare, _predict, _export, _app)


if __name__ == "__main__":
    main()
