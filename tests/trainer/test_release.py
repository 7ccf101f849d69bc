"""What leaves the machine from a folder: a fixed list of files, as the run wrote them; records, names with markup."""

import functools
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import transformers as tf
import yaml
from hub_server import TOKEN
from markdown_it import MarkdownIt
from peft import LoraConfig, get_peft_model
from test_push import build, tokenizer

from hf_unlearn.hub.model_card import CardFacts, as_text, model_card
from hf_unlearn.hub.record import verify
from hf_unlearn.hub.record_schema import MAX_BYTES
from hf_unlearn.hub.release import _shards, check_release
from hf_unlearn.hub.upload import push_folder
from hf_unlearn.report.audit_report import AuditReport

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
SECRET = b"the forgotten samples themselves"
RELEASE = {"README.md", "audit.json", "audit.html", "unlearning.json"}


def speech_processor():
    extractor = tf.WhisperFeatureExtractor(feature_size=8)
    words = tf.WhisperTokenizer(vocab={"<|endoftext|>": 0, "a": 1, "b": 2}, merges=[])
    return tf.WhisperProcessor(extractor, words)


def own_adapter():
    return get_peft_model(tiny.make("bert")[0], LoraConfig(target_modules=["query", "value"]))


def shards():
    model = tiny.make("llama")[0]
    model.save_pretrained = functools.partial(model.save_pretrained, max_shard_size="8KB")
    return model


@pytest.fixture(scope="module")
def releases(tmp_path_factory):
    """Releases of runs, in folders: sharded weights and a tokenizer, a speech recogniser, a user's adapter."""
    folder = tmp_path_factory.mktemp("releases")
    parts = {
        "llama": (shards(), tokenizer()),
        "whisper": (None, speech_processor()),
        "bert": (own_adapter(), tokenizer()),
    }
    for name, (model, processor) in parts.items():
        trainer = build(name, folder / name, model=model, method="grad_diff")
        trainer.processing_class = processor
        trainer.train()
        trainer.audit(resamples=20)
        trainer.save_release()
    return folder


@pytest.fixture
def out(releases, tmp_path):
    return Path(shutil.copytree(releases / "bert", tmp_path / "out"))


def written_by(processor, folder):
    processor.save_pretrained(folder)
    return {path.name for path in Path(folder).iterdir()}


# ---- what is sent ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "whisper", "bert"])
def test_what_the_run_has_written_is_sent_and_nothing_else(name, releases, hub, tmp_path, caplog):
    folder = Path(shutil.copytree(releases / name, tmp_path / "out"))
    present = {path.name for path in folder.iterdir()}
    if name == "llama":
        assert len([*folder.glob("model-0000*-of-*.safetensors")]) > 3 and "model.safetensors" not in present
    if name == "whisper":
        assert written_by(speech_processor(), tmp_path / "processor") <= present
    record = json.loads((folder / "unlearning.json").read_text())
    assert record["files"].keys() == present - {"unlearning.json"} and present >= RELEASE
    assert not any(
        digest in (folder / "README.md").read_text() for digest in (*record["files"].values(), record["salt"])
    )
    # Names of other releases, of states, of notes; and names that only look like those of a release.
    around = [
        "model-00009-of-00009.safetensors", "vocab.txt", "optimizer.pt", "training_args.bin", "notes.txt", ".env",
        "\uff32EADME.md", "config.json ", "config.json\n", "conf\u0131g.json", "sub/config.json",
        "checkpoint-1/model.safetensors",
    ]  # fmt: skip
    for path in around:
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(SECRET)
    (folder / "merges.txt").symlink_to(releases)
    before = len(hub.sent())
    push_folder(folder, f"me/release-{name}", token=TOKEN)
    files = {path: data for path, data in hub.repos[f"me/release-{name}"].files().items() if path != ".gitattributes"}
    assert files == {path: (folder / path).read_bytes() for path in present}
    assert SECRET not in hub.sent()[before:]
    assert "Not pushed, as no files of the release: " in caplog.text and "checkpoint-1/" in caplog.text
    assert "'config.json\\n'" in caplog.text and "config.json\n" not in caplog.text
    assert verify(folder / "unlearning.json", folder).matches


def test_files_of_an_earlier_run_are_not_of_this_one(tmp_path, caplog):
    out = tmp_path / "run"
    out.mkdir()
    (out / "vocab.txt").write_bytes(SECRET)
    (out / "model-00001-of-00001.safetensors").write_bytes(SECRET)
    (tmp_path / "elsewhere").write_text("mine")
    (out / "README.md").symlink_to(tmp_path / "elsewhere")
    trainer = build("bert", tmp_path / "own", method="grad_diff")
    trainer.train()
    trainer.audit(resamples=20)
    trainer.save_release(str(out))
    assert "vocab.txt" not in check_release(out) and (out / "vocab.txt").read_bytes() == SECRET
    assert not (out / "model-00001-of-00001.safetensors").exists()  # a loader might take it for the model
    assert (tmp_path / "elsewhere").read_text() == "mine" and not (out / "README.md").is_symlink()
    assert not [*out.glob(".saving*")]


# ---- what is refused ---------------------------------------------------------------------------------------------


def replace_by(make):
    def change(out, name):
        aside = shutil.move(out / name, out.parent / f"aside-{name}")
        make(aside, out / name)

    return change


LINKS = {"symlink": os.symlink, "hard link": os.link, "folder": lambda source, target: target.mkdir()}


@pytest.mark.parametrize("name", ["README.md", "adapter_model.safetensors", "tokenizer.json", "unlearning.json"])
@pytest.mark.parametrize("kind", LINKS)
def test_links_are_refused_by_name(kind, name, out):
    replace_by(LINKS[kind])(out, name)
    if (kind, name) == ("folder", "unlearning.json"):
        expected = "has no unlearning.json"
    else:
        expected = f"{name} in .* is (a link|no file|a file that another name leads to)"
    with pytest.raises(ValueError, match=rf"^folder: .*{expected}"):
        check_release(out)


@pytest.mark.parametrize("content", ["{}", "[]", "nope", '{"weight_map": 3}'])
def test_an_index_of_weights_that_is_none(content, tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(content)
    with pytest.raises(ValueError, match=r"^folder: model.safetensors.index.json in .* is no index of weights; it"):
        _shards(index)


@pytest.mark.parametrize(
    "name", ["README.md", "audit.json", "audit.html", "adapter_config.json", "tokenizer.json", "tokenizer_config.json"]
)
def test_every_file_is_as_the_run_wrote_it(name, out):
    (out / name).write_bytes((out / name).read_bytes() + b" ")
    with pytest.raises(ValueError, match=rf"^folder: {name} in .* does not match unlearning.json; "):
        check_release(out)
    assert str(verify(out / "unlearning.json", out)).endswith(f"files: {name} not as the run wrote them")
    (out / name).unlink()
    with pytest.raises(ValueError, match=rf"^folder: .* lacks {name} of its unlearning.json"):
        check_release(out)


def set_files(names):
    return lambda record: record["files"].update(dict.fromkeys(names, "0" * 64))


def set_field(path, value):
    *parents, last = path.split(".")
    return lambda record: functools.reduce(lambda content, key: content[key], parents, record).update({last: value})


BAD_RECORDS = {
    **{
        f"file {name!r}": (set_files([name]), "files is ")
        for name in (
            "/etc/passwd", "../../secret.txt", "..\\secret.txt", "sub/config.json", "config.json\0", "", ".", "..",
            "notes.txt", "training_args.bin", "conf\u0131g.json", "Config.JSON", "~/x", "C:\\x",
            "model-1-of-1.safetensors",
            "model-\u0660\u0660\u0660\u0660\u0661-of-00002.safetensors", "optimizer.pt", "unlearning.json",
            "model.safetensors\n",
        )
    },
    "old audit.files": (lambda record: record["audit"].update(files={"/etc/passwd": "0" * 64}), None),
    "hash of another kind": (set_field("files", {"config.json": "0" * 63}), "files is "),
    "number for a hash": (set_field("files", {"config.json": 0}), "files is "),
    "list of files": (set_field("files", ["config.json"]), "files is "),
    "no files": (lambda record: record.pop("files"), "has no files"),
    "no card": (lambda record: record["files"].pop("README.md"), None),
    "schema 2": (set_field("schema_version", 2), "schema_version is 2, expected 3"),
    "schema true": (set_field("schema_version", True), "schema_version is True"),
    "kind": (set_field("weights.kind", "../model"), "weights.kind is '../model', expected model or adapter"),
    "another kind": (set_field("weights.kind", "model"), None),
    "weights": (set_field("weights", "model"), "weights is 'model', expected an object"),
    "after": (set_field("weights.after", "0"), "weights.after is '0', expected 64"),
    "salt": (set_field("salt", "xyz"), "salt is 'xyz', expected 32"),
    "hashes": (set_field("sample_hashes", "0" * 32), "sample_hashes is "),
    "count": (set_field("request.samples", 10**9), "has 7 sample_hashes for 1000000000 samples"),
    "columns": (set_field("request.columns", [1]), "request.columns is "),
    "request": (set_field("request", []), "request is "),
    "id": (set_field("request.id", {"a": "b"}), "request.id is "),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_RECORDS)
def test_a_record_is_data(case, out):
    change, message = BAD_RECORDS[case]
    record = json.loads((out / "unlearning.json").read_text())
    change(record)
    (out / "unlearning.json").write_text(json.dumps(record))
    if case == "old audit.files":
        assert "/etc/passwd" not in check_release(out)
        return
    with pytest.raises(ValueError, match=r"^(record|folder): ") as error:
        check_release(out)
    line = str(error.value)
    assert "\n" not in line and line.isascii() and len(line) < 400
    assert message is None or line.startswith(f"record: {message}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON (UnicodeDecodeError"),
        (b"[" * 200_000, "is not valid JSON (RecursionError"),
        (b'{"a": NaN}', "is not valid JSON (ValueError: NaN"),
        (b'{"a": 1, "a": 2}', "is not valid JSON (ValueError: a name comes twice"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not valid JSON (ValueError"),
        (b"{}", "record: has no schema_version"),
    ],
)
def test_files_that_are_no_record(content, message, out):
    (out / "unlearning.json").write_bytes(content)
    for check in (lambda: check_release(out), lambda: verify(out / "unlearning.json", out)):
        with pytest.raises(ValueError, match=r"^record: ") as error:
            check()
        assert message in str(error.value) and "\n" not in str(error.value)
    (out / "unlearning.json").write_bytes(b"[]")
    with pytest.raises(TypeError, match=r"^record: expected the content of an unlearning.json, got list"):
        check_release(out)


def test_a_record_that_would_fill_the_memory(out):
    with (out / "unlearning.json").open("wb") as file:
        file.truncate(MAX_BYTES + 1)  # sparse
    with pytest.raises(ValueError, match=r"^record: .* has 268435457 bytes, more than"):
        check_release(out)


# ---- names with markup -------------------------------------------------------------------------------------------

MARKUP = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "[click](https://evil.example)",
    "![seen](https://evil.example/pixel.png)", "https://evil.example", "www.evil.example", "a | b | c",
    "`code` **bold**",
    "# heading", "- list", "1. list", "> quote", "---\nlicense: mit\n---", "x\n\n# Not audited\n\n<b>", "\\[a](b)",
    "&lt;",
    "{{ 7 * 7 }} {% raw %}", "$x$ ~~y~~", "yes: no", "'\"", "!!python/object:os.system",
]  # fmt: skip


def facts(text):
    verdict = {"level": "unclear", "sentence": text}
    return CardFacts(
        name=text, kind="merged", architecture="X", base=text, base_revision=text,
        method={"name": "m", "title": text, "paper": text}, settings={"forget_target": text}, request="samples",
        counts={"forget": 1, "retain": 1}, forget_request=text, report=AuditReport({}, verdict, {}, notes=[text]),
        metadata={"license": text, "language": text, "tags": [text]},
    )  # fmt: skip


def test_the_card_says_of_a_stream_that_it_is_one():
    assert "with 1 samples to retain." in model_card(facts("m"))
    assert "with a stream of samples to retain." in model_card(replace(facts("m"), counts={"forget": 1}))


@pytest.mark.parametrize("text", MARKUP)
def test_the_card_shows_names_as_they_are(text):
    card = model_card(facts(text))
    _, metadata, body = card.split("---\n", 2)
    data, line = yaml.safe_load(metadata), " ".join(text.split())
    assert (data["license"], data["language"], data["tags"][0], data["base_model"]) == (line,) * 4
    assert data["model-index"][0]["name"] == line if "model-index" in data else data.keys() >= {"library_name"}
    markdown = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    plain = markdown.parse(model_card(facts("plain")).split("---\n", 2)[2])
    tokens = markdown.parse(body)
    assert [token.type for token in tokens] == [token.type for token in plain] or "\n" in text
    inline = [child for token in tokens for child in token.children or ()]
    assert not {"html_inline", "html_block", "image"} & {token.type for token in [*inline, *tokens]}
    links = {token.attrs["href"] for token in inline if token.type == "link_open"}
    assert links <= {"unlearning.json", "audit.html", "audit.json", f"/{text}"}
    assert not {"https://evil", "www.evil"} & {
        *re.findall(r"https://evil|www\.evil", re.sub(r"`.*?`|\(/.*?\)", "", body))
    }
    shown = "".join(child.content for child in inline if child.type in ("text", "text_special"))
    assert line in shown


def test_text_of_markdown_is_one_line():
    assert as_text("a\n# b\r\n- c") == r"a \# b - c"


def test_reports_and_labels_with_markup(tmp_path):
    from test_push import sets

    nasty = "<script>alert('x')</script>[a](javascript:b)"
    model = tiny.make("bert")[0]
    model.config.id2label = {0: nasty, 1: "b", 2: "c"}
    model.config.name_or_path = nasty
    trainer = build("bert", tmp_path / "run", model=model, method="grad_diff")
    trainer.train()
    forget, *_ = sets("bert")
    trainer.forget_ds = forget.add_column("who", [nasty] * len(forget))
    trainer.retain_ds = trainer.retain_ds.add_column("who", ["b"] * len(trainer.retain_ds))
    trainer.unseen_ds = trainer.unseen_ds.add_column("who", ["c"] * len(trainer.unseen_ds))
    trainer.audit(group_column="who", resamples=20)
    trainer.save_release(request_id=nasty, forget_request=nasty, license=nasty)
    html = (tmp_path / "run" / "audit.html").read_text()
    assert "<script" not in html and "&lt;script" in html
    card = (tmp_path / "run" / "README.md").read_text().split("---\n", 2)[2]
    assert "<script" not in card.replace(r"\<script", "")
    check_release(tmp_path / "run")
