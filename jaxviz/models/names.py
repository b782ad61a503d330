"""Other names of the same weights: those of other libraries, and of torchvision's older files."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

OtherNames = Sequence[tuple[str, str]]
"""Regular expressions and what torchvision has in the place of what they match, in order.

A name that comes to end in `#0`, `#1`, ... is that part of the tensor: parts are stacked in order
along the first axis.
"""

# As torchvision published them, before dots in names of modules were forbidden.
OLDER_DENSENET: OtherNames = ((r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2"),)

_BLOCK, _PROJECTED = r"encoder.layers.encoder_layer_\1.", r".self_attention.in_proj_\1"
VISION_TRANSFORMER: OtherNames = (
    # torchvision, before its dense layers had numbers
    (r"\bmlp\.linear_1\.", "mlp.0."),
    (r"\bmlp\.linear_2\.", "mlp.3."),
    # timm
    (r"^cls_token$", "class_token"),
    (r"^pos_embed$", "encoder.pos_embedding"),
    (r"^patch_embed\.proj\.", "conv_proj."),
    (r"^blocks\.(\d+)\.", _BLOCK),
    (r"\.norm([12])\.", r".ln_\1."),
    (r"\.attn\.qkv\.", ".self_attention.in_proj_"),
    (r"\.attn\.proj\.", ".self_attention.out_proj."),
    (r"^norm\.", "encoder.ln."),
    (r"^head\.", "heads.head."),
    (r"^dist_token$", "distillation_token"),
    (r"^head_dist\.", "heads.head_dist."),
    # transformers; in its files first, then in its modules since version 5
    (r"^(?:vit|deit)\.", ""),
    (r"^embeddings\.cls_token$", "class_token"),
    (r"^embeddings\.distillation_token$", "distillation_token"),
    (r"^embeddings\.position_embeddings$", "encoder.pos_embedding"),
    (r"^embeddings\.patch_embeddings\.projection\.", "conv_proj."),
    (r"^(?:encoder\.layer|layers)\.(\d+)\.", _BLOCK),
    (r"\.layernorm_before\.", ".ln_1."),
    (r"\.layernorm_after\.", ".ln_2."),
    *(
        (rf"\.attention\.(?:attention\.{word}|{word[0]}_proj)\.(\w+)$", rf"{_PROJECTED}#{i}")
        for i, word in enumerate(("query", "key", "value"))
    ),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".self_attention.out_proj."),
    (r"\.(?:intermediate\.dense|mlp\.fc1)\.", ".mlp.0."),
    (r"\.(?:output\.dense|mlp\.fc2)\.", ".mlp.3."),
    (r"^layernorm\.", "encoder.ln."),
    (r"^(?:cls_)?classifier\.", "heads.head."),
    (r"^distillation_classifier\.", "heads.head_dist."),
)


def renamed(state: Mapping[str, np.ndarray], other_names: OtherNames) -> dict[str, np.ndarray]:
    """Tensors under torchvision's names for them; what has those already stays as it is.

    Example:
      >>> old = {"a.query": np.zeros(2), "a.key": np.ones(2), "b": np.ones(1)}
      >>> new = renamed(old, ((r"query$", "both#0"), (r"key$", "both#1")))
      >>> {name: value.tolist() for name, value in new.items()}
      {'b': [1.0], 'a.both': [0.0, 0.0, 1.0, 1.0]}
    """
    out: dict[str, np.ndarray] = {}
    parts: dict[str, dict[int, np.ndarray]] = {}
    for key, value in state.items():
        name = key
        for pattern, replacement in other_names:
            name = re.sub(pattern, replacement, name)
        whole, mark, part = name.partition("#")
        if mark:
            parts.setdefault(whole, {})[int(part)] = value
        else:
            out[name] = value
    for whole, found in parts.items():
        out[whole] = np.concatenate([found[part] for part in sorted(found)])
    return out
