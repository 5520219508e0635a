"""DeBERTa's enhanced mask decoder (He et al., arXiv 2006.03654, section 3.2): absolute positions for masked tokens.

DeBERTa's input has no absolute positions. The decoder is the encoder's last layer, run twice in place of once: keys and
values are the hidden states H of the layer before it both times; queries are H plus a table of absolute positions, then
the first output. What it adds to each query is a residual connection, as always. The rest of the model is the plain one.

The paper leaves the details open, so they are those of the authors' code
(https://github.com/microsoft/DeBERTa, DeBERTa/apps/models/masked_language_model.py): the table is added as it is, without
LayerNorm or dropout. There it is ``embeddings.position_embeddings``, which an input without absolute positions does not
use; transformers has no such table then, so this module has it, and an export keeps it beside the model under that name.

All rows are queries, not only those of predicted tokens: attention of transformers computes the term from positions to
contents for square scores alone.

Shapes: B sequences, n tokens, d width.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor, nn

from mpnet_ds.models.families import Family
from mpnet_ds.models.module import Part
from mpnet_ds.models.transformers_model import Inputs, MaskedLanguageModel, embed_deberta

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

FILE, NAME = "emd.safetensors", "deberta.embeddings.position_embeddings.weight"
"""Where an export has the table of positions, [max_position_embeddings, d]: the name is that of Microsoft's checkpoints."""
PASSES = 2


class EnhancedMaskDecoder(MaskedLanguageModel):
    """DeBERTa-v2 under masked language modelling, with its decoder; arguments as for ``MaskedLanguageModel``."""

    def __init__(self, family: Family, config: "PreTrainedConfig", mask_id: int | None = None, attention: str = "auto"):
        super().__init__(family, config, mask_id, attention)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        nn.init.normal_(self.position_embeddings.weight, std=config.initializer_range)

    def parts(self) -> dict[str, Part]:
        """The plain model, and beside it the table of positions."""
        (part,) = super().parts().values()
        return {"": replace(part, extra_files={FILE: {"position_embeddings.weight": NAME}})}

    def external_parameters(self) -> list[nn.Parameter]:
        """Return those of the plain model, and the table of relative positions, which all layers read."""
        encoder = self.model.base_model.encoder
        return super().external_parameters() + ([encoder.rel_embeddings.weight] if encoder.relative_attention else [])

    def run_body(self, inputs: Inputs) -> Tensor:
        """Compute the decoder's last output, [B, n, d]."""
        encoder = self.model.base_model.encoder
        embedded, mask = embed_deberta(self, inputs)
        shared = {
            "attention_mask": encoder.get_attention_mask(mask),
            "relative_pos": encoder.get_rel_pos(embedded),
            "rel_embeddings": encoder.get_rel_embedding(),
        }
        *layers, last = encoder.layer
        hidden = embedded
        for number, layer in enumerate(layers):
            hidden, _ = layer(hidden, **shared)
            if number == 0 and encoder.conv is not None:
                hidden = encoder.conv(embedded, hidden, mask)
        queries = hidden + self.position_embeddings(inputs.positions)
        for _ in range(PASSES):
            queries, _ = last(hidden, query_states=queries, **shared)
        return queries
