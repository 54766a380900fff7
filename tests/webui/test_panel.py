"""Theorem: the panel is the settings table, one component a field, in its order; it builds under gradio 3.41 and 4.40."""

from __future__ import annotations

import inspect
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import gradio
import pytest

from klora_lib.errors import KLoraError
from klora_lib.settings import FIELDS, Settings, name_arguments, read_settings
from klora_lib.webui import panel

from ..fakes import gradio3
from ..fakes.a1111 import FakeA1111
from ..fakes.forge import FakeForge
from ..fakes.host import FakeHost, installed

STYLE = Path(__file__).parents[2] / "style.css"
LISTED = ["conv_only", "other_family", "style", "style_full", "subject", "subject_full"]


# as the WebUIs pin them; where the environment's own is gradio 3 no stand-in for it is needed
REAL_3 = gradio.__version__.startswith("3.")
WORLDS = {"A1111, gradio 3.41": (FakeA1111, nullcontext if REAL_3 else gradio3.installed)}
if not REAL_3:
    WORLDS["Forge, gradio 4.40"] = (FakeForge, nullcontext)


@pytest.fixture(params=WORLDS)
def host(request: pytest.FixtureRequest, loras: Path) -> Iterator[FakeHost]:
    kind, gradio = WORLDS[request.param]
    with gradio(), installed(kind, loras) as host:
        host.load_script()
        yield host


@contextmanager
def new_page() -> Iterator[Any]:
    """gradio 4 makes its web app at both ends of a page, and warns of its own ways there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        page = sys.modules["gradio"].Blocks()
        page.__enter__()
    try:
        yield page
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            page.__exit__()


@pytest.fixture
def built(host: FakeHost) -> Iterator[tuple[Any, list[Any]]]:
    with new_page() as page:
        components = host.script.ui(False)
    yield page, components


@pytest.fixture(scope="module", params=WORLDS)
def untouched(request: pytest.FixtureRequest, loras: Path) -> list[Any]:
    """The panel's components, built once in each world, for what only reads their values."""
    kind, gradio = WORLDS[request.param]
    with gradio(), installed(kind, loras) as host:
        host.load_script()
        with new_page():
            components: list[Any] = host.script.ui(False)
    return components


def functions(page: Any) -> list[Callable[..., Any]]:
    known = page.fns.values() if isinstance(page.fns, dict) else page.fns
    return [f.fn for f in known if f.fn is not None]


def is_a(kind: str, component: Any) -> bool:
    return isinstance(component, getattr(sys.modules["gradio"], kind))


def test_one_component_a_field_in_the_order_of_the_table(built: tuple[Any, list[Any]]) -> None:
    page, components = built
    assert [c.label for c in components] == [f.label for f in FIELDS]
    assert all(c._id in page.blocks for c in components)


def test_ids_are_unique_and_the_scripts_own(built: tuple[Any, list[Any]]) -> None:
    _, components = built
    ids = [c.elem_id for c in components]
    assert len(set(ids)) == len(FIELDS)
    assert all(re.fullmatch(rf"script_txt2img_klora_{f.name}(-checkbox)?", i) for i, f in zip(ids, FIELDS))


def test_the_untouched_panel_is_the_default_settings(built: tuple[Any, list[Any]]) -> None:
    _, components = built
    values = [c.value for c in components]
    assert read_settings(name_arguments(values)) == Settings(beta=0.5)


def test_switched_on_it_is_a_job(built: tuple[Any, list[Any]]) -> None:
    values = [c.value for c in built[1]]
    values[:3] = True, "subject", "style"
    assert read_settings(name_arguments(values)) == Settings(True, "subject", "style", beta=0.5)


def test_sliders_have_the_tables_ranges(built: tuple[Any, list[Any]]) -> None:
    for field, c in zip(FIELDS, built[1]):
        if is_a("Slider", c):
            assert (c.minimum, c.maximum, c.step) == field.range
            assert field.read(c.minimum) is not None and field.read(c.maximum) is not None


def options(component: Any) -> list[str]:
    """gradio 4 keeps (label, value) pairs."""
    return [c[1] if isinstance(c, (tuple, list)) else c for c in component.choices]


def test_dropdowns_offer_what_the_table_accepts(built: tuple[Any, list[Any]]) -> None:
    by_name = {f.name: c for f, c in zip(FIELDS, built[1])}
    assert options(by_name["content"]) == options(by_name["style"]) == ["None", *LISTED]
    for field in FIELDS:
        if is_a("Dropdown", by_name[field.name]) and field.choices:
            assert tuple(options(by_name[field.name])) == field.choices
    for name in ("gamma", "k"):
        assert by_name[name].allow_custom_value


def test_pasting_is_wired_for_every_field(built: tuple[Any, list[Any]], host: FakeHost) -> None:
    assert [c for c, _ in host.script.infotext_fields] == built[1]
    assert host.script.paste_field_names == [f.infotext for f in FIELDS]


def test_refreshing_lists_new_files(built: tuple[Any, list[Any]], host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    presses = [f for f in functions(built[0]) if f.__name__ == "press"]
    assert len(presses) == 2
    monkeypatch.setattr(host.networks, "list_available_networks", lambda: host.networks.available_networks.update(new=None))
    for press in presses:
        assert press()["choices"] == ["None", *sorted(["new", *LISTED])]


def test_beta_follows_the_scale_from_default_to_default(built: tuple[Any, list[Any]]) -> None:
    (follow,) = [f for f in functions(built[0]) if f.__name__ == "follow"]
    assert follow("s*", 1.5, 0.5) == 1.275 and follow("s", 1.5, 1.275) == 0.5
    assert follow("s*", 2.0, 0.5) == 1.7
    assert follow("s*", 1.5, 0.7) == 0.7 and follow("s", 1.5, 0.7) == 0.7, "a number of the user's own stays"


EMPTY = (None, "")


@pytest.mark.parametrize("empty", EMPTY)
@pytest.mark.parametrize("scale", ["s", "s*"])
def test_beta_stays_where_it_or_alpha_is_empty(built: tuple[Any, list[Any]], scale: str, empty: Any) -> None:
    """Without α there is no default to follow to or from; an empty β means the default of any scale."""
    (follow,) = [f for f in functions(built[0]) if f.__name__ == "follow"]
    assert follow(scale, 1.5, empty) == empty
    for beta in (0.5, 0.7, 1.275, empty):
        assert follow(scale, empty, beta) == beta


@pytest.mark.parametrize("empty", EMPTY)
@pytest.mark.parametrize("field", FIELDS, ids=lambda f: f.name)
def test_an_emptied_field_is_its_default_or_is_named_in_a_sentence(untouched: list[Any], field: Any, empty: Any) -> None:
    values = {f.name: c.value for f, c in zip(FIELDS, untouched)} | {field.name: empty}
    try:
        settings = read_settings(name_arguments(list(values.values())))
    except KLoraError as e:
        assert str(e) == f"{field.name}: must be {field.accepts}, not {empty!r}"
    else:
        assert getattr(settings, field.name) == field.default


@pytest.mark.parametrize("text", ["", "nan", "1e999", "None"])
@pytest.mark.parametrize("field", FIELDS, ids=lambda f: f.name)
def test_pasting_what_is_empty_or_no_number_changes_nothing(untouched: list[Any], field: Any, text: str) -> None:
    """None leaves the component as it is; a LoRA may have any name; an empty value may be one."""
    given = {"K-LoRA enabled": "True", field.infotext: text}
    wanted = (text or panel.NONE, panel.NONE) if field.name in ("content", "style") else (None,)
    if field.name != "enabled":
        assert panel.make_paste(field)(given) in wanted


def notices(page: Any) -> list[Any]:
    return [b for b in page.blocks.values() if is_a("Markdown", b) and "klora-notice" in (b.elem_classes or [])]


def test_a_known_host_gets_no_notice(built: tuple[Any, list[Any]]) -> None:
    assert notices(built[0]) == []


def test_an_unknown_host_gets_a_panel_that_says_why(host: FakeHost) -> None:
    """The UI must come up, and its buttons work."""
    delattr(host.networks, host.part)
    with new_page() as page:
        components = host.script.ui(False)
    (notice,) = notices(page)
    wanted = f"this WebUI's LoRA loader has changed: compared with {host.name}'s, it lacks {host.part}."
    assert notice.value == f"K-LoRA cannot run here: {wanted}"
    assert notice.elem_classes == ["klora-notice"] and ".klora-notice {" in STYLE.read_text(encoding="utf-8")
    assert len(components) == len(FIELDS) and notice._id < min(c._id for c in components[1:])
    presses = [f for f in functions(page) if f.__name__ == "press"]
    assert [press()["choices"] for press in presses] == [["None"], ["None"]]


def test_a_host_without_lora_extension_says_so(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "networks")
    with new_page() as page:
        host.script.ui(False)
    assert "built-in Lora extension, through which K-LoRA works, is not loaded" in notices(page)[0].value


@pytest.mark.parametrize(
    ("kind", "keyword"),
    [("Dropdown", "filterable"), ("Slider", "show_reset_button"), ("Textbox", "max_length"), ("Markdown", "container"),
     ("Checkbox", "key"), ("Row", "elem_classes"), ("Accordion", "key"), ("Button", "key")],
)  # fmt: skip
def test_a_keyword_that_gradio_3_does_not_know_is_caught(kind: str, keyword: str) -> None:
    with gradio3.installed() as gradio, gradio.Blocks():
        arguments = {"label": "More"} if kind == "Accordion" else {}
        getattr(gradio, kind)(**arguments)
        with pytest.raises(TypeError, match=keyword):
            getattr(gradio, kind)(**arguments, **{keyword: None})


@pytest.mark.skipif(not REAL_3, reason="compares the stand-in with gradio 3, which is not here")
@pytest.mark.parametrize("kind", [*gradio3.COMPONENTS, *gradio3.LAYOUTS])
def test_the_stand_in_takes_what_gradio_3_takes(kind: str) -> None:
    """The same parameters, those by place in the same order; every event; and a listener's."""

    def parameters(signature: inspect.Signature) -> tuple[list[str], set[str]]:
        places = [p.name for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "self"]
        return places, {p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}

    real = getattr(gradio, kind)
    ours = gradio3.signature({**gradio3.COMPONENTS, **gradio3.LAYOUTS}[kind])
    assert parameters(ours) == parameters(inspect.signature(real.__init__))
    with gradio.Blocks():
        made = real(**({"label": "More"} if kind == "Accordion" else {}))
    listeners = {name: getattr(made, name) for name in dir(made) if type(getattr(made, name)).__name__.startswith("Event")}
    assert set(listeners) == set(gradio3.EVENTS.get(kind, ()))
    for listener in listeners.values():
        assert parameters(gradio3.signature(gradio3.LISTENER)) == parameters(inspect.signature(listener.__call__))


@pytest.mark.parametrize("keyword", ["js", "show_api", "trigger_mode", "concurrency_limit"])
def test_so_is_one_of_an_event(keyword: str) -> None:
    with gradio3.installed() as gradio, gradio.Blocks():
        component = gradio.Dropdown(["s", "s*"])
        component.input(print, [component], [component], show_progress="hidden", _js=None)
        with pytest.raises(TypeError, match=keyword):
            component.input(print, [component], [component], **{keyword: None})


def test_so_is_one_that_the_panel_uses(monkeypatch: pytest.MonkeyPatch, loras: Path) -> None:
    with gradio3.installed(), installed(FakeA1111, loras) as host:
        host.load_script()
        told = sys.modules["klora_lib.webui.parts"]
        monkeypatch.setattr(told, "list_classes", lambda field: told.gr.Checkbox(filterable=True))
        with new_page(), pytest.raises(TypeError, match="filterable"):
            host.script.ui(False)


@pytest.mark.parametrize("field", FIELDS, ids=lambda f: f.name)
def test_a_component_shows_a_value_its_field_accepts(field: Any) -> None:
    assert field.read(panel.choose_initial(field)) == (Settings().offset if field.name == "beta" else field.default)
