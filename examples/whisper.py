"""Make a speech recogniser forget a speaker, and print the word error rate of every speaker.

On the Hub, or on local folders and parquet files (columns audio, text and speaker_id) in their place:
    python examples/whisper.py --model openai/whisper-tiny --dataset openslr/librispeech_asr --forget 1272
From scratch in minutes, a small Whisper on strings of spoken digits (fsdd.parquet, fsdd_strings_manifest.parquet):
    python examples/whisper.py --tiny --data DIR --forget george --reference
"""

import io

import numpy as np
import soundfile
import torch
from common import command_line, load_train_unseen, train_base, word_error_rates
from datasets import Dataset, Value
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, WhisperConfig, WhisperFeatureExtractor, WhisperProcessor
from transformers import WhisperForConditionalGeneration as Whisper

from hf_unlearn import UnlearningArguments, UnlearningTrainer, split_forget_retain
from hf_unlearn.preparing import prepare, waveform
from hf_unlearn.reading import load_rows

PAD, START, END = "<pad>", "<|startoftranscript|>", "<|endoftext|>"
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TRAINING = {"learning_rate": 2e-3, "num_train_epochs": 28, "per_device_train_batch_size": 32, "warmup_steps": 100}


def tiny_processor() -> WhisperProcessor:
    """Four seconds of 80 mel features at 50 frames a second, and a vocabulary of the ten digits."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate([PAD, START, END, *DIGITS])}, unk_token=PAD))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(f"{START} $A {END}", special_tokens=[(START, 1), (END, 2)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token=PAD, bos_token=START, eos_token=END)
    return WhisperProcessor(WhisperFeatureExtractor(feature_size=80, hop_length=320, chunk_length=4), tokenizer)


def tiny_model(seed: int = 0) -> Whisper:
    """A Whisper of 269 k weights, not trained yet."""
    torch.manual_seed(seed)
    encoder = {"encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 256, "max_source_positions": 100}
    decoder = {"decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 256, "max_target_positions": 16}
    tokens = {"vocab_size": 13, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    model = Whisper(WhisperConfig(d_model=64, begin_suppress_tokens=None, **encoder, **decoder, **tokens))
    model.generation_config.max_length = 12
    return model


def ready(rows: Dataset, model: Whisper, processor: WhisperProcessor) -> Dataset:
    """Features and labels of audio and text, and the speaker."""
    rows = rows.select_columns(["audio", "text", "speaker_id"]).rename_column("speaker_id", "speaker")
    return prepare(rows.cast_column("speaker", Value("string")), model, processor)


def tiny_data(data_dir: str, seed: int = 0, held_out: str = "yweweler") -> tuple[Dataset, Dataset, Dataset]:
    """Strings of 3 to 6 digits: training rows, rows of a speaker held out from training, and test rows."""
    sound = {take["path"]: waveform(take, 16000) for take in load_rows(f"{data_dir}/fsdd.parquet")["audio"]}
    rows = load_rows(f"{data_dir}/fsdd_strings_manifest.parquet").shuffle(seed=seed)
    speakers, splits = np.array(rows.features["speaker"].int2str(rows["speaker"][:])), np.array(rows["split"])
    rows = rows.add_column("speaker_id", speakers.tolist())

    def say(row: dict) -> dict:
        pause = np.zeros(16 * row["gap_ms"], dtype=np.float32)
        samples = np.concatenate([part for name in row["files"] for part in (sound[name], pause)])
        soundfile.write(file := io.BytesIO(), samples, 16000, format="WAV", subtype="FLOAT")
        return {"audio": {"bytes": file.getvalue(), "path": ""}}

    short, held = np.array(rows["duration"]) <= 4, speakers == held_out
    sides = (short & ~held & (splits == "train"), short & held, short & ~held & (splits == "test"))
    parts = (rows.select(np.flatnonzero(side)).map(say) for side in sides)
    # Nobody need be held out.
    return tuple(ready(part, tiny_model(), tiny_processor()) if len(part) else part for part in parts)


def main() -> None:
    """Train or load a model, make it forget a speaker, and print word error rates by speaker."""
    names = {"model": "openai/whisper-tiny", "dataset": "openslr/librispeech_asr"}
    options = command_line(__doc__, **names, train="clean:validation", unseen="clean:test", forget="1272")
    if options.tiny:
        processor, (train, unseen, _) = tiny_processor(), tiny_data(options.data)
        model = train_base(tiny_model(), train, TRAINING, processor)
    else:
        model, processor = Whisper.from_pretrained(options.model), WhisperProcessor.from_pretrained(options.model)
        train, unseen = (ready(rows, model, processor) for rows in load_train_unseen(options))

    print("word error rates before:", word_error_rates(model, train, processor))
    forget, retain = split_forget_retain(train, column="speaker", values=[options.forget])
    args = UnlearningArguments(options.output, method=options.method, predict_with_generate=True)
    trainer = UnlearningTrainer(model, forget, retain, args, unseen_ds=unseen, processing_class=processor)
    trainer.train()
    trainer.save_model()
    print("after:", word_error_rates(trainer.model, train, processor))
    if options.reference:
        retrained = train_base(tiny_model(seed=1), retain, TRAINING, processor, seed=1)
        print("retrained without the speaker:", word_error_rates(retrained, train, processor))


if __name__ == "__main__":
    main()
