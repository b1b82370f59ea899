"""Fields of the model: the encoder, and the entries of its item table."""

from __future__ import annotations

import typing
from dataclasses import dataclass

from gr_jax.config.checks import check, check_at_least, check_choice, check_types

ATTENTION = ("reference", "xla", "pallas_triton", "pallas_mosaic_gpu", "jax_triton")

MOST_LAYERS = 10_000  # each is traced by itself: millions would never begin to train


@typing.no_type_check
@dataclass(frozen=True)
class ModelConfig:
    """The encoder: embeddings, blocks and output."""

    # hstu | baselines of retrieval: sasrec, hstu_softmax (needs bias=none) | of ranking: dlrm
    kind: str = "hstu"
    width: int = 50  # D: model width
    num_blocks: int = 2  # encoder blocks
    num_heads: int = 1  # H: attention heads
    qk_width: int = 50  # A: query and key width of a head (hstu; sasrec uses width / num_heads)
    v_width: int = 50  # V: value width of a head (hstu; sasrec uses width / num_heads)
    ffn_width: int = 50  # hidden width of the feed-forward layer (sasrec only)
    # hidden width of a SwiGLU layer after attention; 0 = no such layer (hstu, hstu_softmax)
    swiglu_width: int = 0
    bias: str = "both"  # relative attention bias: none | position | time | both (hstu only)
    window: int = 0  # tokens before itself that a token sees; 0 = no limit (hstu only)
    # retrieval: time bias from the time of the event to predict, else from the token's own
    use_query_time: bool = True
    use_actions: bool = False  # retrieval: a token is item and action, else the item alone
    head_width: int = 128  # hidden width of the ranking head
    hidden_widths: tuple[int, ...] = (256, 128)  # of the fully connected layers (dlrm only)
    cross_layers: int = 3  # DCN-v2 cross layers (dlrm only)
    input_dropout: float = 0.2  # after the input embeddings
    dropout: float = 0.2  # before the output projection of a block, and that of its SwiGLU
    # rank of the scores of item-kNN that are added to those of a trained retrieval model, with the
    # weight that is best on validation; 0 = none
    knn_rank: int = 0
    temperature: float = 0.05  # of the dot product of L2-normalised vectors
    # float32 | bfloat16: activations and matmuls; parameters stay float32
    compute_dtype: str = "float32"
    remat: bool = False  # recompute each block in the backward pass: less memory, more time
    # one compiled block looped over depth: shorter compile for deep models
    scan_blocks: bool = False
    # attention implementation, one of ATTENTION; "" = the best that can run here (hstu only)
    attention: str = ""

    def __post_init__(self):
        check_types(self, "model.")
        check_choice("model.kind", self.kind, ("hstu", "hstu_softmax", "sasrec", "dlrm"))
        check_choice("model.bias", self.bias, ("none", "position", "time", "both"))
        check_choice("model.compute_dtype", self.compute_dtype, ("float32", "bfloat16"))
        check_choice("model.attention", self.attention, ("", *ATTENTION))
        self._check_sizes()
        self._check_kind()

    def _check_sizes(self) -> None:
        check_at_least(1, self, "model.", "width", "num_blocks", "num_heads", "qk_width")
        check_at_least(1, self, "model.", "v_width", "ffn_width", "head_width")
        check_at_least(0, self, "model.", "swiglu_width", "cross_layers", "knn_rank")
        for name in ("num_blocks", "cross_layers"):
            value = getattr(self, name)
            check(value <= MOST_LAYERS, f"model.{name}", value, f"at most {MOST_LAYERS}")
        for name in ("input_dropout", "dropout"):
            rate = getattr(self, name)
            check(0 <= rate < 1, f"model.{name}", rate, "in [0, 1)")
        check(self.window >= 0, "model.window", self.window, "at least 0; 0 is no limit")
        check(self.temperature > 0, "model.temperature", self.temperature, "positive")

        widths = self.hidden_widths
        ok = len(widths) > 0 and all(type(width) is int and width >= 1 for width in widths)
        check(ok, "model.hidden_widths", widths, "a tuple of widths, such as (256, 128)")

    def _check_kind(self) -> None:
        """Rules that hold for one kind of model only."""
        if self.kind != "hstu":
            check(self.window == 0, "model.window", self.window, f"0 for model.kind={self.kind}")
        if self.kind in ("sasrec", "dlrm"):
            width, rule = self.swiglu_width, f"0 for model.kind={self.kind}"
            check(width == 0, "model.swiglu_width", width, rule)
        if self.kind == "hstu_softmax":
            check(self.bias == "none", "model.bias", self.bias, "none for model.kind=hstu_softmax")
        if self.kind == "sasrec":
            rule = f"a multiple of model.num_heads={self.num_heads}"
            check(self.width % self.num_heads == 0, "model.width", self.width, rule)


@typing.no_type_check
@dataclass(frozen=True)
class VocabularyConfig:
    """The entries of the item table that an item has."""

    # one entry an item | hashed: entries by hashes of raw ids | admitted: own entries are earned
    kind: str = "catalogue"
    # hashed: entries of the table | admitted: entries owned by one item each, besides shared_rows
    rows: int = 0
    # k: independent hashes of a raw id; an item's vector is the sum of its k entries / sqrt(k)
    hashes: int = 2
    # admitted: entries shared, by their hashes, by the items that own none
    shared_rows: int = 0
    admit_after: int = 3  # admitted: steps that name an item before it may own an entry
    # admitted: consecutive steps without an item after which it loses its entry; 0 = never
    evict_after: int = 0
    update_every: int = 100  # admitted: steps between assignments of entries

    def __post_init__(self):
        check_types(self, "vocabulary.")
        check_choice("vocabulary.kind", self.kind, ("catalogue", "hashed", "admitted"))
        self._check_rows("rows", "hashed", "admitted")
        self._check_rows("shared_rows", "admitted")
        check_at_least(1, self, "vocabulary.", "hashes", "admit_after", "update_every")
        check_at_least(0, self, "vocabulary.", "evict_after")

    def _check_rows(self, name: str, *kinds: str) -> None:
        """Positive for these kinds of vocabulary, and 0 for the others."""
        value = getattr(self, name)
        if self.kind in kinds:
            check_at_least(1, self, "vocabulary.", name)
            return
        rule = f"0 with vocabulary.kind={self.kind}; it belongs to {' and '.join(kinds)}"
        check(value == 0, f"vocabulary.{name}", value, rule)

    def table_ids(self, num_items: int) -> int:
        """Entries of the item table of a catalogue, without entry 0, which is padding."""
        return num_items if self.kind == "catalogue" else self.rows + self.shared_rows
