"""The page: choose or upload an image, see what the models say of it."""

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import gradio
import numpy as np
from gradio.utils import get_upload_folder
from gradio_client.utils import traverse

from polyp.commands.app import answer, drawing
from polyp.commands.app.desk import Desk, Photo
from polyp.commands.app.gallery import Gallery, key_of
from polyp.commands.app.replies import explain
from polyp.commands.app.upload import checked, digest, uploaded
from polyp.commands.app.video import video_tab
from polyp.errors import InputError
from polyp.inference import polyps

SESSIONS = 256
"""Visitors whose choice is remembered, the latest."""

HOUR = 3600

CHOOSE = answer.hint("Choose an image, or upload one.")

PICK = """
element.addEventListener('click', event => {
    const chosen = event.target.closest('button[data-name]');
    if (!chosen) return;
    element.querySelectorAll('button').forEach(one => one.setAttribute('aria-pressed', one === chosen));
    props.value = chosen.dataset.name;
    trigger('input');
});
"""

UNPICK = "() => document.querySelectorAll('#gallery button').forEach(one => one.setAttribute('aria-pressed', false))"
"""Once an image of one's own is looked at."""


class Page(gradio.Blocks):
    """Gradio's page, to which a file is what a visitor has uploaded, and nothing else.

    Gradio looks after that only in pages that it serves itself: of one that is mounted in another application it takes
    any path on this machine, and fetches addresses.
    """

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *more: Any, **named: Any) -> list[Any]:
        """What Gradio does, once every file that is named has been looked at."""
        own = Path(get_upload_folder()).resolve()

        def check(file: dict[str, Any]) -> dict[str, Any]:
            path, name = (str(file.get(key) or "") for key in ("path", "orig_name"))
            if not Path(path).resolve().is_relative_to(own):
                raise gradio.Error("only uploaded files are looked at", print_exception=False)
            return {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}  # and nothing within

        try:
            return await super().preprocess_data(block_fn, traverse(inputs, check, _names_file), *more, **named)
        except OSError:
            raise
        except Exception as error:  # there is no end to what components raise of values that no page sends
            said = error.message if isinstance(error, gradio.Error) else "this does not fit the page"
            raise gradio.Error(said, print_exception=False) from error

    async def process_api(self, *given: Any, **named: Any) -> dict[str, Any]:
        """What Gradio does for an event; errors are explained as those of HTTP requests are."""
        try:
            return await super().process_api(*given, **named)
        except gradio.Error:
            raise
        except Exception as error:  # whatever a component raises
            raise gradio.Error(explain(error)[1], print_exception=False) from error


def _names_file(given: Any) -> bool:
    return isinstance(given, dict) and not given.keys().isdisjoint(("path", "url"))


def build(desk: Desk, gallery: Gallery) -> gradio.Blocks:
    """The page.

    Args:
        desk: looks at images.
        gallery: the test images.
    """
    several = len(desk.models) > 1
    # Answered in the order asked, so that each sees what the one before it has chosen.
    internal: dict[str, Any] = {
        "api_visibility": "private",
        "show_progress": "hidden",
        "concurrency_id": "page",
        "concurrency_limit": 1,
    }

    def look(name: str, own: str | None, threshold: float, opacity: float, view: str, model: str, beside: bool) -> str:
        if not name and not own:
            return CHOOSE

        def work() -> str:
            key, photo = (key_of(name), lambda: gallery.photo(str(name))) if name else opened(str(own))
            shown = [
                desk.see(key, photo, name, view == drawing.UNCERTAINTY) for name in (desk.models if beside else [model])
            ]
            each = [answer.show(seen, checked(threshold), checked(opacity), view, beside) for seen in shown]
            return answer.side_by_side(each) if beside else each[0]

        try:
            return desk.turn(work)
        except InputError as error:
            return answer.problem(str(error))

    page = Page(title="polyp", analytics_enabled=False, delete_cache=(HOUR // 6, HOUR), fill_width=False)
    page.state_session_capacity = SESSIONS
    page.has_launched = True  # Gradio's own check of paths, for what is shown
    with page:
        gradio.HTML(heading(desk), elem_id="heading")
        own = gradio.State(None)
        scripts(desk)
        tabs = gradio.Tabs()
        with tabs, gradio.Tab("Image"), gradio.Row(elem_id="desk"):
            with gradio.Column(scale=3, min_width=320):
                shown = gradio.HTML(CHOOSE, elem_id="answer")
            with gradio.Column(scale=2, min_width=300):
                thumbnails = gradio.HTML(
                    next(iter(gallery.names), ""),
                    html_template="${buttons_of_names}",
                    buttons_of_names=gallery.html(),
                    js_on_load=PICK,
                    elem_id="gallery",
                )
                upload = gradio.Image(
                    sources=["upload", "clipboard"],
                    type="filepath",
                    label="Your own image",
                    height=150,
                    elem_id="upload",
                )
                untouched(upload)
                view = gradio.Radio(drawing.VIEWS, value=drawing.OVERLAY, label="Show")
                threshold = threshold_slider(desk)
                opacity = gradio.Slider(0, 1, 0.3, step=0.05, label="Opacity")
                model = model_choice(desk)
                beside = gradio.Checkbox(False, label="All models side by side", visible=several)
        settings = [thumbnails, own, threshold, opacity, view, model, beside]

        def take(path: str | None, *rest: Any) -> tuple[str, str | None, str, None]:
            return "", path, look("", path, *rest), None

        def switch(*given: Any) -> tuple[float, str]:
            name, path, _, opacity, view, model, beside = given
            best = desk.predictor(model)[1].threshold
            return best, look(name, path, best, opacity, view, model, beside)

        page.load(look, settings, shown, **internal)
        upload.upload(take, [upload, *settings[2:]], [thumbnails, own, shown, upload], **internal)
        upload.upload(None, js=UNPICK, **internal)
        model.input(switch, settings, [threshold, shown], **internal)
        # One event: of several the page shows the answers in any order, and the last may not be what stays.
        moved = [one.input for one in (thumbnails, threshold, opacity, view, beside)]
        gradio.on(moved, look, settings, shown, trigger_mode="always_last", **internal)
        with tabs:
            video_tab(desk, threshold_slider(desk, render=False), model_choice(desk, render=False))
    page.queue(max_size=64, default_concurrency_limit=8)
    return page


def threshold_slider(desk: Desk, render: bool = True) -> gradio.Slider:
    """It stands at the first model's own."""
    own = desk.predictor(None)[1].threshold
    return gradio.Slider(
        0.05, 0.95, own, step=0.01, label="Threshold", info="Polyp from this probability on", render=render
    )


def model_choice(desk: Desk, render: bool = True) -> gradio.Dropdown:
    """Where there is one."""
    several = len(desk.models) > 1
    return gradio.Dropdown(
        list(desk.models), value=desk.models[0], label="Model", filterable=False, visible=several, render=render
    )


def untouched(image: gradio.Image) -> None:
    """Let a component give the path of what was uploaded: Gradio would open it by Pillow's rules, `decode` shall."""

    path_alone: Any = lambda payload: payload and payload.path  # noqa: E731
    image.preprocess = path_alone  # type: ignore[method-assign] # Gradio would take a subclass for an add-on


def scripts(desk: Desk) -> None:
    """What scripts call with Gradio's client: `predict`."""
    image = gradio.Image(visible=False, type="filepath", label="image")
    untouched(image)
    threshold = gradio.Number(None, visible=False, label="threshold")
    model = gradio.Textbox(None, visible=False, label="model")
    found, mask = gradio.JSON(visible=False, label="found"), gradio.Image(visible=False, format="png", label="mask")

    def predict(
        image: str, threshold: float | None = None, model: str | None = None
    ) -> tuple[dict[str, Any], np.ndarray]:
        """The polyps of an image, and its mask (0 or 255) as a PNG of the same size.

        Args:
            image: a file.
            threshold: polyp from this probability on, 0-1; the model's own if None.
            model: its name; the first if None.
        """

        def work() -> tuple[dict[str, Any], np.ndarray]:
            chosen = desk.predictor(model)[1].threshold if threshold is None else checked(threshold)
            seen = desk.ask(opened(image)[1], model)
            return answer.facts(seen, chosen), polyps.mask(seen.probability, chosen)

        if not image:
            raise gradio.Error("image: none was given", print_exception=False)
        try:
            return desk.turn(work)
        except InputError as error:
            raise gradio.Error(str(error), print_exception=False) from error

    button = gradio.Button(visible=False)
    button.click(predict, [image, threshold, model], [found, mask], api_name="predict", concurrency_limit=32)


def opened(path: str) -> tuple[str, Callable[[], Photo]]:
    """The key of a file that was uploaded, and what decodes it.

    Raises:
        InputError: it is gone.
    """
    file = Path(path)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InputError("the uploaded image is no longer here: upload it again") from error
    return digest(content), lambda: uploaded(content, file.name)


def heading(desk: Desk) -> str:
    """Name, models, and what this is not for."""
    names = ", ".join(escape(name) for name in desk.models)
    backend = escape(desk.predictors[desk.models[0]].backend)
    return (
        '<header><div><h1>polyp</h1><p class="models">'
        f"{names} <span>· {backend}</span></p></div>"
        '<p class="warning" role="note">For research use, not for diagnosis</p></header>'
    )
