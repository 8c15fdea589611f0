"""Make the golden checkpoints: tiny models with random weights and Hugging Face's float32 results.

Usage: python make_golden.py [OUT] [--only NAME ...]

Every directory gets the checkpoint as transformers (or a hub) stores it, and golden.json. What is stored is computed
from the files read back with from_pretrained(dtype=float32), eager attention, no cache. A seed is taken only if the
result is robust (see `problem_with`) and every weight and listed config value matters (see `check_matters`).
"""

import argparse
import copy
import json
import re
import shutil
import tempfile
from pathlib import Path

import fp8
import torch
from fixtures import FIXTURES, Fixture
from golden_tokenizer import SPECIAL, write_tokenizer
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

GREEDY_STEPS = 24
GREEDY_DISTINCT_MIN = 7
GREEDY_GAP_MIN = 2e-3
ROUTER_GAP_MIN = 1e-3
NOISE_MAX = 5e-5
FIRST_ORDINARY_ID = 16


def std_of(name: str, shape: torch.Size) -> float:
    """The standard deviation that makes attention peaked and logits several units wide."""
    fan_in = shape[-1]
    if "embed" in name:
        return 0.3
    if re.search(r"(q_proj|k_proj|qkv_proj|gate)\.weight|lm_head", name):
        return 1.6 * fan_in**-0.5
    return 1.1 * fan_in**-0.5


def norm_mean_of(name: str, gemma: bool) -> float:
    """The mean of a norm's weights; Gemma's are added to 1, and its last norm must make up for a small embedding."""
    if not gemma:
        return 1.2
    return 3.0 if name == "model.norm.weight" else 0.3


@torch.no_grad()
def randomise(model: torch.nn.Module, dtype: torch.dtype, seed: int) -> None:
    """Fills every parameter from the seed and rounds it to what the storage dtype can hold."""
    generator = torch.Generator().manual_seed(seed)
    gemma = "gemma" in model.config.model_type
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("bias"):
            value = 0.3 * noise
        elif "norm" in name:
            value = 0.35 * noise + norm_mean_of(name, gemma)
        else:
            value = std_of(name, parameter.shape) * noise
            if gemma and "embed" in name:
                value = 0.4 * value  # the model multiplies it by sqrt(hidden_size)
        parameter.copy_(value.to(dtype).float())


def old_keys(config: dict, extra: dict) -> dict:
    """config.json as written before transformers 5: rope_theta + rope_scaling, torch_dtype."""
    config = dict(config)
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.43.3"
    if config["model_type"] == "qwen3_moe":
        config["num_experts"] = config.pop("num_local_experts")
    rope = config.pop("rope_parameters", None)
    if rope is not None:
        if "full_attention" in rope:
            config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
            rope = rope["full_attention"]
        rope = dict(rope)
        config["rope_theta"] = rope.pop("rope_theta")
        if "partial_rotary_factor" in rope:
            config["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
        if rope["rope_type"] == "linear":
            rope["type"] = rope.pop("rope_type")
        config["rope_scaling"] = rope if len(rope) > 1 else None
    return config | extra


def add_inv_freq(tensors: dict, config) -> dict:
    """Llama 1 and 2 conversions store the inverse frequencies of every layer; a loader must ignore them."""
    inv_freq = 1.0 / 10000 ** (torch.arange(0, config.head_dim, 2).float() / config.head_dim)
    for layer in range(config.num_hidden_layers):
        tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = inv_freq.half()
    return tensors


def strip_model(tensors: dict, config) -> dict:
    """OPT on hubs was saved from the base model: `decoder.layers…` without `model.`."""
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}


def add_tied_head(tensors: dict, config) -> dict:
    """Some tied checkpoints store lm_head.weight as well."""
    if "model.embed_tokens.weight" in tensors:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    return tensors


REWRITES = {f.__name__: f for f in (add_inv_freq, strip_model, add_tied_head)}


def rewrite_weights(out: Path, rewrite, config) -> None:
    """Applies a rewrite to every weight file, and mends the index."""
    weight_map, size = {}, 0
    for path in sorted(out.glob("*.safetensors")):
        tensors = rewrite(load_file(path), config)
        save_file(tensors, path, metadata={"format": "pt"})
        weight_map |= {name: path.name for name in tensors}
        size += sum(t.numel() * t.element_size() for t in tensors.values())
    index = out / "model.safetensors.index.json"
    if index.exists():
        write_json(index, {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}, indent=2)


def write_json(path: Path, value, indent: int | None = None) -> None:
    """Writes JSON, compact unless indented."""
    separators = None if indent else (",", ":")
    path.write_text(json.dumps(value, indent=indent, separators=separators) + "\n")


def save(fixture: Fixture, model: torch.nn.Module, out: Path) -> None:
    """Stores the model as the fixture says."""
    shutil.rmtree(out, ignore_errors=True)
    dtype = getattr(torch, fixture.dtype)
    stored = copy.deepcopy(model).to(torch.float32 if fixture.fp8 else dtype)
    limit = {"max_shard_size": fixture.shard_size} if fixture.shard_size else {}
    stored.save_pretrained(out, save_original_format=not fixture.fused_experts, **limit)
    if fixture.weights:
        rewrite_weights(out, REWRITES[fixture.weights], model.config)
    path = out / "config.json"
    config = json.loads(path.read_text())
    if fixture.fp8:
        fp8.store(out, fixture.fp8, getattr(torch, fixture.scale_dtype), dtype)
        config |= {"dtype": fixture.dtype, "quantization_config": fixture.fp8}
    if fixture.old is not None:
        config = old_keys(config, fixture.old)
    config = {key: value for key, value in sorted(config.items()) if key not in fixture.drop}
    write_json(path, config, indent=2)
    path = out / "generation_config.json"
    if fixture.eos:
        sampling = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
        ids = {"bos_token_id": config["bos_token_id"], "eos_token_id": fixture.eos}
        write_json(path, ids | sampling | {"transformers_version": config["transformers_version"]}, indent=2)
    elif fixture.old is not None:
        path.unlink()  # many hub checkpoints have none
    for path in out.iterdir():
        path.chmod(0o644)


def plain(model: torch.nn.Module) -> torch.nn.Module:
    """The model with experts in a plain loop, for inference."""
    model.set_experts_implementation("eager")
    return model.eval()


def load(out: Path, **changes) -> torch.nn.Module:
    """Reads a checkpoint in float32, with changes to its config. One in e4m3 is widened first."""
    if "quantization_config" in json.loads((out / "config.json").read_text()):
        with tempfile.TemporaryDirectory() as wide:
            fp8.widen(out, Path(wide))
            return load(Path(wide), **changes)
    config = AutoConfig.from_pretrained(out)
    for key, value in changes.items():
        setattr(config, key, value)
    model = AutoModelForCausalLM.from_pretrained(out, config=config, dtype=torch.float32, attn_implementation="eager")
    return plain(model)


@torch.no_grad()
def logits_of(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    """Logits [tokens, vocab_size]."""
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


def logprobs_of(logits: torch.Tensor, ids: list[int]) -> torch.Tensor:
    """The log-probability of each token but the first, given those before it."""
    return torch.log_softmax(logits[:-1], -1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


def router_gap(model: torch.nn.Module, ids: list[int]) -> tuple[float, bool]:
    """The smallest step in router logits at the edge of the top k, and whether every expert is used."""
    routed = []

    def record(module, _, output):
        routed.append((output[0], module.top_k))

    hooks = [m.register_forward_hook(record) for m in model.modules() if type(m).__name__.endswith("TopKRouter")]
    logits_of(model, ids)
    for hook in hooks:
        hook.remove()
    gap, all_used = float("inf"), True
    for logits, k in routed:
        value, index = logits.sort(dim=-1, descending=True)
        gap = min(gap, (value[:, k - 1] - value[:, k]).min().item())
        all_used &= index[:, :k].unique().numel() == logits.shape[-1]
    return gap, all_used


def greedy(model: torch.nn.Module, ids: list[int]) -> tuple[list[int], float]:
    """The next tokens, each by a full forward pass, and the smallest gap between the best two logits."""
    tokens, gap = list(ids), float("inf")
    for _ in range(GREEDY_STEPS):
        best = logits_of(model, tokens)[-1].topk(2)
        gap = min(gap, (best.values[0] - best.values[1]).item())
        tokens.append(best.indices[0].item())
    return tokens[len(ids):], gap


def exact(values: torch.Tensor) -> list[float]:
    """The shortest decimals that give back the same float32."""
    return [float(str(value)) for value in values.numpy()]


def golden_of(model: torch.nn.Module, ids: list[int]) -> dict:
    """What golden.json holds."""
    logits = logits_of(model, ids)
    logprobs = logprobs_of(logits, ids)
    tokens, gap = greedy(model, ids)
    gap_router, all_used = router_gap(model, ids + tokens)
    double = logprobs_of(logits_of(copy.deepcopy(model).double(), ids), ids)
    return {
        "prompt_token_ids": ids,
        "logprobs": [None, *exact(logprobs)],
        "greedy_token_ids": tokens,
        "last_logits": exact(logits[-1]),
        "greedy_gap_min": round(gap, 6),
        "router_gap_min": None if gap_router == float("inf") else round(gap_router, 6),
        "all_experts_used": all_used,
        "float64_logprob_diff_max": float(f"{(double - logprobs).abs().max().item():.2e}"),
    }


def problem_with(golden: dict, eos: list[int]) -> str | None:
    """Why this seed must not be used: what a correct float32 engine could get different."""
    logits = torch.tensor(golden["last_logits"])
    if golden["greedy_gap_min"] < GREEDY_GAP_MIN:
        return "greedy step too close"
    if (golden["router_gap_min"] or 1.0) < ROUTER_GAP_MIN:
        return "router too close"
    if not golden["all_experts_used"]:
        return "an expert is never used"
    if golden["float64_logprob_diff_max"] > NOISE_MAX:
        return "too sensitive to rounding"
    if set(eos) & set(golden["greedy_token_ids"]):
        return "greedy text contains eos"
    if len(set(golden["greedy_token_ids"])) < GREEDY_DISTINCT_MIN:
        return "greedy text repeats"
    if logits.max() - logits.min() < 4.0:
        return "logits too flat"
    return None


@torch.no_grad()
def check_matters(fixture: Fixture, out: Path, ids: list[int]) -> float:
    """Neutralises each parameter and each listed config value in turn; returns the smallest effect seen."""
    model = load(out)
    reference = logprobs_of(logits_of(model, ids), ids)
    effects = {}
    for name, parameter in model.named_parameters():
        if "opt" in model.config.model_type and name.endswith("k_proj.bias"):
            continue  # without rope it adds the same to every score of a query
        kept = parameter.clone()
        is_unit = "norm" in name and "gemma" not in model.config.model_type and not name.endswith("bias")
        parameter.fill_(1.0 if is_unit else 0.0)
        effects[name] = (logprobs_of(logits_of(model, ids), ids) - reference).abs().max().item()
        parameter.copy_(kept)
    for name, changes in fixture.matters.items():
        changed = logprobs_of(logits_of(load(out, **changes), ids), ids)
        effects[name] = (changed - reference).abs().max().item()
    weakest = min(effects, key=effects.get)
    assert effects[weakest] > 0.05, f"{fixture.name}: {weakest} has an effect of only {effects[weakest]:.4f}"
    return effects[weakest]


def prompt_of(fixture: Fixture, seed: int) -> list[int]:
    """Pseudo-random ordinary ids."""
    generator = torch.Generator().manual_seed(seed)
    top = fixture.config.vocab_size - (len(SPECIAL) if fixture.tokenizer else 0)
    return torch.randint(FIRST_ORDINARY_ID, top, (fixture.prompt_len,), generator=generator).tolist()


def eos_of(fixture: Fixture) -> list[int]:
    """Every end-of-sequence id of a fixture."""
    eos = fixture.config.eos_token_id
    return [*(eos if isinstance(eos, list) else [eos]), *(fixture.eos or [])]


def make(fixture: Fixture, out: Path) -> str:
    """Makes one directory; returns a line that says how it went."""
    for seed in range(1, 100):
        ids = prompt_of(fixture, seed)
        config = copy.deepcopy(fixture.config)
        model = plain(AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager"))
        randomise(model, getattr(torch, fixture.dtype), seed)
        if fixture.fp8:
            save(fixture, model, out)
            model = load(out)
        golden = golden_of(model, ids)
        problem = problem_with(golden, eos_of(fixture))
        if problem is None:
            break
    else:
        raise SystemExit(f"{fixture.name}: no seed is good enough: {problem}")
    if fixture.stop_at is not None:
        tokens = golden["greedy_token_ids"]
        stop = next(i for i in range(fixture.stop_at, len(tokens)) if tokens[i] not in tokens[:i])
        fixture.eos = [*fixture.eos, tokens[stop]]
        golden["stops_after"] = stop + 1
    if not fixture.fp8:
        save(fixture, model, out)
    assert torch.equal(logits_of(load(out), ids), logits_of(model, ids)), f"{fixture.name}: changed by storing"
    del golden["all_experts_used"]
    if fixture.tokenizer:
        write_tokenizer(out, fixture.tokenizer)
        tokenizer = AutoTokenizer.from_pretrained(out)
        golden["greedy_text"] = tokenizer.decode(golden["greedy_token_ids"], skip_special_tokens=True)
    write_json(out / "golden.json", golden)
    effect = check_matters(fixture, out, ids)
    return f"{fixture.name}: seed {seed}, gap {golden['greedy_gap_min']}, weakest effect {effect:.3f}, " \
        f"noise {golden['float64_logprob_diff_max']}"


def size_of(out: Path) -> int:
    """Bytes of a directory."""
    return sum(path.stat().st_size for path in out.iterdir())


def write_readme(root: Path) -> None:
    """The table of what there is."""
    total = 0
    lines = []
    for fixture in FIXTURES:
        size = size_of(root / fixture.name)
        total += size
        keys = "old" if fixture.old is not None else "new"
        architecture = json.loads((root / fixture.name / "config.json").read_text())["architectures"][0]
        lines.append(f"| {fixture.name} | {architecture.removesuffix('ForCausalLM')} | {fixture.dtype} | {keys} | "
                     f"{fixture.prompt_len} | {size / 1000:.0f} | {fixture.covers} |")
    head = (Path(__file__).parent / "readme_head.md").read_text()
    (root / "README.md").write_text(head + "\n".join(lines) + f"\n\nTogether {total / 1e6:.2f} MB.\n")


def main() -> None:
    """Makes all directories, or some."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, default=Path("tests/golden"))
    parser.add_argument("--only", nargs="+", metavar="NAME")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    for fixture in FIXTURES:
        if not arguments.only or fixture.name in arguments.only:
            print(make(fixture, arguments.out / fixture.name), flush=True)
    if not arguments.only:
        write_readme(arguments.out)


if __name__ == "__main__":
    main()
