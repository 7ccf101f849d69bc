"""Make an audio classifier forget a class: here, a spoken word.

On the Hub, or on local folders and parquet files (columns audio and label) in their place:
    python examples/audio_classification.py --model superb/hubert-base-superb-ks --forget yes
From scratch in minutes, a small audio spectrogram transformer on spoken digits (fsdd.parquet in DIR):
    python examples/audio_classification.py --tiny --data DIR --forget seven --reference
"""

import torch
from common import command_line, load_train_unseen, train_base
from datasets import Dataset
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
)

from hf_unlearn import UnlearningArguments, UnlearningTrainer, split_forget_retain
from hf_unlearn.preparing import prepare
from hf_unlearn.reading import load_rows

TRAINING = {"learning_rate": 1e-3, "num_train_epochs": 16, "per_device_train_batch_size": 32, "warmup_steps": 100}


def tiny_extractor() -> ASTFeatureExtractor:
    """One second of 64 mel bands at 100 frames a second."""
    return ASTFeatureExtractor(num_mel_bins=64, max_length=96)


def tiny_model(seed: int = 0) -> ASTForAudioClassification:
    """An audio spectrogram transformer of 0.3 M weights, not trained yet."""
    torch.manual_seed(seed)
    patches = {"num_mel_bins": 64, "max_length": 96, "patch_size": 16, "frequency_stride": 16, "time_stride": 8}
    sizes = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4}
    return ASTForAudioClassification(ASTConfig(num_labels=10, **patches, **sizes))


def tiny_data(data_dir: str, seed: int = 0) -> tuple[Dataset, Dataset, Dataset]:
    """2,000 of the 3,000 takes to train on, 500 for the forgetting target and 500 for testing.

    A good model errs on a few of a hundred: fewer than some hundred takes are no target, and no test.
    """
    rows = load_rows(f"{data_dir}/fsdd.parquet").shuffle(seed=seed)
    rows = prepare(rows.select_columns(["audio", "label", "speaker"]), tiny_model(), tiny_extractor())
    return rows.select(range(2000)), rows.select(range(2000, 2500)), rows.select(range(2500, 3000))


def main() -> None:
    """Train or load a model, make it forget a word, and print the figures."""
    names = {"model": "superb/hubert-base-superb-ks", "dataset": "regisss/superb_ks"}
    options = command_line(__doc__, **names, train=":train", unseen=":validation", forget="0")
    if options.tiny:
        extractor, (train, unseen, _) = tiny_extractor(), tiny_data(options.data)
        model = train_base(tiny_model(), train, TRAINING, extractor)
    else:
        model = AutoModelForAudioClassification.from_pretrained(options.model)
        extractor = AutoFeatureExtractor.from_pretrained(options.model)
        train, unseen = (prepare(rows, model, extractor) for rows in load_train_unseen(options))

    label = train.features["label"].str2int(options.forget)
    forget, retain = split_forget_retain(train, column="label", values=[label])
    args = UnlearningArguments(options.output, method=options.method)
    trainer = UnlearningTrainer(model, forget, retain, args, unseen_ds=unseen, processing_class=extractor)
    trainer.train()
    trainer.save_model()
    if options.reference:
        retrained = train_base(tiny_model(seed=1), retain, TRAINING, extractor, seed=1)
        print("retrained without the forget set:")
        print(UnlearningTrainer(retrained, forget, retain, args, unseen_ds=unseen).evaluate())


if __name__ == "__main__":
    main()
