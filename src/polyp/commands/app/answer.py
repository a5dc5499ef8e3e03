"""An answer as the page shows it: verdict, picture, legend, numbers, and the files to take along."""

import base64
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from typing import Any
from urllib.parse import urlencode

import cv2
import numpy as np
import torch

from polyp.commands.app import drawing
from polyp.commands.app.desk import Seen
from polyp.inference import polyps
from polyp.inference.polyps import Polyp
from polyp.metrics.overlap import image_scores
from polyp.report.pictures import PREDICTION, TRUTH

SHOWN = 1280
"""Pixels of the longer side of pictures on the page; files have all."""


def facts(seen: Seen, threshold: float) -> dict[str, Any]:
    """What is known of an image, for scripts; positions and sizes are in pixels, shares and probabilities in 0-1."""
    height, width = seen.probability.shape
    found = []
    for polyp in polyps.find(seen.probability, threshold):
        plain = asdict(polyp)
        box = {side: plain.pop(side) for side in ("left", "top", "width", "height")}
        centroid = {axis: plain.pop(axis) for axis in ("x", "y")}
        found.append({"box": box, "centroid": centroid, **plain})
    return {
        "model": seen.model,
        "size": {"width": width, "height": height},
        "threshold": threshold,
        "polyps": found,
        "milliseconds": round(seen.milliseconds, 1),
    }


def show(seen: Seen, threshold: float, opacity: float, view: str, several: bool = False) -> str:
    """What a model says of an image, as HTML.

    Args:
        seen: what it says.
        threshold, opacity, view: as `drawing.draw` takes them; errors of an image without truth are its overlay.
        several: others stand beside it: its name is the headline.
    """
    note = ""
    if view == drawing.ERRORS and seen.photo.truth is None:
        view, note = drawing.OVERLAY, '<p class="facts">No truth is known for this image, so no errors either.</p>'
    found = polyps.find(seen.probability, threshold)
    name, height, width = escape(seen.photo.name), *seen.probability.shape
    link = urlencode({"key": seen.photo.key, "model": seen.model, "threshold": threshold})
    parts = [
        f"<h2>{escape(seen.model)}</h2>" if several else "",
        f'<p class="verdict {"found" if found else "none"}" role="status">{verdict(found)}</p>',
        f'<img src="{_data_uri(drawing.draw(seen, threshold, opacity, view))}" width="{width}" height="{height}" '
        f'alt="{name}, {escape(view.lower())}: {verdict(found)}">',
        note + legend(seen, threshold, view),
        f'<p class="facts">{name} · {width} x {height} pixels · {seen.milliseconds:.0f}&nbsp;ms</p>',
        scores(seen, threshold),
        table(found) if not several else "",
        f'<p class="files"><a download href="answers/mask.png?{escape(link)}">Download mask</a>'
        f'<a download href="answers/overlay.png?{escape(link)}&amp;opacity={opacity:g}">Download overlay</a></p>',
    ]
    return f'<article class="answer">{"".join(parts)}</article>'


def side_by_side(answers: Sequence[str]) -> str:
    """Several answers."""
    return f'<div class="beside">{"".join(answers)}</div>'


def hint(message: str) -> str:
    """What to do next, as HTML."""
    return f'<article class="answer"><p class="hint empty">{escape(message)}</p></article>'


def problem(message: str) -> str:
    """What went wrong, as HTML."""
    return f'<article class="answer"><p class="verdict problem" role="alert">{escape(message)}</p></article>'


def verdict(found: Sequence[Polyp]) -> str:
    """What was found, in one line."""
    if not found:
        return "No polyp found"
    share = _percent(sum(polyp.share for polyp in found))
    return (
        f"{len(found)} polyp{'s' * (len(found) > 1)}: {share} of the image{', together' * (len(found) > 1)}, "
        f"mean probability {polyps.mean_probability(found):.2f}"
    )


def table(found: Sequence[Polyp]) -> str:
    """The polyps, a row each."""
    rows = "".join(
        f"<tr><td>{number}</td><td>{_percent(polyp.share)}</td><td>{polyp.probability:.2f}</td>"
        f"<td>{polyp.width} x {polyp.height}</td><td>{polyp.x:.0f}, {polyp.y:.0f}</td></tr>"
        for number, polyp in enumerate(found, 1)
    )
    heads = "".join(f'<th scope="col">{h}</th>' for h in ("Polyp", "Area", "Probability", "Box, px", "Centre, px"))
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>" if found else ""


def scores(seen: Seen, threshold: float) -> str:
    """Dice and IoU at the threshold in use, where the truth is known."""
    if seen.photo.truth is None:
        return ""
    counted = image_scores(torch.from_numpy(seen.probability), torch.from_numpy(seen.photo.truth), threshold)
    note = "" if threshold == 0.5 else "; reports give them at 0.50"
    return (
        f'<p class="scores"><b>Dice {counted["dice"].item():.3f}</b> · <b>IoU {counted["iou"].item():.3f}</b> '
        f"at threshold {threshold:.2f}{note}</p>"
    )


def legend(seen: Seen, threshold: float, view: str) -> str:
    """What the colours mean."""
    if view == drawing.IMAGE:
        return '<p class="legend">The image alone</p>'
    if view == drawing.UNCERTAINTY:
        ends = drawing.viridis(np.linspace(0, 1, 9)[None])[0]
        bar = ", ".join(f"rgb({r} {g} {b})" for r, g, b in ends)
        return (
            f'<p class="legend heat"><span>0 sure</span><i style="background:linear-gradient(90deg, {bar})"></i>'
            f"<span>{drawing.MOST_SPREAD} unsure</span><small>standard deviation of the probability between the image "
            "and its flips; white: outline of the prediction</small></p>"
        )
    if view == drawing.ERRORS:
        assert seen.photo.truth is not None
        parts = drawing.outcomes(polyps.mask(seen.probability, threshold), seen.photo.truth)
        words = ("right", "missed", "false alarm")
        colours = (drawing.RIGHT, drawing.MISSED, drawing.FALSE)
        keys = [(f"{w} {_percent(part.mean())}", c) for w, part, c in zip(words, parts, colours, strict=True)]
    else:
        keys = [("prediction", PREDICTION)] + ([] if seen.photo.truth is None else [("truth", TRUTH)])
    items = "".join(f'<span><i style="background:rgb{colour}"></i>{word}</span>' for word, colour in keys)
    return f'<p class="legend">{items}</p>'


def _percent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %") if share >= 0.001 or share == 0 else "< 0.1 %"


def _data_uri(picture: np.ndarray) -> str:
    scale = SHOWN / max(picture.shape[:2])
    if scale < 1:
        size = [max(1, round(side * scale)) for side in picture.shape[1::-1]]
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    sharp = [cv2.IMWRITE_JPEG_QUALITY, 92, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    encoded = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), sharp)[1]
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.tobytes()).decode()}"
