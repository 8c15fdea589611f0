"""Checkpoints whose linear layers are stored in e4m3 with scales, and back to float32."""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

E4M3_MAX = 448.0


def block_of(config: dict, shape: torch.Size) -> tuple[int, int]:
    """Rows and columns of a weight that share a scale, by `quantization_config`."""
    if config["quant_method"] == "compressed-tensors":
        weights = next(iter(config["config_groups"].values()))["weights"]
        channel = weights["strategy"] == "channel"
        return (1, shape[1]) if channel else tuple(weights.get("block_structure") or shape)
    return tuple(config.get("weight_block_size") or shape)


def is_converted(config: dict, name: str, tensor: torch.Tensor) -> bool:
    """Whether a stored tensor becomes e4m3."""
    if not name.endswith(".weight") or tensor.dim() != 2 or "embed" in name or name.startswith("lm_head"):
        return False
    layer = name.removesuffix(".weight")
    for pattern in [*config.get("modules_to_not_convert", []), *config.get("ignore", [])]:
        if re.match(pattern.removeprefix("re:"), layer) if pattern.startswith("re:") else layer == pattern:
            return False
    return True


def spread(scales: torch.Tensor, block: tuple[int, int], shape: torch.Size) -> torch.Tensor:
    """The scale of each element."""
    rows, cols = block
    return scales.repeat_interleave(rows, 0)[:shape[0]].repeat_interleave(cols, 1)[:, :shape[1]]


def quantise(weight: torch.Tensor, block: tuple[int, int], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Elements, and a scale per block [row blocks, column blocks], rounded to `dtype`."""
    rows, cols = block
    n, k = weight.shape
    padded = torch.zeros(-(-n // rows) * rows, -(-k // cols) * cols)
    padded[:n, :k] = weight
    largest = padded.abs().reshape(padded.shape[0] // rows, rows, -1, cols).amax((1, 3))
    scales = (largest / E4M3_MAX).to(dtype).float()
    elements = (weight / spread(scales, block, weight.shape)).clamp(-E4M3_MAX, E4M3_MAX)
    return elements.to(torch.float8_e4m3fn), scales.to(dtype)


def store(out: Path, config: dict, scale_dtype: torch.dtype, dtype: torch.dtype) -> None:
    """Rewrites a float32 checkpoint: linear layers as `config` says, the rest in `dtype`."""
    is_block = block_of(config, torch.Size((-1, -1)))[0] > 1
    for path in sorted(out.glob("*.safetensors")):
        stored = {}
        for name, tensor in load_file(path).items():
            if not is_converted(config, name, tensor):
                stored[name] = tensor.to(dtype)
                continue
            block = block_of(config, tensor.shape)
            elements, scales = quantise(tensor, block, scale_dtype)
            stored[name] = elements
            stored[name + ("_scale_inv" if "weight_block_size" in config else "_scale")] = \
                scales if is_block or block[0] == 1 else scales.reshape(())
            if config.get("activation_scheme") == "static":
                stored[name.removesuffix("weight") + "input_scale"] = torch.tensor(0.25)
        save_file(stored, path, metadata={"format": "pt"})


def widen(source: Path, out: Path) -> None:
    """The float32 checkpoint that one in e4m3 stands for: each weight is element times scale, rounded once."""
    config = json.loads((source / "config.json").read_text())
    scheme = config.pop("quantization_config")
    (out / "config.json").write_text(json.dumps(config))
    for path in source.glob("*.safetensors"):
        tensors = load_file(path)
        wide = {}
        for name, tensor in tensors.items():
            if name.endswith(("_scale", "_scale_inv")):
                continue
            if tensor.dtype == torch.float8_e4m3fn:
                scales = tensors.get(name + "_scale_inv", tensors.get(name + "_scale")).float()
                block = block_of(scheme, tensor.shape)
                scales = scales.reshape(-1, -(-tensor.shape[1] // block[1]))
                tensor = tensor.float() * spread(scales, block, tensor.shape)
            wide[name] = tensor.float()
        save_file(wide, out / path.name, metadata={"format": "pt"})
