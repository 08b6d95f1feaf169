"""List the diffusion transformers: FLUX.1, Stable Diffusion 3 and Wan.

The names follow diffusers' conversion of whole models (`loaders/single_file_utils.py`)
and ComfyUI's map of names (`comfy/utils.py`).
"""

from para_jax.names.diffusion.family import Family, Form, Module

_QKV = ("to_q", "to_k", "to_v")
_ADDED = ("add_q_proj", "add_k_proj", "add_v_proj")
_FLUX_BLOCK = {
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.proj": "attn.to_add_out",
    "img_mlp.2": "ff.net.2",
    "txt_mlp.2": "ff_context.net.2",
    "img_mod.lin": "norm1.linear",
    "txt_mod.lin": "norm1_context.linear",
}
_FLUX_SINGLE = {"linear2": "proj_out", "modulation.lin": "norm.linear"}
_FLUX_EMBEDDERS = {
    "time_in": "timestep_embedder",
    "vector_in": "text_embedder",
    "guidance_in": "guidance_embedder",
}
_FLUX_ENDS = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "final_layer.linear": "proj_out",
}
_SD3_BLOCK = {
    "x_block.attn.proj": "attn.to_out.0",
    "x_block.attn2.proj": "attn2.to_out.0",
    "context_block.attn.proj": "attn.to_add_out",
    "x_block.mlp.fc1": "ff.net.0.proj",
    "x_block.mlp.fc2": "ff.net.2",
    "context_block.mlp.fc1": "ff_context.net.0.proj",
    "context_block.mlp.fc2": "ff_context.net.2",
    "x_block.adaLN_modulation.1": "norm1.linear",
}
_SD3_ENDS = {
    "x_embedder.proj": "pos_embed.proj",
    "context_embedder": "context_embedder",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
}
_WAN_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}
_WAN_BLOCK = {
    **{f"self_attn.{x}": f"attn1.{y}" for x, y in _WAN_ATTENTION.items()},
    **{f"cross_attn.{x}": f"attn2.{y}" for x, y in _WAN_ATTENTION.items()},
    "cross_attn.k_img": "attn2.add_k_proj",
    "cross_attn.v_img": "attn2.add_v_proj",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}
_WAN_ENDS = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "head.head": "proj_out",
}
# The last layer's shift and scale: diffusers keeps the scale first.
_LAST = Module("final_layer.adaLN_modulation.1", ("norm_out.linear",), "swapped")


def _named(names: dict[str, str], before: str = "", after: str = "") -> list[Module]:
    return [Module(before + x, (after + y,)) for x, y in names.items()]


def _fused(original: str, block: str, parts: tuple[str, ...], form: Form) -> Module:
    return Module(original, tuple(f"{block}.{x}" for x in parts), form)


FLUX = Family(
    name="FLUX.1",
    component="transformer",
    modules=(
        _fused(
            "double_blocks.{}.img_attn.qkv",
            "transformer_blocks.{}.attn",
            _QKV,
            "thirds",
        ),
        _fused(
            "double_blocks.{}.txt_attn.qkv",
            "transformer_blocks.{}.attn",
            _ADDED,
            "thirds",
        ),
        # FLUX.2 has modules of these two names too: the form "mlp" checks the width.
        _fused(
            "double_blocks.{}.img_mlp.0",
            "transformer_blocks.{}.ff",
            ("net.0.proj",),
            "mlp",
        ),
        _fused(
            "double_blocks.{}.txt_mlp.0",
            "transformer_blocks.{}.ff_context",
            ("net.0.proj",),
            "mlp",
        ),
        *_named(_FLUX_BLOCK, "double_blocks.{}.", "transformer_blocks.{}."),
        _fused(
            "single_blocks.{}.linear1",
            "single_transformer_blocks.{}",
            (*(f"attn.{x}" for x in _QKV), "proj_mlp"),
            "single",
        ),
        *_named(_FLUX_SINGLE, "single_blocks.{}.", "single_transformer_blocks.{}."),
        *(
            Module(f"{x}.{layer}", (f"time_text_embed.{y}.linear_{i}",))
            for x, y in _FLUX_EMBEDDERS.items()
            for i, layer in ((1, "in_layer"), (2, "out_layer"))
        ),
        *_named(_FLUX_ENDS),
        _LAST,
    ),
)
SD3 = Family(
    name="Stable Diffusion 3",
    component="transformer",
    modules=(
        *(
            _fused(
                f"joint_blocks.{{}}.{original}.qkv",
                f"transformer_blocks.{{}}.{attention}",
                parts,
                "thirds",
            )
            for original, attention, parts in (
                ("x_block.attn", "attn", _QKV),
                ("x_block.attn2", "attn2", _QKV),
                ("context_block.attn", "attn", _ADDED),
            )
        ),
        *_named(_SD3_BLOCK, "joint_blocks.{}.", "transformer_blocks.{}."),
        # In the last block this is one shift and one scale, as in the last layer.
        Module(
            "joint_blocks.{}.context_block.adaLN_modulation.1",
            ("transformer_blocks.{}.norm1_context.linear",),
            "continuous",
        ),
        *_named(_SD3_ENDS),
        _LAST,
    ),
)
WAN = Family(
    name="Wan",
    component="transformer",
    modules=(*_named(_WAN_BLOCK, "blocks.{}.", "blocks.{}."), *_named(_WAN_ENDS)),
)
