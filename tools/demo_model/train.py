"""Trains the demo model on `corpus.jsonl` for a given time on a CPU, and writes it as a Hugging Face checkpoint.

Most of the time uses rows of 256 tokens, the last 15 % rows of 2,048, so that the whole context is trained. The second
half leaves out rare words and repeats the project's own text. The learning rate follows the time spent; time for which
the process was stopped does not count.
"""

import argparse
import json
import os
import random
import re
import time
import zlib
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

import make_tokenizer

SHORT, LONG, STEP_TOKENS, LONG_SHARE = 256, 2048, 2048, 0.15
WARMUP_STEPS, FINAL_LR = 150, 0.03
LATER_FROM = 0.45
# How often the second half repeats a source in each epoch.
LATER = {"kjv": 0.4, "web": 0.5, "austen": 0.4, "own-chat": 1.5, "capitals-chat": 6, "basic": 4, "famous": 10}
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": make_tokenizer.BOS,
    "eos_token_id": [make_tokenizer.EOS, make_tokenizer.END],
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 576,
    "max_position_embeddings": 2048,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 8,
    "num_hidden_layers": 5,
    "num_key_value_heads": 4,
    "pad_token_id": make_tokenizer.PAD,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": make_tokenizer.VOCAB_SIZE,
}


def read(path):
    """Training and validation documents as (source, text, common); one key in a hundred is for validation."""
    train, valid = [], []
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            doc = json.loads(line)
            text = doc["text"] if "text" in doc else make_tokenizer.render(doc["messages"])
            side = valid if zlib.crc32(doc["key"].encode()) % 100 == 0 else train
            side.append((doc["source"], text, doc.get("common", True)))
    return train, valid


def later(documents, rng):
    """The second half's share of the documents."""
    for source, text, common in documents:
        times = LATER.get(source, 1) if common else 0
        whole = int(times)
        for _ in range(whole + (rng.random() < times - whole)):
            yield source, text, common


def cut(text, rng):
    """Cuts a chapter into passages of whole sentences, 30 to 400 words each."""
    passage, words, limit = [], 0, rng.randint(30, 400)
    for sentence in re.split(r"(?<=[.!?]) (?=[A-Z\"])", text):
        passage.append(sentence)
        words += sentence.count(" ") + 1
        if words >= limit:
            yield " ".join(passage)
            passage, words, limit = [], 0, rng.randint(30, 400)
    if passage:
        yield " ".join(passage)


def encode(tokenizer, texts):
    """One array of all texts, each between bos and eos (a chat ends with its end-of-turn token)."""
    stream = []
    for encoding in tokenizer.encode_batch(texts):
        ids = encoding.ids
        stream.extend(ids if ids[-1] == make_tokenizer.END else ids + [make_tokenizer.EOS])
    return np.array(stream, dtype=np.int64)


def rows(tokenizer, documents, length, second_half, rng):
    """Endless rows of `length` tokens: every epoch shuffles the documents, and cuts the chapters anew."""
    while True:
        texts = []
        for source, text, _ in later(documents, rng) if second_half else documents:
            chapter = source in ("web", "kjv", "austen", "famous")
            texts.extend(cut(text, rng) if chapter and length == SHORT else [text])
        rng.shuffle(texts)
        stream = encode(tokenizer, texts)
        print(f"epoch of {len(stream)} tokens in rows of {length}", flush=True)
        table = stream[:len(stream) // length * length].reshape(-1, length)
        yield from table[np.random.default_rng(rng.getrandbits(32)).permutation(len(table))]


def loss_of(model, ids):
    """Mean next-token loss of `ids [rows, tokens]`."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=ids).logits
    return F.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten())


@torch.no_grad()
def validate(model, tables):
    """Validation loss by source, and their mean weighted by tokens."""
    losses = {name: loss_of(model, table).item() for name, table in tables.items()}
    total = sum(table.numel() for table in tables.values())
    mean = sum(losses[name] * table.numel() for name, table in tables.items()) / total
    return mean, " ".join(f"{name} {loss:.3f}" for name, loss in losses.items())


def export(model, tokenizer, folder):
    """Writes the five files of the checkpoint, weights in bfloat16; a reader never sees half a file."""
    folder.mkdir(parents=True, exist_ok=True)
    make_tokenizer.save(tokenizer, folder)
    (folder / "config.json").write_text(json.dumps(LLAMA, indent=2) + "\n")
    generation = {key: LLAMA[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    weights = {name: value.to(torch.bfloat16).contiguous() for name, value in model.state_dict().items()
               if name != "lm_head.weight"}
    save_file(weights, folder / "model.safetensors.new", metadata={"format": "pt"})
    os.chmod(folder / "model.safetensors.new", 0o644)
    os.replace(folder / "model.safetensors.new", folder / "model.safetensors")


def optimizer(model, lr):
    """AdamW, with weight decay on the matrices only."""
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))


def main():
    """Trains, validates, and exports every `--export-minutes`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--minutes", type=float, default=80)
    parser.add_argument("--export-minutes", type=float, default=15)
    parser.add_argument("--deadline", type=float, default=float("inf"), help="finish by this Unix time all the same")
    parser.add_argument("--lr", type=float, default=2.5e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--init", type=Path, help="go on from this checkpoint instead of from nothing")
    parser.add_argument("--start-minute", type=float, default=0, help="where in the schedule --init stands")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rng = random.Random(0)

    train, valid = read(args.corpus)
    if args.init:
        tokenizer = Tokenizer.from_file(str(args.init / "tokenizer.json"))
    else:
        tokenizer = make_tokenizer.train(text for _, text, _ in train)
    by_source = defaultdict(list)
    for source, text, _ in valid:
        by_source[source].append(text)
    tables = {}
    for source, texts in sorted(by_source.items()):
        ids = encode(tokenizer, texts)[:16 * SHORT]
        tables[source] = torch.from_numpy(ids[:len(ids) // SHORT * SHORT].reshape(-1, SHORT))

    config = {k: v for k, v in LLAMA.items() if k not in ("architectures", "model_type", "torch_dtype", "use_cache")}
    model = LlamaForCausalLM(LlamaConfig(**config, use_cache=False))
    if args.init:
        model.load_state_dict(load_file(args.init / "model.safetensors"), strict=False)
    opt = optimizer(model, args.lr)
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    source, stage = None, None
    used, step, tokens, typical, running = args.start_minute * 60, 0, 0, 2.0, None
    next_export = used + 5 * 60
    best, trial = args.threads, {}
    while True:
        started = time.time()
        if step % 60 < 6:  # on a busy machine one thread can be faster than two that wait for each other
            if step % 60 == 0:
                trial = {1: 0.0, args.threads: 0.0}
            best = 1 if step % 60 < 3 else args.threads
        elif trial:
            best, trial = min(trial, key=trial.get), {}
        torch.set_num_threads(best)
        total = min(args.minutes * 60, used + args.deadline - started)
        if used >= total:
            break
        part = used / total
        if stage != (part > LATER_FROM, part > 1 - LONG_SHARE):
            stage = (part > LATER_FROM, part > 1 - LONG_SHARE)
            length = LONG if stage[1] else SHORT
            source = rows(tokenizer, train, length, stage[0], rng)
        ids = torch.from_numpy(np.stack([next(source) for _ in range(STEP_TOKENS // length)]))
        cosine = FINAL_LR + (1 - FINAL_LR) * (1 + np.cos(np.pi * part)) / 2
        rate = args.lr * min(1, (step + 1) / WARMUP_STEPS) * cosine
        loss = loss_of(model, ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in opt.param_groups:
            group["lr"] = rate
        opt.step()
        opt.zero_grad()
        took = time.time() - started
        if trial:
            trial[best] += took
        used += min(took, 10 * typical)  # a longer step was stopped or starved
        typical += 0.05 * (min(took, 2 * typical) - typical)
        step, tokens = step + 1, tokens + ids.numel()
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        if step % 100 == 0:
            print(f"{used / 60:6.2f} min  step {step}  {tokens / 1e6:.2f} Mtok  lr {rate:.2e}  loss {running:.3f}  "
                  f"{ids.numel() / typical:.0f} tok/s, {best} threads", flush=True)
        if used > next_export or step % 1000 == 0:
            mean, each = validate(model, tables)
            print(f"validation at {used / 60:.1f} min: {mean:.4f}  {each}", flush=True)
            if used > next_export:
                export(model, tokenizer, args.out)
                next_export += args.export_minutes * 60
    mean, each = validate(model, tables)
    export(model, tokenizer, args.out)
    print(f"done: {used / 60:.1f} min, {step} steps, {tokens} tokens, validation {mean:.4f}  {each}", flush=True)


if __name__ == "__main__":
    main()
