"""Theorem: a folder that PEFT saved acts as PEFT itself would, whatever its adapter_config.json says of the strength."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from klora_lib.cli.main import main
from klora_lib.errors import LoraFileError
from klora_lib.lora.file import LoraFile, read_lora
from klora_lib.lora.peft import name_file
from klora_lib.rule.cache import Library

peft = pytest.importorskip("peft")

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
LAYERS = {
    f"{BLOCK}.attn1.to_q": lambda: nn.Linear(8, 12),
    f"{BLOCK}.attn1.to_out.0": lambda: nn.Linear(12, 8),
    f"{BLOCK}.attn2.to_q": lambda: nn.Linear(8, 12),
    "down_blocks.0.resnets.0.conv1": lambda: nn.Conv2d(4, 6, 3),
    "down_blocks.0.attentions.0.proj_in": lambda: nn.Conv2d(6, 8, 1),
}
TEXT = "text_model.encoder.layers.0.self_attn.q_proj"


def tree(names: dict[str, Any]) -> nn.Module:
    """A module tree with these layers at their dotted paths, weights drawn anew."""
    root = nn.Module()
    torch.manual_seed(0)
    for path, make in names.items():
        *parents, last = path.split(".")
        at = root
        for parent in parents:
            if parent not in at._modules:
                at.add_module(parent, nn.Module())
            at = at._modules[parent]  # type: ignore[assignment]
        at.add_module(last, make())
    return root


def adapted(config: Any, names: dict[str, Any] = LAYERS) -> Any:
    """The tree inside PEFT, the adapter's own weights random."""
    config.target_modules = list(names)
    model = peft.PeftModel(tree(names), config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".base_layer." not in name:
                p.copy_(torch.randn(p.shape) * 0.3 + (p if "magnitude" in name or "ia3" in name else 0))
    return model.eval()


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def changes(model: Any, names: dict[str, Any] = LAYERS) -> dict[str, Tensor]:
    """What merging makes of every weight, fp32 [out, in·kh·kw]."""
    before = {name: model.base_model.model.get_submodule(name).base_layer.weight.clone() for name in names}
    merged = model.merge_and_unload()
    return {name: (merged.get_submodule(name).weight - old).flatten(1) for name, old in before.items()}


def acts_as(file: LoraFile, model: Any) -> None:
    expected = changes(model)
    assert file.modules.keys() == expected.keys() and file.unknown == ()
    base = tree(LAYERS)
    for name, change in expected.items():
        weight = base.get_submodule(name).weight.detach().flatten(1)  # type: ignore[union-attr]
        torch.testing.assert_close(file.modules[name].update(weight), change, rtol=1e-4, atol=1e-5, msg=name)


CONFIGS = {
    "LoRA": lambda: peft.LoraConfig(r=4, lora_alpha=2),
    "LoRA without a bias of its own": lambda: peft.LoraConfig(r=4, lora_alpha=1, lora_bias=False),
    "rslora": lambda: peft.LoraConfig(r=4, lora_alpha=2, use_rslora=True),
    "alpha_pattern": lambda: peft.LoraConfig(r=4, lora_alpha=2, alpha_pattern={"attn1.to_q": 12, r".*conv\d": 1}),
    "rank_pattern": lambda: peft.LoraConfig(r=4, lora_alpha=2, rank_pattern={"to_q": 2, "proj_in": 3}),
    "all three": lambda: peft.LoraConfig(
        r=4, lora_alpha=2, use_rslora=True, rank_pattern={"attn2.to_q": 2}, alpha_pattern={"to_q": 5}
    ),
    "DoRA": lambda: peft.LoraConfig(r=4, lora_alpha=2, use_dora=True),
    "LoHa": lambda: peft.LoHaConfig(r=4, alpha=2),
    "LoHa, patterns": lambda: peft.LoHaConfig(r=4, alpha=2, rank_pattern={"to_q": 2}, alpha_pattern={"to_q": 5, "conv1": 1}),
    "LoHa, cores": lambda: peft.LoHaConfig(r=2, alpha=3, use_effective_conv2d=True),
    "LoKr of full matrices": lambda: peft.LoKrConfig(r=16, alpha=4),
    "LoKr": lambda: peft.LoKrConfig(r=1, alpha=4, decompose_factor=2),
    "LoKr, patterns": lambda: peft.LoKrConfig(
        r=16, alpha=4, rank_pattern={"to_q": 1}, alpha_pattern={"to_q": 5, "conv1": 1}
    ),
    "LoKr, both in two": lambda: peft.LoKrConfig(r=1, alpha=3, decompose_both=True, decompose_factor=4),
    "OFT": lambda: peft.OFTConfig(r=0, oft_block_size=4, use_cayley_neumann=False),
    "OFT by a series": lambda: peft.OFTConfig(r=0, oft_block_size=2, num_cayley_neumann_terms=7),
    "OFT by the shortest series": lambda: peft.OFTConfig(r=0, oft_block_size=2, num_cayley_neumann_terms=3),
    "OFT of one block": lambda: peft.OFTConfig(r=1, oft_block_size=0),
    "OFT, one block for all": lambda: peft.OFTConfig(r=0, oft_block_size=2, block_share=True),
    "COFT": lambda: peft.OFTConfig(r=0, oft_block_size=4, coft=True, eps=0.1),
    "BOFT": lambda: peft.BOFTConfig(boft_block_size=2),
    "IA3": lambda: peft.IA3Config(feedforward_modules=[]),
    "IA3 on the input": lambda: peft.IA3Config(feedforward_modules=["to_q", "conv1"]),
    "IA3 on the input, by expression": lambda: peft.IA3Config(feedforward_modules=r".*(to_q|proj_in)"),
    "LoKr, cores": lambda: peft.LoKrConfig(r=1, alpha=4, decompose_factor=2, use_effective_conv2d=True),
}


@pytest.mark.filterwarnings("ignore:Invalid .oft_block_size", "ignore:Failed to load the CUDA", "ignore:Setting boft_n_")
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_folder_acts_as_it_does_in_peft(kind: str, tmp_path: Path) -> None:
    model = adapted(CONFIGS[kind]())
    acts_as(read_lora(saved(model, tmp_path / "mine")), model)


def test_the_weights_beside_their_configuration_do_too(tmp_path: Path) -> None:
    """As they lie in a WebUI's folder, under any name."""
    model = adapted(CONFIGS["all three"]())
    saved(model, tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "dog.safetensors")
    acts_as(read_lora(tmp_path / "dog.safetensors"), model)


@pytest.mark.parametrize("kind", ["LoRA", "LoHa", "LoKr of full matrices"])
def test_text_encoder_modules_get_their_strength_as_kohya_writes_it(kind: str, tmp_path: Path) -> None:
    config = CONFIGS[kind]()
    model = adapted(config, {TEXT: lambda: nn.Linear(8, 8), **LAYERS})
    text = read_lora(saved(model, tmp_path / "mine")).text
    word, value = ("scale", 0.25) if "LoKr" in kind else ("alpha", 2.0)
    assert text[f"lora_te_{TEXT.replace('.', '_')}.{word}"] == value


def test_patterns_are_matched_with_the_names_of_the_model_that_was_trained(tmp_path: Path) -> None:
    """Here the makers' names, though we call the layer as diffusers does."""
    name, ours = "double_blocks.0.img_attn.proj", "transformer_blocks.0.attn.to_out.0"
    names = {name: lambda: nn.Linear(8, 8)}
    model = adapted(peft.LoraConfig(r=4, lora_alpha=2, alpha_pattern={"img_attn.proj": 6}), names)
    file = read_lora(saved(model, tmp_path / "mine"))
    torch.testing.assert_close(file.modules[ours].dense(), changes(model, names)[name])


def test_a_file_that_peft_did_not_write_has_nothing_to_do_with_a_configuration_beside_it(tmp_path: Path) -> None:
    saved(adapted(CONFIGS["LoRA"]()), tmp_path)
    key = f"unet.{BLOCK}.attn1.to_q"
    path = tmp_path / "a.safetensors"
    save_file({f"{key}.lora_A.weight": torch.ones(4, 8), f"{key}.lora_B.weight": torch.ones(12, 4)}, path)
    assert read_lora(path).modules[f"{BLOCK}.attn1.to_q"].factors()[2] == 1.0  # type: ignore[index]


# --- what cannot be right ---


def refused(folder: Path) -> str:
    with pytest.raises(LoraFileError) as refusal:
        read_lora(folder)
    return str(refusal.value)


def rewrite(folder: Path, **changed: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def test_the_configuration_of_another_adapter_is_refused(tmp_path: Path) -> None:
    folder = saved(adapted(CONFIGS["LoRA"]()), tmp_path / "mine")
    rewrite(folder, r=16)
    said = refused(folder)
    assert said.startswith("'mine' cannot be used: ")
    assert f"{BLOCK}.attn1.to_q has rank 4, where the adapter_config.json beside the file says 16" in said


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga"])
def test_an_adapter_that_belongs_to_changed_weights_is_refused(start: str, tmp_path: Path) -> None:
    folder = saved(adapted(CONFIGS["LoRA"]()), tmp_path / "mine")
    rewrite(folder, init_lora_weights=start)
    assert f"{start!r}" in refused(folder) and "changes the model's own weights" in refused(folder)


def test_the_same_of_a_text_encoder(tmp_path: Path) -> None:
    folder = saved(adapted(CONFIGS["LoRA"](), {TEXT: lambda: nn.Linear(8, 8), **LAYERS}), tmp_path / "mine")
    rewrite(folder, rank_pattern={"self_attn.q_proj": 16})
    assert f"{TEXT} has rank 4, where the adapter_config.json beside the file says 16" in refused(folder)


def test_a_type_that_is_not_read_is_called_by_its_name(tmp_path: Path) -> None:
    folder = saved(adapted(CONFIGS["LoRA"]()), tmp_path / "mine")
    rewrite(folder, peft_type="VERA")
    assert refused(folder) == "'mine' is a PEFT adapter of type VERA, which is not read"


UNREADABLE = ("", "[]", "not json", '{"peft_type": "LORA"}', '{"peft_type": "LORA", "r": 4, "lora_alpha": "x"}')


@pytest.mark.parametrize("text", UNREADABLE)
def test_a_configuration_that_cannot_be_read_is_refused(text: str, tmp_path: Path) -> None:
    folder = saved(adapted(CONFIGS["LoRA"]()), tmp_path / "mine")
    (folder / "adapter_config.json").write_text(text)
    assert refused(folder).startswith("'mine' has an adapter_config.json beside it that cannot be read")


# --- names, and files read again ---


def test_the_command_line_takes_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [saved(adapted(CONFIGS[kind]()), tmp_path / kind) for kind in ("LoRA", "LoHa")]
    assert main(["plan", *map(str, folders)]) == 0
    layers = {each["name"]: each for each in json.loads(capsys.readouterr().out)["layers"]}
    for kind, role in (("LoRA", "content"), ("LoHa", "style")):
        for name, change in changes(adapted(CONFIGS[kind]())).items():
            assert layers[name][f"{role}_abs_sum"] == pytest.approx(float(change.abs().sum()), rel=1e-3)


def test_what_a_folder_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(adapted(CONFIGS["LoRA"]()), tmp_path / "dog-v1.5")
    monkeypatch.chdir(folder)
    for path in (folder, f"{folder}{os.sep}", folder / "adapter_model.safetensors", "adapter_model.safetensors"):
        assert name_file(path) == "dog-v1.5"
    assert name_file("some/dog.v2.safetensors") == "dog.v2"


def test_another_configuration_is_noticed(tmp_path: Path) -> None:
    folder, library = saved(adapted(CONFIGS["LoRA"]()), tmp_path / "mine"), Library()
    layer = f"{BLOCK}.attn1.to_q"
    for given in (folder, folder / "adapter_model.safetensors"):
        rewrite(folder, lora_alpha=2)
        first = library.read(given, "mine")
        assert library.read(given, "mine") is first
        rewrite(folder, lora_alpha=4)
        second = library.read(given, "mine")
        assert second.modules[layer].factors()[2] == 2 * first.modules[layer].factors()[2]  # type: ignore[index]
        assert second.digest != first.digest  # so that pairs and scores are made anew
    shutil.move(folder / "adapter_config.json", tmp_path)
    assert library.read(folder, "mine").modules[layer].factors()[2] == 1.0  # type: ignore[index]


# --- a configuration beside a file that it is not for ---

LORA = {f"base_model.model.{BLOCK}.attn1.to_q.lora_A.weight": torch.ones(8, 8),
        f"base_model.model.{BLOCK}.attn1.to_q.lora_B.weight": torch.ones(12, 8)}  # fmt: skip


def beside(folder: Path, config: object) -> Path:
    """A LoRA of rank 8 with this beside it."""
    save_file(LORA, folder / "mine.safetensors")
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / "adapter_config.json").write_text(text)
    return folder / "mine.safetensors"


@pytest.mark.parametrize("kind", ["LOHA", "LOKR", "OFT", "BOFT", "IA3"])
def test_a_configuration_of_another_type_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(LoraFileError, match=f"to_q is of PEFT's type LORA, where the adapter_config.json .* of type {kind}"):
        read_lora(beside(tmp_path, {"peft_type": kind, "alpha": 2, "r": 8}))


@pytest.mark.parametrize(("targets", "scale"), [(["to_q"], 8.0), ("all-linear", 8.0), (r".*to_[qk]", 8.0), (["to_v"], 1.0),
                                               (r".*to_v", 1.0), (None, 8.0)])  # fmt: skip
def test_a_configuration_for_other_modules_is_not_this_files(tmp_path: Path, targets: object, scale: float) -> None:
    config = {"peft_type": "LORA", "lora_alpha": 64, "r": 8, "target_modules": targets}
    file = read_lora(beside(tmp_path, config))
    assert file.modules[f"{BLOCK}.attn1.to_q"].factors()[2] == scale  # type: ignore[index]
    assert bool(file.notes) == (scale == 1.0)


def test_a_file_of_pefts_without_its_configuration_says_so(tmp_path: Path) -> None:
    save_file(LORA, tmp_path / "mine.safetensors")
    (note,) = read_lora(tmp_path / "mine.safetensors").notes
    assert note.startswith("'mine' was saved by PEFT, and no adapter_config.json that tells its strength is beside it")


@pytest.mark.parametrize("config", [
    '{"peft_type": "LORA", "r": 8, "lora_alpha": ' + "9" * 400 + "}", '{"peft_type": "LORA", "lora_alpha": 1, "r": 1e400}',
    '{"peft_type": "IA3", "feedforward_modules": "*foo"}', "[" * 100_000,
    '{"peft_type": "LORA", "r": 8, "lora_alpha": 1, "rank_pattern": {"to_q": Infinity}}',
], ids=["digits", "rank", "expression", "depth", "pattern"])  # fmt: skip
def test_a_damaged_configuration_is_one_sentence(tmp_path: Path, config: str) -> None:
    with pytest.raises(LoraFileError, match="has an adapter_config.json beside it that cannot be read"):
        read_lora(beside(tmp_path, config))


def test_a_bias_that_peft_trained_beside_its_adapter_is_refused_by_its_name(tmp_path: Path) -> None:
    save_file(LORA | {f"base_model.model.{BLOCK}.attn1.to_q.base_layer.bias": torch.ones(12)}, tmp_path / "mine.safetensors")
    with pytest.raises(LoraFileError, match=r"base_layer is trained itself, beside PEFT's adapter \(bias='lora_only'"):
        read_lora(tmp_path / "mine.safetensors")
