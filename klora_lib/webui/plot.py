"""What a plot does with cells that K-LoRA cannot draw: it is refused before the first image, or a sentence is the image."""

from __future__ import annotations

import copy
import functools
import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import KLoraError, list_offenders
from ..hosts import detect
from ..infotext import STEM
from ..late import Late
from ..patching import replace_attribute
from ..rule.cache import Library
from ..settings import Settings, quote_value
from .refuse import KLoraRefused

if TYPE_CHECKING:
    from ..hosts import family
    from ..hosts.contract import Host
    from . import listed, wishes
    from . import sentence as sentences
else:
    family = Late("klora_lib.hosts.family")
    listed = Late("klora_lib.webui.listed")
    sentences = Late("klora_lib.webui.sentence")
    wishes = Late("klora_lib.webui.wishes")

UNGUARDED = "klora_unguarded"  # on our function: the host's, which it replaces
PROMPT_AXES = ("Prompt S/R", "Prompt order", "Styles")  # they can write a tag into the prompt
MODEL_AXES = ("Checkpoint name",)
TEMPLATES = ("{", "__")  # a prompt with these may be written by another script, so that its tag is not known yet
NOT_DRAWN = f"{STEM}not drawn"
TITLE = "K-LoRA"


class Axis(NamedTuple):
    option: Any  # the host's AxisOption
    values: Sequence[Any]


def guard_plot(grid: ModuleType, library: Library) -> None:
    """Put our function in the place of the host's ``draw_xyz_grid``, which a plot calls when all its values are read.

    Called again, it replaces ours.
    """
    draw = getattr(grid, "draw_xyz_grid", None)
    if draw is None:
        return
    original = getattr(draw, UNGUARDED, draw)

    @functools.wraps(original)
    def draw_guarded(p: Any, *args: Any, **kwargs: Any) -> Any:
        axes = find_axes(grid)
        refuse_cells(library, p, axes)
        with tell_refusals(grid) as (refused, drawn):
            result = original(p, *args, **kwargs)
        if refused and not drawn:
            raise refused[0]
        note_refusals(kwargs.get("cell"), refused)
        return result

    setattr(draw_guarded, UNGUARDED, original)
    grid.draw_xyz_grid = draw_guarded  # type: ignore[attr-defined]


def find_axes(grid: ModuleType) -> list[Axis]:
    """The axes of the plot that is to be drawn; none if the host does not tell."""
    state = getattr(grid, "state", None)
    told = [getattr(state, f"xyz_plot_{letter}", None) for letter in "xyz"]
    return [Axis(info.axis, info.values) for info in told if info is not None]


# --- before the first image ---


def refuse_cells(library: Library, p: Any, axes: list[Axis]) -> None:
    """Raise KLoraRefused if it is known of a cell that it cannot be drawn."""
    cells = list(itertools.product(*(axis.values for axis in axes)))
    model_stays = not any(axis.option.label in MODEL_AXES for axis in axes) and not is_model_overridden(p)
    found: dict[tuple[Settings, bool], str] = {}  # what is wrong with it; empty: nothing
    errors: list[str] = []
    for cell in cells:
        reasons = []
        try:
            for settings, is_others in read_cell(p, axes, cell):
                if (settings, is_others) not in found:
                    found[settings, is_others] = find_fault(library, settings, p, model_stays and not is_others)
                reasons.append(found[settings, is_others])
        except KLoraError as e:
            reasons.append(str(e))
        if told := next(filter(None, reasons), ""):
            errors.append(f"{name_cell(axes, cell)}: {told}")
    if errors:
        count = f"{len(errors)} of the plot's {len(cells)} cells cannot be drawn"
        raise KLoraRefused(f"K-LoRA: {count}: {list_offenders(errors)}")


def is_model_overridden(p: Any) -> bool:
    return "sd_model_checkpoint" in (getattr(p, "override_settings", None) or {})


def read_cell(p: Any, axes: list[Axis], cell: Sequence[Any]) -> Iterator[tuple[Settings, bool]]:
    """Of each pass of a cell that has a pair: its settings, and whether it has another checkpoint.  Raises SettingsError."""
    is_other = getattr(p, "hr_checkpoint_name", None) not in wishes.SAME_CHECKPOINT
    copied = copy.copy(p)
    copied.styles = list(getattr(p, "styles", None) or [])
    for (option, values), value in zip(axes, cell):
        if option.label.startswith(STEM) or option.label in PROMPT_AXES:
            try:
                option.apply(copied, value, values)
            except RuntimeError:  # words that are not in the prompt: the plot itself will say so
                return
    write_prompts(copied)
    if any(mark in prompt for prompt in (*copied.all_prompts, *copied.all_hr_prompts) for mark in TEMPLATES):
        return
    for wish in wishes.read_wishes(copied, find_arguments(copied)):
        passes = (wish.first, False), (wish.hires, is_other)
        yield from ((settings, is_others) for settings, is_others in passes if settings is not None)


def write_prompts(p: Any) -> None:
    """The first prompt and hires prompt as the job will have them, styles included."""
    from modules import shared

    def add_styles(prompt: Any) -> str:
        text = prompt[0] if isinstance(prompt, list) else prompt
        styles = getattr(shared, "prompt_styles", None)
        return styles.apply_styles_to_prompt(text, p.styles) if styles is not None and p.styles else text

    p.all_prompts = [add_styles(p.prompt)]
    p.all_hr_prompts = [add_styles(getattr(p, "hr_prompt", "") or p.prompt)]
    p.batch_size = 1


def find_arguments(p: Any) -> Sequence[Any]:
    """The values of our panel or of the request; none if the job has none."""
    for script in getattr(getattr(p, "scripts", None), "alwayson_scripts", []):
        if script.title() == TITLE:
            return p.script_args[script.args_from : script.args_to]
    return ()


def find_fault(library: Library, settings: Settings, p: Any, model_stays: bool) -> str:
    """Why these settings cannot be drawn; empty if nothing is known against them.

    model_stays: whether they are for the model that is chosen now.  It may have to be loaded first.
    """
    host: Host = detect()
    try:
        if model_stays and host.has_model():
            listed.make_part(host, library, settings, p)
        else:
            content, style = listed.find_entries(host, settings)
            library.pair(*library.read_both((content.path, content.name), (style.path, style.name)))
    except KLoraError as e:
        return str(e)
    return ""


def name_cell(axes: list[Axis], cell: Sequence[Any]) -> str:
    told = [f"{axis.option.label.removeprefix(STEM)} {quote_value(value)}" for axis, value in zip(axes, cell)
            if axis.option.label != "Nothing"]  # fmt: skip
    return ", ".join(told) or "its only cell"


# --- while it is drawn ---


@contextmanager
def tell_refusals(grid: ModuleType) -> Iterator[tuple[list[KLoraRefused], list[Any]]]:
    """While open, a cell that K-LoRA refuses has the sentence as its image.  Gives the refusals, and the drawn jobs."""
    refused: list[KLoraRefused] = []
    drawn: list[Any] = []
    original = grid.process_images

    def process_images(p: Any) -> Any:
        try:
            processed = original(p)
        except KLoraRefused as e:
            refused.append(e)
            return make_told_cell(grid, p, str(e))
        drawn.append(p)
        return processed

    with replace_attribute(grid, "process_images", process_images):
        yield refused, drawn


def make_told_cell(grid: ModuleType, p: Any, sentence: str) -> Any:
    """What a host's job returns, with the sentence as its image."""
    load_font = getattr(getattr(grid, "images", None), "get_font", None)
    image = sentences.draw_sentence(sentence, family.find_largest_size(p), load_font)
    infotext = f"{p.all_prompts[0]}\n{NOT_DRAWN}: {json.dumps(sentence, ensure_ascii=False)}"
    return grid.Processed(p, images_list=[image], seed=p.all_seeds[0], info=infotext, infotexts=[infotext])


def note_refusals(cell: Any, refused: list[KLoraRefused]) -> None:
    """Write the refusals into the infotexts of the plot's grids.

    The host keeps these in a list of the function that draws the plot, which ``cell``, a function within it, refers to.
    """
    names = getattr(getattr(cell, "__code__", None), "co_freevars", ())
    if not refused or "grid_infotext" not in names:
        return
    texts = cell.__closure__[names.index("grid_infotext")].cell_contents
    told = list_offenders(list(dict.fromkeys(map(str, refused))))
    for i, text in enumerate(texts):
        if text:
            texts[i] = f"{text}, {NOT_DRAWN}: {json.dumps(told, ensure_ascii=False)}"
