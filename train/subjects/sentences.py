"""Three-way sentiment of sentences, by the pretrained encoder all-MiniLM-L6-v2."""

from train.data import arrays, sentiment, tokens
from train.evaluation import evaluate
from train.models import bert, pretrained
from train.runs.settings import Run
from train.subjects.subject import Subject

TASKS = sentiment.TASKS

PEFT = {
    "base_model_name_or_path": "sentence-transformers/all-MiniLM-L6-v2",
    "modules_to_save": ["classifier"],
    "task_type": "SEQ_CLS",
}
"""The model's entries in an adapter's configuration."""


def load(run: Run) -> Subject:
    """Load the subject of a run.

    Raises:
      FileNotFoundError: if the pretrained encoder is not there.
      ValueError: if it is another one or shorter than the run's sentences.
    """
    source = pretrained.find_folder()
    config = bert.read_config(source)
    if run.max_length > config.max_position_embeddings:
        raise ValueError(
            f"max_length is {run.max_length}, and the encoder has "
            f"{config.max_position_embeddings} positions."
        )
    tokenizer = tokens.load_tokenizer(source, run.max_length)
    parts = {}
    for part in sentiment.PARTS:
        texts, labels = sentiment.load(run.task, part)
        parts[part] = tokens.encode(tokenizer, texts), labels
    # Two widths, since every width compiles the evaluation anew.
    widths = (run.max_length // 2, run.max_length)
    return Subject(
        model=bert.BertClassifier(config, len(sentiment.CLASSES)),
        base={"bert": pretrained.load(source, config, sha256=run.backbone)},
        data=arrays.Data(
            train=arrays.pack(*parts["train"], width=run.max_length),
            examples=len(parts["train"][0]),
        ),
        validation=evaluate.Part(tokens.batches(*parts["validation"], widths=widths)),
        tests={run.task: evaluate.Part(tokens.batches(*parts["test"], widths=widths))},
        peft=PEFT,
    )
