"""Names of encoder and decoder layers in mmcv's style, which mmdetection and detrex have in common.

A decoder layer's norms are numbered in the order in which they are applied; ours as in the paper's repository.
"""

from models.convert.common import Table


def layers_below(prefix: str) -> Table:
    """The part of a table for `PREFIX.encoder.layers.N.attentions`, `ffns` and `norms`, and the same of the decoder.

    Args:
        prefix: pattern of what comes before; with a dot, if it is not empty.
    """
    encoder, decoder, either = (
        rf"{prefix}({part})\.layers\.(\d+)\." for part in ("encoder", "decoder", "encoder|decoder")
    )
    layer = r"transformer.\1.\2."
    return [
        (either + r"ffns?\.(?:0\.)?layers\.0\.0\.", layer + "ffn.linear1."),
        (either + r"ffns?\.(?:0\.)?layers\.1\.", layer + "ffn.linear2."),
        (encoder + r"(?:attentions\.0|self_attn)\.", layer + "self_attn."),
        (encoder + r"norms\.0\.", layer + "norm1."),
        (encoder + r"norms\.1\.", layer + "norm2."),
        (decoder + r"(?:attentions\.0|self_attn)\.attn\.", layer + "self_attn."),
        (decoder + r"(?:attentions\.1|cross_attn)\.", layer + "cross_attn."),
        (decoder + r"norms\.0\.", layer + "norm2."),
        (decoder + r"norms\.1\.", layer + "norm1."),
        (decoder + r"norms\.2\.", layer + "norm3."),
    ]
