"""Theorems: a file is in memory once, its tensors are what safetensors' own reader says, and it is free to go."""

from __future__ import annotations

import mmap
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors.torch import save, save_file

from klora_lib.errors import LoraFileError
from klora_lib.lora import container
from klora_lib.lora.container import DTYPES, parse_tensors, read_bytes, read_header

MB = 1 << 20


def test_reading_takes_the_memory_of_the_file_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One mapping, and next to no allocation of Python's; every tensor is a part of the one that is as large as the file."""
    mapped: list[int] = []

    class Mapping(mmap.mmap):
        def __new__(cls, file: int, length: int, **given: Any) -> Any:
            mapped.append(length)
            assert file == -1, "memory of its own, not the file's"
            return super().__new__(cls, file, length, **given)

    monkeypatch.setattr(container.mmap, "mmap", Mapping)
    path = tmp_path / "x.safetensors"
    save_file({f"t{i}": torch.full((MB,), i, dtype=torch.float16) for i in range(8)}, path)
    size = path.stat().st_size
    tracemalloc.start()
    try:
        tensors, _ = parse_tensors(path, read_bytes(path), "x")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert mapped == [size] and peak < 0.05 * size
    places = sorted(t.data_ptr() for t in tensors.values())
    assert places[-1] - places[0] == 7 * 2 * MB, "one after the other, in the file's own memory"
    assert all(float(tensors[f"t{i}"][-1]) == i for i in range(8))


def test_the_file_is_free_to_go_while_its_tensors_live(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"t": torch.arange(6.0)}, path)
    tensors, _ = parse_tensors(path, read_bytes(path), "x")
    path.write_bytes(b"\xff" * path.stat().st_size)
    path.unlink()
    assert torch.equal(tensors["t"], torch.arange(6.0))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_every_type_is_read_as_safetensors_reads_it(dtype: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensor = torch.tensor([[0, 1], [1, 0], [1, 1]]).to(dtype)
    save_file({"t": tensor, "alpha": torch.tensor(0.5)}, path)
    got, _ = parse_tensors(path, read_bytes(path), "x")
    want = safetensors.torch.load_file(path)
    for key in ("t", "alpha"):
        assert got[key].dtype == want[key].dtype and got[key].shape == want[key].shape
        assert torch.equal(got[key].reshape(-1).view(torch.uint8), want[key].reshape(-1).view(torch.uint8))


def test_a_number_that_does_not_lie_at_a_multiple_of_its_size() -> None:
    """safetensors puts the widest type first; other writers may not."""
    header = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}}'
    numbers = torch.tensor([1.5, -2.0])
    data = bytearray(len(header).to_bytes(8, "little") + header + b"\x07" + numbers.numpy().tobytes())
    entries, _ = read_header(data, "x")
    assert torch.equal(entries["b"].view(data), numbers) and entries["a"].view(data).tolist() == [7]


def test_numbers_of_a_type_that_torch_does_not_have_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(save({"t": torch.zeros(4, dtype=torch.int16)}).replace(b'"I16"', b'"U16"'))
    with pytest.raises(LoraFileError, match="'x' is truncated or damaged .*U16"):
        parse_tensors(path, read_bytes(path), "x")
