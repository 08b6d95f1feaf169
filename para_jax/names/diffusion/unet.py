"""List the UNets of Stable Diffusion by diffusers' names and by those of LDM's code.

sd-scripts trains Stable Diffusion 1.x and 2.x on diffusers' model, and SDXL on LDM's.
LDM numbers its blocks without levels (sd-scripts `library/sdxl_original_unet.py`;
ComfyUI `comfy/utils.py`; diffusers `loaders/single_file_utils.py`).
"""

from collections.abc import Iterator

from para_jax.names.diffusion.family import Family, Module

_BLOCK = (
    *(f"attn{i}.to_{x}" for i in (1, 2) for x in ("q", "k", "v", "out.0")),
    "ff.net.0.proj",
    "ff.net.2",
)
_RESNET = {
    "in_layers.2": "conv1",
    "out_layers.3": "conv2",
    "emb_layers.1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}
_EDGES = {
    "input_blocks.0.0": "conv_in",
    "out.2": "conv_out",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
}
_ADDED = {
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
}
_EACH_LEVEL = 2  # Residual blocks of a level on the way down; one more on the way up.


def _attention(original: str, diffusers: str, index: str) -> Iterator[Module]:
    """Yield the modules of a transformer; `index` are the numbers of its blocks."""
    blocks = [f"transformer_blocks.{index}.{x}" for x in _BLOCK]
    for name in ("proj_in", "proj_out", *blocks):
        yield Module(f"{original}.{name}", (f"{diffusers}.{name}",))


def _resnet(original: str, diffusers: str) -> Iterator[Module]:
    for theirs, name in _RESNET.items():
        yield Module(f"{original}.{theirs}", (f"{diffusers}.{name}",))


def _down(levels: int, attended: set[int], index: str) -> Iterator[Module]:
    for level in range(levels):
        # Block 0 is `conv_in`; a level has its residual blocks and a downsampler.
        first = 1 + level * (_EACH_LEVEL + 1)
        for i in range(_EACH_LEVEL):
            block, diffusers = f"input_blocks.{first + i}", f"down_blocks.{level}"
            yield from _resnet(f"{block}.0", f"{diffusers}.resnets.{i}")
            if level in attended:
                path = f"{diffusers}.attentions.{i}"
                yield from _attention(f"{block}.1", path, index)
        if level < levels - 1:
            name = f"input_blocks.{first + _EACH_LEVEL}.0.op"
            yield Module(name, (f"down_blocks.{level}.downsamplers.0.conv",))


def _middle(index: str) -> Iterator[Module]:
    yield from _resnet("middle_block.0", "mid_block.resnets.0")
    yield from _attention("middle_block.1", "mid_block.attentions.0", index)
    yield from _resnet("middle_block.2", "mid_block.resnets.1")


def _up(levels: int, attended: set[int], index: str) -> Iterator[Module]:
    for level in range(levels):
        first = level * (_EACH_LEVEL + 1)
        for i in range(_EACH_LEVEL + 1):
            block, diffusers = f"output_blocks.{first + i}", f"up_blocks.{level}"
            yield from _resnet(f"{block}.0", f"{diffusers}.resnets.{i}")
            if level in attended:
                path = f"{diffusers}.attentions.{i}"
                yield from _attention(f"{block}.1", path, index)
        if level < levels - 1:
            # LDM puts the upsampler at the end of the last block of its level.
            inside = 2 if level in attended else 1
            name = f"output_blocks.{first + _EACH_LEVEL}.{inside}.conv"
            yield Module(name, (f"up_blocks.{level}.upsamplers.0.conv",))


def _edges(names: dict[str, str]) -> Iterator[Module]:
    for original, diffusers in names.items():
        yield Module(original, (diffusers,))


def _diffusers() -> Iterator[Module]:
    """Yield the modules of any UNet in diffusers' names, on both sides."""
    for block in ("down_blocks.{}", "mid_block", "up_blocks.{}"):
        path = f"{block}.attentions.{{}}"
        yield from _attention(path, path, "{}")
        for name in _RESNET.values():
            path = f"{block}.resnets.{{}}.{name}"
            yield Module(path, (path,))
    others = [*_EDGES.values(), *_ADDED.values()]
    others += [f"{x}_blocks.{{}}.{x}samplers.{{}}.conv" for x in ("down", "up")]
    for name in others:
        yield Module(name, (name,))


UNET = Family(name="a UNet", component="unet", modules=tuple(_diffusers()))
# SD has one transformer block at each place, with the number 0; SDXL has up to ten.
SD = Family(
    name="Stable Diffusion 1.x and 2.x",
    component="unet",
    modules=(
        *_down(4, {0, 1, 2}, "0"),
        *_middle("0"),
        *_up(4, {1, 2, 3}, "0"),
        *_edges(_EDGES),
    ),
)
SDXL = Family(
    name="SDXL",
    component="unet",
    modules=(
        *_down(3, {1, 2}, "{}"),
        *_middle("{}"),
        *_up(3, {0, 1}, "{}"),
        *_edges(_EDGES | _ADDED),
    ),
)
