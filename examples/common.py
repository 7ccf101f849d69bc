"""What the examples share: their options, and reading samples."""

import argparse
import os

from datasets import Dataset

from hf_unlearn.data.loading import load_samples


def command_line(description: str | None, **defaults: str) -> argparse.Namespace:
    """The options of an example; `defaults` are its own model, dataset, splits and request on the Hub."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="Hub name or local folder of a trained model (%(default)s)")
    parser.add_argument("--dataset", help="Hub name (name@revision), local folder or parquet file (%(default)s)")
    parser.add_argument("--train", help="configuration:split that the model was trained on (%(default)s)")
    parser.add_argument("--unseen", help="configuration:split, folder or file that it never saw (%(default)s)")
    parser.add_argument("--forget", help="what to forget (%(default)s)")
    parser.add_argument("--method", default="nabla_tau", help="nabla_tau, orthograd, ... (%(default)s)")
    parser.add_argument("--output", default="out", help="folder for the model that has forgotten (%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="train a small model from scratch, on the files in --data")
    parser.add_argument("--data", help="folder of parquet files for --tiny")
    parser.add_argument("--retrained", action="store_true", help="with --tiny: also train without the forget dataset")
    parser.set_defaults(**defaults)
    options = parser.parse_args()
    if options.tiny and not options.data:
        parser.error("--tiny needs --data, the folder of the parquet files")
    return options


def load_train_unseen(options: argparse.Namespace) -> tuple[Dataset, Dataset]:
    """The samples that the model was trained on, and samples that it was not."""
    separate = os.path.exists(options.unseen)
    unseen = load_samples(options.unseen) if separate else load_samples(options.dataset, options.unseen)
    return load_samples(options.dataset, None if os.path.isfile(options.dataset) else options.train), unseen
