"""Build tiny image models of diffusers and their inputs, for tests and runners."""

import diffusers
import torch

LAYERS = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Conv3d)


def flux():
    return diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=12,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
    )


def sd3():
    return diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=12,
        pooled_projection_dim=16,
        out_channels=4,
        dual_attention_layers=(0,),
    )


def wan():
    return diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=20,
        num_layers=2,
        cross_attn_norm=True,
        rope_max_seq_len=8,
        image_dim=14,
        added_kv_proj_dim=24,
    )


def sd():
    return diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16, 16, 16),
        layers_per_block=2,
        cross_attention_dim=12,
        norm_num_groups=4,
        attention_head_dim=4,
        sample_size=8,
    )


def sdxl():
    return diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16, 16),
        layers_per_block=2,
        down_block_types=(
            "DownBlock2D",
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
        ),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 3),
        cross_attention_dim=12,
        norm_num_groups=4,
        attention_head_dim=4,
        sample_size=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=32,
        use_linear_projection=True,
    )


MODELS = {
    "sd": (sd, "unet"),
    "sdxl": (sdxl, "unet"),
    "flux": (flux, "transformer"),
    "sd3": (sd3, "transformer"),
    "wan": (wan, "transformer"),
}


INPUTS = {
    "sd": {"sample": (1, 4, 8, 8), "encoder_hidden_states": (1, 4, 12)},
    "flux": {
        "hidden_states": (1, 16, 4),
        "encoder_hidden_states": (1, 4, 12),
        "pooled_projections": (1, 12),
        "img_ids": (16, 3),
        "txt_ids": (4, 3),
        "guidance": (1,),
    },
    "sd3": {
        "hidden_states": (1, 4, 8, 8),
        "encoder_hidden_states": (1, 4, 12),
        "pooled_projections": (1, 16),
    },
    "wan": {
        "hidden_states": (1, 4, 2, 8, 8),
        "encoder_hidden_states": (1, 4, 16),
        "encoder_hidden_states_image": (1, 5, 14),
    },
}


def seeded(name):
    """Build a model with the same weights in every process."""
    torch.manual_seed(0)
    return MODELS[name][0]().eval()


def output(name, model):
    """Return a model's output for fixed random inputs."""
    torch.manual_seed(1)
    inputs = {key: torch.randn(shape) for key, shape in INPUTS[name].items()}
    with torch.no_grad():
        return model(timestep=torch.tensor([5.0]), **inputs).sample.numpy()


def shapes(model):
    """Return the shape of every weight suitable for a LoRA update."""
    layers = (x for x in model.named_modules() if isinstance(x[1], LAYERS))
    return {name: tuple(x.weight.shape) for name, x in layers}
