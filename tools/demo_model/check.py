"""Loads the demo model with transformers; prints its size, the loss by context length, and samples."""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

import train

PROMPTS = ["In the beginning", "The king said", "A dog is", "Once upon a time", "The sea", "It was a dark night and"]
CHATS = [
    "What is a harbor?", "What is a dog?", "What does brave mean?", "Use river in a sentence.", "Hello",
    "What is the opposite of hot?", "What is the capital of France?", "Tell me a story about a fox.",
    "Tell me a verse.", "Who are you?", "Write a poem about the sea.", "Explain how a bird can fly.",
]
LIMIT_BYTES = 8_000_000


@torch.no_grad()
def loss_by_context(model, tokenizer, corpus, rows=12):
    """Loss of the same validation tokens (the last half of each row of 2,048) with 256 and with 2,048 tokens seen."""
    _, valid = train.read(corpus)
    chapters = [text for source, text, _ in valid if source in ("web", "kjv", "austen")]
    ids = torch.from_numpy(train.encode(tokenizer.backend_tokenizer, chapters))
    table = ids[:min(rows, len(ids) // 2048) * 2048].view(-1, 2048)
    long = F.cross_entropy(model(table).logits[:, 1023:-1].flatten(0, 1), table[:, 1024:].flatten())
    short = []
    for start in range(1024, 2048, 128):
        window = table[:, start - 128:start + 128]
        short.append(F.cross_entropy(model(window).logits[:, 127:-1].flatten(0, 1), window[:, 128:].flatten()))
    return torch.stack(short).mean().item(), long.item()


def main():
    """Prints the report; fails where the files are too large."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, help="corpus.jsonl, for the loss by context length")
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()
    torch.manual_seed(0)
    sizes = {path.name: path.stat().st_size for path in sorted(args.model.iterdir())}
    print(sizes, sum(sizes.values()))
    assert sum(sizes.values()) < LIMIT_BYTES, "the demo model is too large"
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    if args.corpus:
        print("loss with 128 to 255 and with 1,024 to 2,047 tokens before: %.3f %.3f" %
              loss_by_context(model, tokenizer, args.corpus))
    inputs = [(f"[{prompt}]", tokenizer(prompt, return_tensors="pt").input_ids) for prompt in PROMPTS]
    for chat in CHATS:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": chat}], tokenize=False, add_generation_prompt=True)
        inputs.append((text, tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids))
    for name, ids in inputs:
        for how, options in {"greedy": {"do_sample": False}, "t=0.7": {"do_sample": True, "temperature": 0.7}}.items():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=args.tokens, **options)
            print(f"{name} {how}: {tokenizer.decode(out[0, ids.shape[1]:])!r}")


if __name__ == "__main__":
    main()
