"""What the page looks like."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import gradio as gr
from gradio.data_classes import ImageData

from clipseg_jax.inference_config import REFINEMENTS
from clipseg_jax.web import markup
from clipseg_jax.web.actions import NONE, Upload
from clipseg_jax.web.models import DEMO, Model, Models
from clipseg_jax.web.photos import Limits, Sample

STYLE = Path(__file__).with_name("style.css")
TITLE = "Segment a photo by words"

_REFINEMENTS = [("default", "auto"), ("none", NONE), *((n.upper(), n) for n in REFINEMENTS)]
_INTRO = f"""<h1>{TITLE}</h1>
<p>Drop a photo or take a sample, type what to look for, get a mask of every thing you named.
Photos stay on this server and are forgotten when you close the page.</p>"""
_EMPTY = """<div class="empty"><b>The mask appears here.</b>
<ol><li>Take a sample or drop a photo.</li><li>Type words, with commas between.</li>
<li>Press <b>Segment</b>.</li></ol></div>"""
_TOY = """<div class="note">demo is a tiny CLIP that knows painted toys only. For photos start the
page with <code>--model ViT-B/16</code>.</div>"""
_TRAINED = markup.note("This model was trained for these classes; words do not change it.")


class Choices(NamedTuple):
    """What the page offers with a model."""

    words: str  # in the field
    open: bool  # any words are taken
    methods: list[str]
    method: str | None
    about: str  # HTML


def choices(name: str, model: Model, sample: Sample) -> Choices:
    """What the page offers with a model, where `sample` has words."""
    if model.classes is not None:
        return Choices(", ".join(model.classes), False, [], None, _TRAINED)
    about = _TOY if name == DEMO else ""
    return Choices(", ".join(sample.words), True, list(model.methods), model.method, about)


class Fields:
    """The components of the page, laid out when it is made inside `gr.Blocks`."""

    def __init__(self, models: Models, limits: Limits, samples: tuple[Sample, ...]):
        first = models.names[0]
        start = choices(first, models.get(first), samples[0])
        gr.HTML(_INTRO, elem_id="intro")
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=320):
                self.photo = gr.Image(
                    label="Photo",
                    sources=["upload", "clipboard"],
                    buttons=["fullscreen"],
                    height=280,
                    elem_id="photo",
                    placeholder=f"Drop a photo, or click\nup to {limits.megabytes} MB and "
                    f"{limits.megapixels:g} megapixels",
                )
                # Gradio would open the file with all of Pillow. Not a class of our own, for Gradio
                # writes a file beside each module that has one.
                self.photo.preprocess = _upload_of  # type: ignore[method-assign, assignment]
                self.samples = gr.HTML(
                    markup.thumbnails(samples), js_on_load=markup.PICK_JS, elem_id="samples"
                )
                self.words = gr.Textbox(
                    start.words,
                    interactive=start.open,
                    label="What to look for",
                    info="English words, commas between",
                    lines=2,
                    max_lines=4,
                    elem_id="words",
                )
                self.background = gr.Textbox(
                    ", ".join(samples[0].background),
                    visible=start.open,
                    label="What else is there",
                    info="words that count as background",
                    elem_id="background",
                )
                self.go = gr.Button("Segment", variant="primary", elem_id="go")
                self.said = gr.HTML(elem_id="said", min_height=24)
                self.about = gr.HTML(start.about, elem_id="about")
                with gr.Accordion("Model, read-out, refinement", open=len(models.names) > 1):
                    self.model = gr.Dropdown(
                        models.names, value=first, label="Model", elem_id="model"
                    )
                    self.method = gr.Dropdown(
                        start.methods,
                        value=start.method,
                        visible=start.open,
                        label="Read-out",
                        info="how masks are read from CLIP",
                        elem_id="method",
                    )
                    self.refine = gr.Radio(
                        _REFINEMENTS,
                        value="auto",
                        label="Refinement",
                        info="makes masks follow the photo's edges",
                        elem_id="refine",
                    )
            with gr.Column(scale=6, min_width=320):
                self.empty = gr.HTML(_EMPTY, elem_id="empty")
                with gr.Column(visible=False, elem_id="results") as self.results:
                    with gr.Tabs(elem_id="views") as self.views:
                        with gr.Tab("Mask", id="mask"):
                            self.overlay = gr.Image(
                                show_label=False,
                                interactive=False,
                                buttons=["fullscreen"],
                                height=440,
                                elem_id="overlay",
                                alt_text="the photo under the colours of its classes",
                            )
                        with gr.Tab("Before / after", id="compare"):
                            self.compare = gr.ImageSlider(
                                show_label=False,
                                interactive=False,
                                buttons=["fullscreen"],
                                height=440,
                                max_height=440,
                                elem_id="compare",
                            )
                        with gr.Tab("Heat map", id="heat"):
                            self.heat = gr.Image(
                                show_label=False,
                                interactive=False,
                                buttons=["fullscreen"],
                                height=440,
                                elem_id="heat",
                                alt_text="how probable a class is at each pixel",
                            )
                            self.caption = gr.HTML(elem_id="caption")
                    self.legend = gr.HTML(js_on_load=markup.PICK_JS, elem_id="legend")
                    with gr.Row():
                        self.threshold = gr.Slider(
                            0,
                            1,
                            value=0,
                            step=0.01,
                            label="Background threshold",
                            info="pixels less sure than this are background",
                            min_width=260,
                            elem_id="threshold",
                        )
                        self.opacity = gr.Slider(
                            0,
                            1,
                            value=0.6,
                            step=0.05,
                            label="Opacity",
                            info="of the colours",
                            min_width=260,
                            elem_id="opacity",
                        )
                    with gr.Row():
                        self.save_mask = gr.Button(
                            "Download mask (PNG)", size="sm", elem_id="save_mask"
                        )
                        self.save_json = gr.Button(
                            "Download shares (JSON)", size="sm", elem_id="save_json"
                        )
                        self.mask_file = gr.DownloadButton(visible="hidden", elem_id="mask_file")
                        self.json_file = gr.DownloadButton(visible="hidden", elem_id="json_file")


def theme() -> gr.Theme:
    """Colours, and fonts that every system has: none is fetched."""
    return gr.themes.Default(
        primary_hue="teal",
        neutral_hue="slate",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "Consolas", "monospace"],
    )


def _upload_of(payload: ImageData | None) -> Upload | None:
    """Where an uploaded file is, and its owner's name for it."""
    if payload is None or payload.path is None:
        return None
    return Upload(payload.path, payload.orig_name or "the file")
