"""Three-way sentiment of sentences, by the pretrained encoder all-MiniLM-L6-v2."""

from train.data import arrays, sentiment
from train.models import bert, pretrained
from train.run import Run
from train.subjects.subject import Subject

TASKS = sentiment.TASKS

PEFT = {
    "base_model_name_or_path": "sentence-transformers/all-MiniLM-L6-v2",
    "modules_to_save": ["classifier"],
    "task_type": "SEQ_CLS",
}
"""What an adapter's file says of the model."""


def load(run: Run) -> Subject:
    """Returns what the run trains on.

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
    return Subject(
        model=bert.BertClassifier(config, len(sentiment.CLASSES)),
        base={"bert": pretrained.load(source, config, sha256=run.backbone)},
        data=arrays.load(run.task, source, run.max_length),
        peft=PEFT,
    )
