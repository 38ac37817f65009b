"""The page: which action answers which event."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr
from gradio.events import Dependency

from clipseg_jax.web import markup
from clipseg_jax.web.actions import Actions, Upload, Wish
from clipseg_jax.web.layout import TITLE, Fields, choices
from clipseg_jax.web.models import Models
from clipseg_jax.web.photos import Limits, Sample
from clipseg_jax.web.told import told

_WAITING = 40  # events that wait; of more a browser is told that the queue is full
# On a phone the results are below the window.
_TO_RESULTS = """() => {
  if (innerWidth < 700) document.getElementById('results').scrollIntoView({behavior: 'smooth'});
}"""
# A hidden button, whose click downloads the file that it has got.
_DOWNLOAD = "() => document.getElementById('{id}').click()"

# What takes milliseconds does not wait behind the network's runs.
_QUICK: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "queue": False}


def build(
    actions: Actions, models: Models, limits: Limits, samples: tuple[Sample, ...]
) -> gr.Blocks:
    """The page: its components, and the events between them and `actions`."""
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        fields = Fields(models, limits, samples)
        taken = _wire_photo(page, fields, actions, models, samples)
        _wire_runs(fields, actions, models, samples, taken)
        _wire_views(fields, actions)
        page.queue(max_size=_WAITING, default_concurrency_limit=4, api_open=False)
    return page


def _wire_photo(
    page: gr.Blocks,
    fields: Fields,
    actions: Actions,
    models: Models,
    samples: tuple[Sample, ...],
) -> Dependency:
    """The photo: a sample at first, then what the visitor takes or drops.

    Returns the event that a sample was taken.
    """
    own = {(", ".join(each.words), ", ".join(each.background)) for each in samples}

    @told
    def enter(request: gr.Request) -> str:
        return actions.take_sample(0, _visitor(request))[0]

    @told
    def take_sample(
        words: str, background: str, model: str, event: gr.EventData, request: gr.Request
    ) -> tuple[Any, ...]:
        picture, sample = actions.take_sample(_index(event), _visitor(request))
        if (words, background) in own and model not in models.trained():  # not the visitor's
            words, background = ", ".join(sample.words), ", ".join(sample.background)
        return picture, words, background

    @told
    def take_photo(upload: Upload | None, request: gr.Request) -> tuple[Any, ...]:
        if upload is None:
            raise ValueError("The photo did not arrive; drop it again.")
        picture, said = actions.take_photo(upload, _visitor(request))
        return picture, markup.note(said), gr.update(visible=True), gr.update(visible=False)

    def forget_upload(request: gr.Request) -> None:
        actions.forget_upload(_visitor(request))

    def forget_photo(request: gr.Request) -> tuple[Any, ...]:
        actions.forget_photo(_visitor(request))
        return None, "", gr.update(visible=True), gr.update(visible=False)

    def leave(request: gr.Request) -> None:
        actions.forget_photo(_visitor(request))

    places = [fields.photo, fields.said, fields.empty, fields.results]
    page.load(enter, None, fields.photo, **_QUICK)
    taken = fields.samples.pick(
        take_sample,
        [fields.words, fields.background, fields.model],
        [fields.photo, fields.words, fields.background],
        **_QUICK,
    )
    # One at a time: a large photo takes hundreds of megabytes while it is decoded.
    dropped = fields.photo.upload(
        take_photo,
        fields.photo,
        places,
        concurrency_id="decode",
        concurrency_limit=1,
        show_progress_on=fields.said,
        api_visibility="private",
    )
    dropped.failure(forget_photo, None, places, **_QUICK)
    dropped.then(forget_upload, None, None, **_QUICK)
    fields.photo.clear(forget_photo, None, places, **_QUICK)
    page.unload(leave)
    return taken


def _wire_runs(
    fields: Fields,
    actions: Actions,
    models: Models,
    samples: tuple[Sample, ...],
    taken: Dependency,
) -> None:
    """The model's choices, and the runs of the network."""

    @told
    def choose(name: str, words: str) -> tuple[Any, ...]:
        chosen = choices(name, models.get(name), samples[0])
        trained = {", ".join(classes) for classes in models.trained().values()}
        kept = chosen.open and words not in trained
        return (
            gr.update(value=words if kept else chosen.words, interactive=chosen.open),
            gr.update(visible=chosen.open),
            gr.update(choices=chosen.methods, value=chosen.method, visible=chosen.open),
            chosen.about,
        )

    @told
    def segment(
        words: str,
        background: str,
        model: str,
        method: str | None,
        refine: str,
        threshold: float,
        opacity: float,
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        visitor = _visitor(request)

        def say(text: str) -> tuple[Any, ...]:
            return (markup.note(text, "busy"), *[gr.skip()] * 7)

        if not models.is_loaded(model):
            yield say(f"Reading {model} ...")
        run, new = actions.plan(Wish(words or "", background or "", model, method, refine), visitor)
        yield say("Compiling for photos of this shape, once ..." if new else "Segmenting ...")
        seconds = actions.segment(run, visitor)
        view = actions.view(threshold, opacity, visitor)
        heat = actions.heat(None, threshold, visitor)
        yield (
            markup.note(f"{model}: {seconds:.1f} s. Click a class, or the mask, for its heat map."),
            gr.update(visible=False),
            gr.update(visible=True),
            view.overlay,
            view.compare,
            heat.picture,
            heat.caption,
            view.legend,
        )

    network: dict[str, Any] = {
        "concurrency_id": "network",
        "concurrency_limit": 1,
        "show_progress": "minimal",
        "show_progress_on": fields.said,
        "api_visibility": "private",
    }
    fields.model.input(
        choose,
        [fields.model, fields.words],
        [fields.words, fields.background, fields.method, fields.about],
        **network,
    )
    inputs = [fields.words, fields.background, fields.model, fields.method, fields.refine]
    outputs = [fields.said, fields.empty, fields.results, fields.overlay, fields.compare]
    outputs += [fields.heat, fields.caption, fields.legend]
    for event in (fields.go.click, fields.words.submit, taken.success):
        done = event(segment, [*inputs, fields.threshold, fields.opacity], outputs, **network)
        done.success(None, None, None, js=_TO_RESULTS)


def _wire_views(fields: Fields, actions: Actions) -> None:
    """What is seen of a result: nothing here runs the network."""

    @told
    def redraw(threshold: float, opacity: float, request: gr.Request) -> tuple[Any, ...]:
        return actions.view(threshold, opacity, _visitor(request))

    @told
    def pick(threshold: float, event: gr.EventData, request: gr.Request) -> tuple[Any, ...]:
        heat = actions.heat(_index(event), threshold, _visitor(request))
        return gr.update(selected="heat"), *heat

    @told
    def pick_pixel(threshold: float, event: gr.SelectData, request: gr.Request) -> tuple[Any, ...]:
        x, y = event.index
        index = actions.class_at(int(x), int(y), threshold, _visitor(request))
        heat = actions.heat(index, threshold, _visitor(request))
        return gr.update(selected="heat"), *heat

    @told
    def save_mask(threshold: float, request: gr.Request) -> str:
        return actions.save_mask(threshold, _visitor(request))

    @told
    def save_json(threshold: float, request: gr.Request) -> str:
        return actions.save_description(threshold, _visitor(request))

    for slider in (fields.threshold, fields.opacity):
        slider.input(
            redraw,
            [fields.threshold, fields.opacity],
            [fields.overlay, fields.compare, fields.legend],
            trigger_mode="always_last",
            **_QUICK,
        )
    shown = [fields.views, fields.heat, fields.caption, fields.legend]
    fields.legend.pick(pick, fields.threshold, shown, **_QUICK)
    fields.overlay.select(pick_pixel, fields.threshold, shown, **_QUICK)
    for button, file, save in (
        (fields.save_mask, fields.mask_file, save_mask),
        (fields.save_json, fields.json_file, save_json),
    ):
        button.click(save, fields.threshold, file, **_QUICK)
        file.change(None, None, None, js=_DOWNLOAD.format(id=file.elem_id))


def _visitor(request: gr.Request) -> str:
    """The browser's name for its tab."""
    return request.session_hash or ""


def _index(event: gr.EventData) -> int:
    """Of the element that was clicked; -1 of an event that the page does not send."""
    index = (event._data or {}).get("index")
    return index if type(index) is int else -1
