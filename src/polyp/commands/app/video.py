"""The page's tab for videos."""

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio
import numpy as np
from gradio.context import LocalContext

from polyp.commands.app.desk import Desk
from polyp.commands.app.upload import checked, stem
from polyp.commands.predict.video import predict_video
from polyp.errors import InputError
from polyp.inference.predictor import Predictor

MOST_FRAMES = 3000
"""Of a video that are looked at: two minutes of it."""


class Patient:
    """A predictor that waits for its turn at the desk with each few frames, so that others get theirs in between.

    To be made in the event of the visitor for whom it predicts.
    """

    def __init__(self, desk: Desk, predictor: Predictor) -> None:
        self.desk, self.predictor = desk, predictor
        blocks, event = LocalContext.blocks.get(None), LocalContext.event_id.get(None)
        self.jobs = [] if blocks is None else [job for jobs in blocks._queue.active_jobs for job in jobs or ()]
        self.jobs = [job for job in self.jobs if job._id == event]

    def predict_all(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """As the predictor does.

        Raises:
            InputError: the visitor has left.
        """
        if not all(job.alive for job in self.jobs):
            raise InputError("nobody waits for this video any more")
        return self.desk.turn(lambda: self.predictor.predict_all(images), patient=True)


def video_tab(desk: Desk, threshold: gradio.Slider, model: gradio.Dropdown) -> None:
    """Upload a video; see it with the polyps on it, and take it and its table along.

    Args:
        desk: looks at the frames.
        threshold, model: not yet rendered controls of the tab.
    """
    with gradio.Tab("Video"), gradio.Row():
        with gradio.Column(scale=2, min_width=300):
            video = gradio.File(label=f"Your video (its first {MOST_FRAMES} frames)", file_types=["video"])
            threshold.render()
            model.render()
            begin = gradio.Button("Find polyps", variant="primary")
        with gradio.Column(scale=3, min_width=320):
            said = gradio.HTML('<p class="hint empty">The video with the polyps drawn on it will be here.</p>')
            shown = gradio.Video(label="Video with polyps", visible=False, interactive=False)
            table = gradio.File(label="Every frame, as CSV", visible=False, interactive=False)

    def work(
        path: str | None,
        threshold: float,
        model: str,
        progress: Any = gradio.Progress(),  # noqa: B008
    ) -> Iterator[tuple[Any, Any, Any]]:
        nothing = gradio.update(visible=False, value=None)
        if not path:
            yield _said("Choose a video first.", "problem"), nothing, nothing
            return
        with TemporaryDirectory(prefix="video-") as folder:
            name = stem(path)
            target, rows = Path(folder) / f"{name}_polyps.webm", Path(folder) / f"{name}_polyps.csv"
            try:
                told = lambda done, count: progress((done, count), unit="frames")  # noqa: E731
                patient: Any = Patient(desk, desk.predictor(model)[1])
                done = predict_video(Path(path), patient, checked(threshold), rows, target, MOST_FRAMES, told)
            except InputError as error:
                yield _said(str(error).replace(path, Path(path).name), "problem"), nothing, nothing
                return
            seen, listed = (gradio.update(visible=True, value=str(file)) for file in (target, rows))
            note = "; the video is damaged or cut off after these" if done.problem else ""
            yield _said(f"{done.with_polyps} of {done.frames} frames show a polyp{note}", "found"), seen, listed

    begin.click(
        work, [video, threshold, model], [said, shown, table],
        api_visibility="private", concurrency_limit=1, show_progress_on=said,
    )  # fmt: skip


def _said(text: str, kind: str) -> str:
    role = "alert" if kind == "problem" else "status"
    return f'<article class="answer"><p class="verdict {kind}" role="{role}">{escape(text)}</p></article>'
