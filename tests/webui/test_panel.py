"""Theorem: the panel is the settings table, one component a field, in its order; it builds under gradio 3 and 4."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr
import pytest

from klora_lib.settings import FIELDS, Settings, named, read_settings
from klora_lib.webui import panel

from ..fakes.a1111 import FakeA1111

LISTED = ["conv_only", "other_family", "style", "style_full", "subject", "subject_full"]


@contextmanager
def new_page() -> Iterator[gr.Blocks]:
    """gradio makes its web app at both ends of a page, and warns of its own ways there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        page = gr.Blocks()
        page.__enter__()
    try:
        yield page
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            page.__exit__()


@pytest.fixture
def built(host: FakeA1111) -> Iterator[tuple[gr.Blocks, list[Any]]]:
    with new_page() as page:
        components = host.script.ui(False)
    yield page, components


def functions(page: gr.Blocks) -> list[Callable[..., Any]]:
    known = page.fns.values() if isinstance(page.fns, dict) else page.fns
    return [f.fn for f in known if f.fn is not None]


def test_one_component_a_field_in_the_order_of_the_table(built: tuple[gr.Blocks, list[Any]]) -> None:
    page, components = built
    assert [c.label for c in components] == [f.label for f in FIELDS]
    assert all(c._id in page.blocks for c in components)


def test_ids_are_unique_and_the_scripts_own(built: tuple[gr.Blocks, list[Any]]) -> None:
    _, components = built
    ids = [c.elem_id for c in components]
    assert len(set(ids)) == len(FIELDS)
    assert all(re.fullmatch(rf"script_txt2img_klora_{f.name}(-checkbox)?", i) for i, f in zip(ids, FIELDS))


def test_the_untouched_panel_is_the_default_settings(built: tuple[gr.Blocks, list[Any]]) -> None:
    _, components = built
    values = [c.value for c in components]
    assert read_settings(named(values)) == Settings(beta=0.5)


def test_switched_on_it_is_a_job(built: tuple[gr.Blocks, list[Any]]) -> None:
    values = [c.value for c in built[1]]
    values[:3] = True, "subject", "style"
    assert read_settings(named(values)) == Settings(True, "subject", "style", beta=0.5)


def test_sliders_have_the_tables_ranges(built: tuple[gr.Blocks, list[Any]]) -> None:
    for field, c in zip(FIELDS, built[1]):
        if isinstance(c, gr.Slider):
            assert (c.minimum, c.maximum, c.step) == field.range
            assert field.read(c.minimum) is not None and field.read(c.maximum) is not None


def options(component: Any) -> list[str]:
    """gradio 4 keeps (label, value) pairs."""
    return [c[1] if isinstance(c, (tuple, list)) else c for c in component.choices]


def test_dropdowns_offer_what_the_table_accepts(built: tuple[gr.Blocks, list[Any]]) -> None:
    by_name = {f.name: c for f, c in zip(FIELDS, built[1])}
    assert options(by_name["content"]) == options(by_name["style"]) == ["None", *LISTED]
    for field in FIELDS:
        if isinstance(by_name[field.name], gr.Dropdown) and field.choices:
            assert tuple(options(by_name[field.name])) == field.choices
    for name in ("gamma", "k"):
        assert by_name[name].allow_custom_value


def test_pasting_is_wired_for_every_field(built: tuple[gr.Blocks, list[Any]], host: FakeA1111) -> None:
    assert [c for c, _ in host.script.infotext_fields] == built[1]
    assert host.script.paste_field_names == [f.infotext for f in FIELDS]


def test_refreshing_lists_new_files(
    built: tuple[gr.Blocks, list[Any]], host: FakeA1111, monkeypatch: pytest.MonkeyPatch
) -> None:
    presses = [f for f in functions(built[0]) if f.__name__ == "press"]
    assert len(presses) == 2
    monkeypatch.setattr(host.networks, "list_available_networks", lambda: host.networks.available_networks.update(new=None))
    for press in presses:
        assert press()["choices"] == ["None", *sorted(["new", *LISTED])]


def test_beta_follows_the_scale_from_default_to_default(built: tuple[gr.Blocks, list[Any]]) -> None:
    (follow,) = [f for f in functions(built[0]) if f.__name__ == "follow"]
    assert follow("s*", 1.5, 0.5) == 1.275 and follow("s", 1.5, 1.275) == 0.5
    assert follow("s*", 2.0, 0.5) == 1.7
    assert follow("s*", 1.5, 0.7) == 0.7 and follow("s", 1.5, 0.7) == 0.7, "a number of the user's own stays"


def test_an_unknown_host_still_gets_a_panel(host: FakeA1111) -> None:
    """A job then says what is missing; the UI must come up."""
    del host.networks.network_apply_weights
    with new_page():
        components = host.script.ui(False)
    assert len(components) == len(FIELDS) and options(components[1]) == ["None"]


@pytest.mark.parametrize("field", FIELDS, ids=lambda f: f.name)
def test_a_component_shows_a_value_its_field_accepts(field: Any) -> None:
    assert field.read(panel.initial(field)) == (Settings().offset if field.name == "beta" else field.default)
