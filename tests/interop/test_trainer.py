"""Compare the trainer's steps with PyTorch, transformers and PEFT."""

import copy

import jax
import numpy as np
import peft
import pytest
import torch
import transformers

from train.data import arrays
from train.methods import lora
from train.models import bert, checkpoint, pretrained
from train.runs import outcome, settings as runs, trainer
from train.subjects.sentences import PEFT

RANK, SCALE = 3, 2.0
LENGTHS = (3, 7, 5, 8, 4, 6, 8, 3, 5, 7, 4)
SIZES = {
    "vocab_size": 29,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 14,
    "max_position_embeddings": 10,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}
RUN = runs.Run(
    method=lora.Lora(rank=RANK, scale=SCALE),
    seeds=(3,),
    learning_rates=(0.02,),
    steps=7,
    batch=4,
    warmup=0.4,
    weight_decay=0.1,
    clip=0.5,
)


@pytest.fixture(scope="module")
def base():
    """Return transformers' classifier, without dropout."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        **SIZES,
        num_labels=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.4,
    )
    return transformers.BertForSequenceClassification(config)


@pytest.fixture(scope="module")
def sentences():
    """Return token ids of different lengths, and labels."""
    generator = np.random.default_rng(0)
    ids = [generator.integers(1, SIZES["vocab_size"], size=x).tolist() for x in LENGTHS]
    return ids, generator.integers(0, 3, size=len(ids)).tolist()


@pytest.fixture(scope="module")
def given(base, sentences, tmp_path_factory):
    """Return the inputs of our run."""
    config = bert.Config(**SIZES)
    folder = tmp_path_factory.mktemp("base")
    base.bert.save_pretrained(folder)
    model = bert.BertClassifier(config, 3)
    params = {"bert": checkpoint.load(folder, pretrained.leaves(config))}
    data = arrays.Data(
        train=arrays.pack(*sentences, width=max(LENGTHS)),
        examples=len(LENGTHS),
    )
    return runs.inputs(RUN, model, params, data)


def as_peft(base, learner):
    """Return PEFT's model with the factors and the classifier of our first member."""
    config = peft.LoraConfig(
        task_type="SEQ_CLS",
        r=RANK,
        lora_alpha=SCALE * RANK,
        target_modules=r".*encoder\.layer\..*(query|key|value|dense)",
        lora_dropout=0.0,
    )
    model = peft.get_peft_model(copy.deepcopy(base), config)
    theirs = dict(model.named_parameters())
    for path, x in learner.state.params.items():
        name = f"base_model.model.{path.replace('/', '.')}"
        put(theirs[f"{name}.lora_A.default.weight"], x["a"][0].T)
        put(theirs[f"{name}.lora_B.default.weight"], x["b"][0].T)
    head = "base_model.model.classifier.modules_to_save.default"
    put(theirs[f"{head}.weight"], learner.head["kernel"][0].T)
    put(theirs[f"{head}.bias"], learner.head["bias"][0])
    return model


def put(parameter, value):
    assert parameter.requires_grad
    assert parameter.shape == value.shape
    with torch.no_grad():
        parameter.copy_(torch.tensor(np.asarray(value)))


def torch_steps(model, sentences, rows):
    """Train as PyTorch's users do; return losses, norms and accuracies."""
    ids, labels = sentences
    trained = [x for x in model.parameters() if x.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1.0, weight_decay=RUN.weight_decay)
    rise = round(RUN.warmup * RUN.steps)
    seen = []
    for step, batch in enumerate(rows):
        up, down = (step + 1) / rise, (RUN.steps - step) / (RUN.steps - rise)
        optimizer.param_groups[0]["lr"] = RUN.learning_rates[0] * min(up, down)
        width = max(len(ids[x]) for x in batch)
        padded = [ids[x] + [0] * (width - len(ids[x])) for x in batch]
        mask = [[1] * len(ids[x]) + [0] * (width - len(ids[x])) for x in batch]
        wanted = torch.tensor([labels[x] for x in batch])
        out = model(
            input_ids=torch.tensor(padded),
            attention_mask=torch.tensor(mask),
            labels=wanted,
        )
        optimizer.zero_grad()
        out.loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, RUN.clip)
        optimizer.step()
        right = (out.logits.argmax(-1) == wanted).float().mean()
        seen.append([x.item() for x in (out.loss, right, norm)])
    return np.array(seen).T


@pytest.mark.slow
def test_losses_and_factors_are_those_of_peft(base, sentences, given):
    begun = jax.device_get(runs.begin(given))
    (progress,) = runs.advance(given, runs.begin(given))
    model = as_peft(base, begun)

    loss, accuracy, norm = torch_steps(model, sentences, given.rows[0])

    got = jax.device_get(progress.metrics)
    np.testing.assert_allclose(got.loss[0], loss, rtol=1e-4)
    np.testing.assert_allclose(got.accuracy[0], accuracy)
    np.testing.assert_allclose(got.norm[0], norm, rtol=1e-3)
    assert (norm > RUN.clip).any()  # Some are clipped,
    assert len({*np.round(loss, 3)}) == RUN.steps  # and all of them learn.
    assert len({*given.rows[0].flat}) == len(LENGTHS)
    theirs = dict(model.named_parameters())
    after = jax.device_get(progress.learners)
    for path, x in after.state.params.items():
        name = f"base_model.model.{path.replace('/', '.')}.lora"
        for factor, other in (("a", "A"), ("b", "B")):
            want = theirs[f"{name}_{other}.default.weight"].detach().numpy()
            np.testing.assert_allclose(x[factor][0].T, want, atol=2e-4)
    want = theirs["base_model.model.classifier.modules_to_save.default.weight"]
    np.testing.assert_allclose(
        after.head["kernel"][0].T, want.detach().numpy(), atol=2e-4
    )


def test_peft_loads_what_a_run_saves(base, given, sentences, tmp_path):
    (progress,) = runs.advance(given, runs.begin(given))
    (member,) = outcome.trained(given, progress.learners, [None], PEFT)
    outcome.save([member], tmp_path)

    folder = tmp_path / "seed-3-rate-0.02"
    model = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(folder)).eval()

    ids = np.array([x for x in sentences[0] if len(x) == 8], np.int32)
    assert len(ids) == 2
    with torch.no_grad():
        want = model(torch.tensor(ids), attention_mask=torch.ones(ids.shape)).logits
    head = pretrained.classifier(member.adapter.extra)
    variables = trainer.variables(
        given.trainer.model, given.base, head, member.adapter.adapters
    )
    got = given.trainer.model.apply(variables, bert.Tokens(ids, ids > 0))
    np.testing.assert_allclose(got, want.numpy(), atol=1e-5)
    assert np.ptp(got) > 0.1
