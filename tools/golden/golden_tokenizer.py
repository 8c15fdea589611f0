"""A tiny real tokenizer in the manner of Llama 3: byte-level BPE, 272 ordinary ids and 5 special ones."""

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
BEGIN, END = "<|begin_of_text|>", "<|end_of_text|>"
SPECIAL = [BEGIN, END, "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
CORPUS = ["the rank that holds the head sends the sum to the other ranks", "then there is the rest of the theory"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
TEXTS = [
    "Hello, world!",
    "the other ranks",
    " leading space, 12345 and\n\ntwo lines  \n",
    "Zürich — 東京 🙂 it's",
    "a<|eot_id|>b",
    "",
]
CHAT = [
    {"role": "system", "content": "You are brief."},
    {"role": "user", "content": " the other rank? "},
]


def build() -> PreTrainedTokenizerFast:
    """Trains the tokenizer; the same corpus always gives the same merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=272, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(
            single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN} $B", special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))]
        ),
    ])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END, chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False, model_max_length=4096,
    )


def write_tokenizer(out: Path, template: str) -> None:
    """Writes the tokenizer's files with the chat template in the named one, and text.json with answers."""
    build().save_pretrained(out, save_jinja_files=template == "chat_template.jinja")
    config = json.loads((out / "tokenizer_config.json").read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"  # as hubs have it
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    tokenizer = AutoTokenizer.from_pretrained(out)
    prompt = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    answers = {
        "texts": [text_answer(tokenizer, text) for text in TEXTS],
        "chat": {
            "messages": CHAT,
            "prompt": prompt,
            "token_ids": tokenizer.encode(prompt, add_special_tokens=False),
        },
    }
    (out / "text.json").write_text(json.dumps(answers, ensure_ascii=False, separators=(",", ":")) + "\n")


def text_answer(tokenizer: PreTrainedTokenizerFast, text: str) -> dict:
    """A text, its ids, and the text those ids give back without the special tokens."""
    ids = tokenizer.encode(text)
    return {"text": text, "token_ids": ids, "decoded": tokenizer.decode(ids, skip_special_tokens=True)}
