"""Random weights of a shape, as a safetensors checkpoint and as a GGUF file of the same values, both in bfloat16.

Run by the virtual environment's Python: needs numpy and gguf.

    python -m compare.weights SHAPE CHECKPOINT_DIR GGUF_FILE
"""

import json
import sys
from pathlib import Path

import gguf
import numpy as np

from compare.shapes import SHAPES, Shape

# Rows that are drawn at a time, so that a large matrix takes little memory in float32.
ROWS = 8192


def tensors(shape: Shape):
    """(name, rows, columns or None, name in GGUF, heads if rotated)."""
    h, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield "model.embed_tokens.weight", shape.vocab, shape.hidden, "token_embd.weight", None
    for i in range(shape.layers):
        hf, gg = f"model.layers.{i}.", f"blk.{i}."
        yield hf + "input_layernorm.weight", shape.hidden, None, gg + "attn_norm.weight", None
        yield hf + "self_attn.q_proj.weight", h, shape.hidden, gg + "attn_q.weight", shape.heads
        yield hf + "self_attn.k_proj.weight", kv, shape.hidden, gg + "attn_k.weight", shape.kv_heads
        yield hf + "self_attn.v_proj.weight", kv, shape.hidden, gg + "attn_v.weight", None
        yield hf + "self_attn.o_proj.weight", shape.hidden, h, gg + "attn_output.weight", None
        yield hf + "post_attention_layernorm.weight", shape.hidden, None, gg + "ffn_norm.weight", None
        yield hf + "mlp.gate_proj.weight", shape.ffn, shape.hidden, gg + "ffn_gate.weight", None
        yield hf + "mlp.up_proj.weight", shape.ffn, shape.hidden, gg + "ffn_up.weight", None
        yield hf + "mlp.down_proj.weight", shape.hidden, shape.ffn, gg + "ffn_down.weight", None
    yield "model.norm.weight", shape.hidden, None, "output_norm.weight", None


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """Nearest, ties to even; as 16-bit patterns."""
    bits = x.view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def write_checkpoint(shape: Shape, folder: Path) -> None:
    """config.json and model.safetensors. Matrices are normal with a deviation of 0.02, norms are 1."""
    folder.mkdir(parents=True, exist_ok=True)
    header, at = {}, 0
    for name, rows, cols, _, _ in tensors(shape):
        dims = [rows] if cols is None else [rows, cols]
        size = 2 * rows * (cols or 1)
        header[name] = {"dtype": "BF16", "shape": dims, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = np.random.Generator(np.random.SFC64(1))
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, rows, cols, _, _ in tensors(shape):
            if cols is None:
                to_bfloat16(np.ones(rows, np.float32)).tofile(file)
                continue
            for start in range(0, rows, ROWS):
                part = random.standard_normal((min(ROWS, rows - start), cols), np.float32)
                part *= np.float32(0.02)
                to_bfloat16(part).tofile(file)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.ffn,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.positions,
        "rope_theta": shape.rope_theta,
        "rms_norm_eps": shape.norm_eps,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def read_checkpoint(folder: Path) -> dict[str, np.ndarray]:
    """Tensors as 16-bit patterns, mapped."""
    path = folder / "model.safetensors"
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    data = np.memmap(path, np.uint8, "r", offset=8 + length)
    find = lambda entry: data[slice(*entry["data_offsets"])].view(np.uint16).reshape(entry["shape"])
    return {name: find(entry) for name, entry in header.items()}


def rotated(x: np.ndarray, heads: int) -> np.ndarray:
    """Rows in the order of a rope that turns neighbours, where the checkpoint's turns halves."""
    rows, cols = x.shape
    return x.reshape(heads, 2, rows // heads // 2, cols).swapaxes(1, 2).reshape(rows, cols)


def add_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """Tokens that nothing is ever written with: a file must have some."""
    special = [("<unk>", gguf.TokenType.UNKNOWN), ("<s>", gguf.TokenType.CONTROL), ("</s>", gguf.TokenType.CONTROL)]
    tokens = special + [(f"<0x{byte:02X}>", gguf.TokenType.BYTE) for byte in range(256)]
    tokens += [(f"t{i}", gguf.TokenType.NORMAL) for i in range(len(tokens), size)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([token for token, _ in tokens])
    writer.add_token_scores([-float(i) for i in range(size)])
    writer.add_token_types([kind for _, kind in tokens])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def write_gguf(shape: Shape, folder: Path, path: Path) -> None:
    """The checkpoint's values in bfloat16, norms in float32."""
    found = read_checkpoint(folder)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("random")
    writer.add_context_length(shape.positions)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    writer.add_vocab_size(shape.vocab)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    add_vocabulary(writer, shape.vocab)
    for name, _, cols, theirs, heads in tensors(shape):
        values = found[name]
        if cols is None:
            writer.add_tensor(theirs, (values.astype(np.uint32) << 16).view(np.float32))
            continue
        values = values if heads is None else rotated(values, heads)
        writer.add_tensor(theirs, values.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    shape, folder, path = SHAPES[sys.argv[1]], Path(sys.argv[2]), Path(sys.argv[3])
    if not (folder / "config.json").exists():
        write_checkpoint(shape, folder)
    if not path.exists():
        # Whoever is interrupted leaves no half a file.
        part = path.with_suffix(".part")
        write_gguf(shape, folder, part)
        part.rename(path)


if __name__ == "__main__":
    main()
