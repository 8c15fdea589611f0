#!/usr/bin/env python3
"""Measures how fast transformers decodes one sequence on a GPU, with random weights of a shape.

Needs torch with CUDA and transformers. Prints one JSON value. `cargo xtask gpu run` calls it.
"""

import argparse
import json
import sys
import time
from pathlib import Path

PROMPT = 128
TOKENS = 64


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", required=True, help="a directory with a config.json")
    parser.add_argument("--way", required=True, choices=["eager", "compiled"], help="as it comes, or with a static cache and torch.compile")
    args = parser.parse_args()

    import torch
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM

    if not torch.cuda.is_available():
        sys.exit("error: torch finds no GPU")
    config = AutoConfig.from_pretrained(Path(args.shape))
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config).eval()
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(1)
    prompt = torch.randint(0, config.vocab_size, (1, PROMPT), device="cuda")

    def run(tokens):
        options = dict(max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0)
        if args.way == "compiled":
            options["cache_implementation"] = "static"
        torch.cuda.synchronize()
        began = time.perf_counter()
        with torch.inference_mode():
            model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
        torch.cuda.synchronize()
        return time.perf_counter() - began

    if args.way == "compiled":
        model.forward = torch.compile(model.forward, mode="reduce-overhead", fullgraph=True)
    # Compiling, and capturing graphs, happen in the first runs. The cache of a longer run has another size, so all are as long.
    for _ in range(3):
        run(TOKENS)
    whole = min(run(TOKENS) for _ in range(3))
    first = min(run(1) for _ in range(3))
    print(
        json.dumps(
            {
                "way": args.way,
                "decode_tokens_per_s": (TOKENS - 1) / (whole - first),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
