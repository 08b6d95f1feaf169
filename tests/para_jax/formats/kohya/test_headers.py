"""Test that a child's header fields are kept, recomputed or left out."""

import hashlib
import json

import pytest

import para_jax as para
from para_jax import cli
from para_jax.formats.kohya import headers
from tests.para_jax.formats.kohya import single
from tests.para_jax.formats.kohya.single import pair, read, write

pytestmark = pytest.mark.user_defaults

# Training metadata of sd-scripts (`train_network.py`), musubi-tuner, OneTrainer and
# ai-toolkit (`toolkit/metadata.py`), and users' own notes.
KEPT = {
    "ss_output_name": "style",
    "ss_steps": "1600",
    "ss_epoch": "3",
    "ss_num_train_images": "12",
    "ss_learning_rate": "0.0001",
    "ss_base_model_version": "sdxl_base_v1-0",
    "ss_network_module": "networks.lora",
    "ss_network_dropout": "0.1",
    "ss_sd_model_hash": "31e35c80",
    "ss_new_sd_model_hash": "31e35c80fc",
    "ss_vae_hash": "63aeecb9",
    "ss_new_vae_hash": "63aeecb90f",
    "ss_sd_scripts_commit_hash": "7dc64e04",
    "ss_tag_frequency": '{"img": {"lora_alpha": 3}}',
    "ss_training_comment": "mine",
    "ssmd_keywords": "style",
    "modelspec.title": "style",
    "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
    "modelspec.date": "2026-01-01T00:00:00",
    "ot_branch": "master",
    "name": "style",
    "version": "1.0",
    "software": '{"name": "ai-toolkit"}',
    "training_info": '{"step": 2000, "epoch": 3}',
    "my note": "alpha and rank are mine",
    "trigger_word": "sks",
}
GONE = {
    "sshs_legacy_hash": "12345678",
    "modelspec.hash_md5": "1234",
    "sha256": "1234",
    "autov2": "1234",
    "rank": "4",
    "r": "4",
    "lora_rank": "4",
    "alpha": "2",
    "lora_alpha": "2",
    "network_alpha": "2",
    "network_dim": "4",
    "ss_conv_alpha": "2",
    "ss_network_rank": "4",
    "unet.lora_alpha": "2",
    "unet.r": "4",
    "unet.target_modules": '["q"]',
    "lora_adapter_metadata": '{"unet.r": 4, "unet.lora_alpha": 2}',
    "adapter_config": '{"r": 4, "lora_alpha": 2}',
    "config": '{"unet": {"r": 4, "lora_alpha": 2}}',
}
# All fields sd-scripts at 7dc64e0 writes with a network, except ranks and alphas.
SD_SCRIPTS = """
ss_adaptive_noise_scale ss_base_model_version ss_batch_size_per_device
ss_bucket_info ss_bucket_no_upscale ss_cache_latents
ss_caption_dropout_every_n_epochs ss_caption_dropout_rate
ss_caption_tag_dropout_rate ss_clip_skip ss_color_aug ss_dataset_dirs ss_datasets
ss_debiased_estimation ss_enable_bucket ss_epoch ss_face_crop_aug_range ss_flip_aug
ss_full_fp16 ss_gradient_accumulation_steps ss_gradient_checkpointing ss_huber_c
ss_huber_schedule ss_ip_noise_gamma ss_ip_noise_gamma_random_strength ss_keep_tokens
ss_learning_rate ss_loss_type ss_lowram ss_lr_scheduler ss_lr_warmup_steps
ss_max_bucket_reso ss_max_grad_norm ss_max_token_length ss_max_train_steps
ss_min_bucket_reso ss_min_snr_gamma ss_mixed_precision ss_multires_noise_discount
ss_multires_noise_iterations ss_network_dropout ss_network_module
ss_new_sd_model_hash ss_new_vae_hash ss_noise_offset ss_noise_offset_random_strength
ss_num_batches_per_epoch ss_num_epochs ss_num_reg_images ss_num_train_images
ss_optimizer ss_output_name ss_prior_loss_weight ss_random_crop ss_reg_dataset_dirs
ss_resolution ss_scale_weight_norms ss_sd_model_hash ss_sd_model_name
ss_sd_scripts_commit_hash ss_seed ss_session_id ss_shuffle_caption ss_steps
ss_tag_frequency ss_text_encoder_lr ss_total_batch_size ss_training_comment
ss_training_finished_at ss_training_started_at ss_unet_lr ss_v2 ss_vae_hash
ss_vae_name ss_zero_terminal_snr
"""
HASHED = {"sshs_model_hash": "ab" * 32, "modelspec.hash_sha256": "0x" + "ab" * 32}
ARGUMENTS = {"conv_dim": "4", "conv_alpha": "2", "block_dims": "4,4", "algo": "locon"}
CONFIG = {"lora_rank": 4, "lora_alpha": 2.0, "learning_rate": 1e-4}


def parent(tmp_path):
    tensors = {}
    for i, name in enumerate(("q", "k", "v")):
        tensors |= pair(f"unet.{name}", 8 + i, 6, 4, alpha=2, seed=i)
    arguments = {
        "ss_network_args": json.dumps(ARGUMENTS),
        "ot_config": json.dumps(CONFIG),
    }
    network = {"ss_network_dim": "4", "ss_network_alpha": "2"}
    metadata = KEPT | GONE | HASHED | arguments | network
    return write(tmp_path / "x.safetensors", tensors, **metadata)


def tensors_hash(path):
    """Return the SHA-256 of all bytes after the header."""
    raw = path.read_bytes()
    return hashlib.sha256(raw[8 + int.from_bytes(raw[:8], "little") :]).hexdigest()


def test_every_child_of_a_sweep_has_its_own_header(tmp_path):
    source = parent(tmp_path)
    words = ["--gamma", "0.5", "0.25", "0.75"]

    status = cli.main(["sweep", str(source), str(tmp_path / "out"), *words])

    assert status == 0
    children = sorted((tmp_path / "out").iterdir())
    assert len(children) == 3
    hashes = set()
    for child in children:
        tensors, header = read(child)
        assert {key: header.get(key) for key in KEPT} == KEPT
        assert not GONE.keys() & header.keys(), child
        assert header["sshs_model_hash"] == tensors_hash(child)
        assert header["modelspec.hash_sha256"] == "0x" + tensors_hash(child)
        assert json.loads(header["ss_network_args"]) == {"algo": "locon"}
        assert json.loads(header["ot_config"]) == {"learning_rate": 1e-4}
        ranks = {len(x) for name, x in tensors.items() if "lora_down" in name}
        dim = str(ranks.pop()) if len(ranks) == 1 else "Dynamic"
        alphas = {float(x) for name, x in tensors.items() if name.endswith("alpha")}
        assert header["ss_network_dim"] == dim
        assert {float(header["ss_network_alpha"])} == alphas
        hashes.add(header["sshs_model_hash"])
    assert len(hashes) == 3


def test_without_alphas_the_header_states_none(tmp_path):
    tensors = pair("q", 8, 6, 4, names="peft") | pair(
        "k", 7, 5, 4, names="peft", seed=3
    )
    source = write(
        tmp_path / "x.safetensors", tensors, ss_network_dim="4", ss_network_alpha="8"
    )
    found = para.load(source)
    child = para.compress(found, para.Gamma(0.375))  # 3 of 8.

    para.save(child, tmp_path / "y.safetensors", format="kohya")
    para.save(found, tmp_path / "z.safetensors", format="kohya")

    _, uneven = read(tmp_path / "y.safetensors")
    _, even = read(tmp_path / "z.safetensors")
    assert uneven["ss_network_dim"] == "Dynamic"
    assert "ss_network_alpha" not in uneven
    assert even["ss_network_dim"] == even["ss_network_alpha"] == "4"
    want = {name: 2 * x for name, x in single.comfy(source).items()}
    single.same(single.comfy(tmp_path / "z.safetensors"), want)


def test_a_file_without_a_header_gets_none_of_anothers(tmp_path):
    source = write(tmp_path / "x.safetensors", pair("q", 8, 6, 4, names="peft"))

    para.save(para.load(source), tmp_path / "y.safetensors", format="kohya")

    _, header = read(tmp_path / "y.safetensors")
    assert header.keys() == {"format", "para_jax"}


@pytest.mark.parametrize("key", KEPT)
def test_what_is_of_the_training_or_the_user_is_kept(key):
    assert headers.rule(key, KEPT[key]) == "kept"


def test_what_sd_scripts_says_of_a_training_is_kept():
    rules = {key: headers.rule(key, "1") for key in SD_SCRIPTS.split()}

    assert set(rules.values()) == {"kept"}, rules
    numbers = {"ss_network_dim", "ss_network_alpha", "ss_network_args"}
    assert {headers.rule(key, "1") for key in numbers} == {"recomputed"}


@pytest.mark.parametrize("key", GONE)
def test_what_is_of_the_parents_tensors_goes(key):
    if key == "unet.target_modules":  # Beside `unet.r`, a configuration.
        return
    assert headers.rule(key, GONE[key]) == "dropped"
