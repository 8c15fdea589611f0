"""The shapes that are compared, and what a token of them costs. Only the standard library: both Pythons import it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """A dense Llama with tied embeddings."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    positions: int = 8192
    rope_theta: float = 500000.0
    norm_eps: float = 1e-5

    @property
    def layer_weights(self) -> int:
        """Elements of the matrices of all layers."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.ffn)

    def prefill_flops(self, tokens: int) -> float:
        """Of a prompt: the layers for every token, causal attention, the head for the last token."""
        matrices = 2 * tokens * self.layer_weights + 2 * self.hidden * self.vocab
        seen = tokens * (tokens + 1) // 2
        return matrices + self._attention(seen)

    def decode_flops(self, position: float) -> float:
        """Of one token that sees `position` others and itself."""
        return 2 * (self.layer_weights + self.hidden * self.vocab) + self._attention(position + 1)

    def kv_bytes(self, position: float, element: int = 2) -> float:
        """Read for one token that sees `position` others and itself."""
        return self.layers * 2 * self.kv_heads * self.head_dim * element * (position + 1)

    def _attention(self, pairs: float) -> float:
        return self.layers * 4 * self.heads * self.head_dim * pairs


SHAPES = {
    # As TinyLlama's smaller relatives.
    "s": Shape(hidden=1024, layers=16, heads=16, kv_heads=4, head_dim=64, ffn=2816, vocab=32000),
    # As Llama 3.2 1B.
    "1b": Shape(hidden=2048, layers=16, heads=32, kv_heads=8, head_dim=64, ffn=8192, vocab=128256),
}
