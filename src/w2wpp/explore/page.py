"""The page itself: its tabs and controls, which handler each calls, and the server around it."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from w2wpp.explore import shown
from w2wpp.explore.desk import Desk, in_one_line
from w2wpp.explore.studio import LONGEST, Studio
from w2wpp.explore.visit import Visit

HERE = Path(__file__).parent
LARGEST_UPLOAD = 32 * 2**20  # bytes
WAITING = 32  # requests in the queue; more are refused
FORMS = ["point", "peft", "diffusers", "kohya"]
PICK, BRUSH = ((HERE / name).read_text(encoding="utf-8") for name in ("pick.js", "brush.js"))
# One model: one request at a time computes, and of those that a control sends meanwhile only the last counts.
ONE: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model", "api_visibility": "private", "show_progress": "minimal"}
LAST = {**ONE, "trigger_mode": "always_last", "show_progress": "hidden"}
EACH = {**ONE, "trigger_mode": "multiple"}  # of a button that counts as often as it is clicked
THEME = gr.themes.Base(primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]).set(
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_300",
)


def build(studio: Studio) -> gr.Blocks:
    """The page over one studio. Every visitor's state is its own."""
    with gr.Blocks(title="w2w explore", analytics_enabled=False, delete_cache=(60, 600)) as page:
        gr.HTML(
            f"<h1>w2w explore</h1><p>{studio.space.kind} space, m = {studio.space.m}, on {studio.base.source}</p>", elem_classes="w2w-head"
        )
        at = Page(studio)
        with gr.Row(elem_classes="w2w-page"):
            with gr.Column(min_width=300, elem_classes="w2w-now"):
                at.person()
            with gr.Column(min_width=300, elem_classes="w2w-more"):
                at.more()
            with gr.Column(min_width=300, elem_classes="w2w-tabs"):
                # Gradio mounts what is inside a tab only when it is chosen, and a moment later writes the first values over what was typed
                # since. So the tabs are empty, and page.css shows the panel of the chosen one.
                panels = [at.sample, at.photo, at.adapter, at.blend, at.edit, at.map, at.prompt]
                with gr.Tabs():
                    tabs = [gr.Tab(panel.__name__.capitalize(), elem_id=f"tab-{panel.__name__}") for panel in panels]
                for tab, panel in zip(tabs, panels, strict=True):
                    with gr.Column(elem_id=f"panel-{panel.__name__}", elem_classes="w2w-panel"):
                        panel(tab)
        at.ask(page.load, at.desk.opened, [at.seed], [*at.shows, at.sheet], ONE)
    return page


class Page:
    """The controls: first those that several tabs share, then each tab's own beside what they call."""

    def __init__(self, studio: Studio) -> None:
        known = studio.space.prompting
        self.studio, self.desk, self.visit = studio, Desk(studio), gr.State(Visit())
        self.now = gr.HTML(elem_id="now", render=False)
        self.command, self.edit_command = (
            gr.Textbox(label="Copy as command", lines=3, max_lines=8, interactive=False, buttons=["copy"], elem_id=name, render=False)
            for name in ("command", "edit-command")
        )
        self.undo, self.redo = (gr.Button(name, size="sm", min_width=60, render=False) for name in ("Undo", "Redo"))
        self.favourites = gr.Dropdown(
            [], label="Favourites", info="Choose one to make it the current person.", elem_id="favourites", render=False
        )
        self.first, self.end = (gr.Dropdown([], label=name, elem_id=name.lower(), render=False) for name in ("From", "To"))
        self.words = [
            gr.Textbox(
                known.prompt, label="Prompt", info="`sks` stands for the person.", max_length=LONGEST, elem_id="prompt", render=False
            ),
            gr.Textbox("", label="Negative prompt", max_length=LONGEST, elem_id="negative", render=False),
            gr.Slider(0, 10, known.guidance, step=0.1, label="Guidance", info="1 is none.", elem_id="guidance", render=False),
            gr.Slider(1, 50, 10, step=1, label="Solver steps", render=False),
            gr.Number(0, label="Image seed", precision=0, minimum=0, maximum=2**31, elem_id="image-seed", render=False),
        ]
        self.shows = [self.visit, self.now, self.command, self.undo, self.redo, self.favourites, self.first, self.end]

    def ask(self, event: Any, handler: Callable[..., Any], given: Sequence[Any] = (), shows: Sequence[Any] = (), how: Any = LAST) -> Any:
        """On an event, give a handler the visit, what it needs, and how to draw; show what it returns, or what went wrong."""
        return event(in_one_line()(handler), [self.visit, *given, *self.words], shows or self.shows, **how)

    def person(self) -> None:
        """The current person, with undo and redo."""
        self.now.render()
        with gr.Row():
            self.undo.render()
            self.redo.render()
            favour = gr.Button("Add to favourites", size="sm", min_width=100)
        for button, which in ((self.undo, "undo"), (self.redo, "redo"), (favour, "favour")):
            self.ask(button.click, partial(self.desk.step, which), how=EACH)

    def more(self) -> None:
        """Favourites, the command, and export."""
        self.favourites.render()
        self.command.render()
        form = gr.Radio(FORMS, value="point", label="Export", info="ComfyUI and A1111 read kohya.")
        write = gr.Button("Write files", size="sm")
        files = gr.HTML(elem_id="files")
        self.ask(self.favourites.input, self.desk.load, [self.favourites])
        write.click(in_one_line()(self.desk.export), [self.visit, form], files, **LAST)

    def sample(self, _: gr.Tab) -> None:
        with gr.Row():
            self.seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31, elem_id="seed")
            draw = gr.Button("Draw new people", variant="primary")
        self.sheet = gr.HTML(js_on_load=PICK, elem_id="sheet")
        gr.Markdown("Click a picture to make it the current person.")
        self.ask(partial(gr.on, [draw.click, self.seed.submit]), self.desk.sheet, [self.seed], [self.visit, self.sheet])
        self.ask(self.sheet.click, self.desk.pick)

    def photo(self, _: gr.Tab) -> None:
        photo = gr.Image(sources=["upload", "webcam"], type="filepath", label="Photo", height=240, elem_id="photo")
        photo.preprocess = lambda payload: payload.path if payload else None  # gradio's opens it with every decoder it has
        aligned = gr.HTML(js_on_load=BRUSH, elem_id="aligned")
        gr.Markdown("Paint on the face to use a mask: then only what is white counts.")
        steps = gr.Slider(0, 100, 10, step=1, label="Steps", info="Steps of gradient descent.", elem_id="steps")
        invert = gr.Button("Invert", variant="primary")
        inverted = gr.HTML(elem_id="inverted")
        photo.input(in_one_line()(self.desk.photo), [self.visit, photo], [self.visit, aligned, photo], **LAST)
        aligned.input(in_one_line()(self.desk.mask), self.visit, self.visit, **LAST)
        hidden = {**ONE, "show_progress": "hidden"}
        found = invert.click(self.desk.invert, [self.visit, steps, *self.words], [self.visit, inverted], **hidden)
        self.ask(found.success, self.desk.current, how=ONE)

    def adapter(self, _: gr.Tab) -> None:
        row = gr.Dropdown(self.studio.ids, value=None, label="Row of the dataset", elem_id="row")
        label = "Adapter: the two files of a peft folder, or one .safetensors file of kohya or diffusers"
        sent = gr.File(label=label, file_count="multiple", file_types=[".safetensors", ".json"], elem_id="adapter")
        sent.preprocess = lambda payload: [file.path for file in payload or []]  # gradio's leaves a file behind
        kept = gr.Markdown()
        self.ask(row.input, self.desk.load, [row])
        self.ask(sent.upload, self.desk.adapter, [sent], [*self.shows, kept])

    def blend(self, _: gr.Tab) -> None:
        with gr.Row():
            self.first.render()
            self.end.render()
        share = gr.Slider(0, 1, 0.5, step=0.01, label="Share of the way", elem_id="share")
        strip = gr.HTML(elem_classes="w2w-strip", elem_id="strip")
        blended = gr.HTML(elem_id="blended")
        keep = gr.Button("Keep as current person")
        two = [self.first, self.end]
        ends = [self.first.input, self.end.input]
        self.ask(partial(gr.on, ends), self.desk.strip, two, [strip])
        self.ask(partial(gr.on, [*ends, share.input]), self.desk.blend, [*two, share], [self.visit, blended])
        self.ask(keep.click, partial(self.desk.keep, "blended"), how=ONE)

    def edit(self, _: gr.Tab) -> None:
        edited = gr.HTML(elem_id="edited")
        names = list(self.studio.directions)
        axes = [f"principal direction {i + 1}" for i in range(len(self.studio.axes))]
        with gr.Row(elem_id="edit-sliders"):
            sliders = [gr.Slider(-4, 4, 0, step=0.1, label=name, min_width=250) for name in names]
            sliders += [gr.Slider(-3, 3, 0, step=0.1, label=name, min_width=250) for name in axes]
        gr.Markdown("Strengths are in standard deviations over the people of the dataset.")
        held = gr.CheckboxGroup(names, label="Debias", info="Attributes whose score must not change.")
        about = "The edit acts below this share of the noise schedule; 1 is all."
        inject = gr.Slider(0, 1, 1, step=0.05, label="Late injection", info=about, elem_id="inject")
        self.edit_command.render()
        keep = gr.Button("Keep as current person")
        changes = [control.input for control in (*sliders, held, inject)]
        shows = [self.visit, edited, self.edit_command]
        self.ask(partial(gr.on, [*changes, self.now.change]), self.desk.edit, [held, inject, *sliders], shows)
        rest = keep.click(None, None, sliders, js=f"() => {[0] * len(sliders)}", api_visibility="private")
        self.ask(rest.then, partial(self.desk.keep, "edited"), how=ONE)

    def map(self, tab: gr.Tab) -> None:
        chart = gr.HTML(shown.scatter(self.studio.places, self.studio.ids), js_on_load=PICK, elem_id="map")
        gr.Markdown("The people of the dataset, along the first two principal directions. Click a dot or a picture to load a person.")
        near = gr.HTML(js_on_load=PICK, elem_id="near")
        loaded = self.ask(partial(gr.on, [chart.click, near.click]), self.desk.load_place)
        for event in (tab.select, loaded.success):
            self.ask(event, self.desk.neighbours, shows=[chart, near])

    def prompt(self, _: gr.Tab) -> None:
        for control in self.words:
            control.render()
        lock = gr.Checkbox(True, label="Lock the image seed", info="Without the lock every Draw takes another one.", elem_id="lock")
        draw = gr.Button("Draw", variant="primary")
        self.ask(partial(gr.on, [draw.click, self.words[0].submit]), self.desk.redraw, [lock], [*self.shows, self.words[-1]])


def launch(page: gr.Blocks, host: str, port: int | None, *, browser: bool, auth: tuple[str, str] | None, share: bool) -> str:
    """Begin to serve the page; returns its address. share: through gradio's relay. Raises OSError for a taken port."""
    _, local, public = page.queue(max_size=WAITING).launch(
        server_name=host,
        server_port=port,
        inbrowser=browser,
        auth=auth,
        share=share,
        prevent_thread_lock=True,
        quiet=True,
        show_error=False,
        max_file_size=LARGEST_UPLOAD,
        footer_links=[],
        ssr_mode=False,
        enable_monitoring=False,
        theme=THEME,
        css_paths=HERE / "page.css",
    )
    return public or local
