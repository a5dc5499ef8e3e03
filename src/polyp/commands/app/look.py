"""What the page looks like: fonts, colours and the space around it."""

from pathlib import Path

import gradio

CSS = Path(__file__).with_name("style.css")

SYSTEM = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Liberation Sans", "sans-serif")

THEME = gradio.themes.Base(
    primary_hue="teal",
    neutral_hue="slate",
    font=SYSTEM,
    font_mono=("ui-monospace", "Menlo", "Consolas", "Liberation Mono", "monospace"),
    radius_size="sm",
).set(
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    block_label_text_color="*neutral_700",
    block_label_text_color_dark="*neutral_200",
    block_title_text_color="*neutral_700",
    block_title_text_color_dark="*neutral_200",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_300",
    color_accent="*primary_700",
    slider_color="*primary_600",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_dark="*primary_700",
)
"""The system's fonts: others would have to be fetched. Text has a contrast of 4.5 or more."""

HEAD = """<style>
body.dark { --color-accent: #5eead4 !important; }
.gradio-container .app { max-width: 1240px !important; padding: 12px 24px !important; }
@media (max-width: 700px) {
  .gradio-container { padding: 0 !important; }
  .gradio-container .app { padding: 8px !important; }
}
:focus-visible { outline: 3px solid #0d9488 !important; outline-offset: 2px; }
.dark :focus-visible { outline-color: #5eead4 !important; }
</style>"""
"""In the page's head, since `CSS` reaches neither what is around the page nor Gradio's own panels."""
