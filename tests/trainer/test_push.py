"""Pushing to a Hub on loopback: what arrives, what does not, and what happens when something goes wrong."""

import json
import os
import pickle
import re
import resource
import subprocess
import sys
import tempfile
import textwrap

import datasets
import pytest
import tiny
import torch
import transformers as tf
from hub_server import TOKEN
from huggingface_hub import ModelCard, constants
from peft import PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers

from hf_unlearn import UnlearningArguments, UnlearningTrainer, audit
from hf_unlearn.hub.errors import PushError
from hf_unlearn.hub.record import verify
from hf_unlearn.hub.release import anonymise_groups, check_release
from hf_unlearn.models.adapters import add_adapter, merged
from hf_unlearn.report.audit_report import AuditReport

# huggingface_hub streams files in a way that its own HTTP client has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
CLAIMS = {"README.md", "audit.html", "audit.json", "unlearning.json"}
MODEL = {"config.json", "model.safetensors"}
PROMISED = {
    "vit": CLAIMS | MODEL | {"preprocessor_config.json"},
    "bert": CLAIMS | MODEL | {"tokenizer.json", "tokenizer_config.json"},
    "llama": CLAIMS | MODEL | {"generation_config.json", "tokenizer.json", "tokenizer_config.json"},
    "whisper": CLAIMS | MODEL | {"generation_config.json", "preprocessor_config.json"},
}
# Below eight samples there is no membership inference, which takes longer than all the rest.
ROWS = {"vit": 12, "bert": 7, "llama": 7, "whisper": 7}
METHODS = {"vit": "orthograd", "bert": "nabla_tau", "llama": "orthograd", "whisper": "grad_diff"}
SAID = [f"Person {i} of Elm Street {i} said {word}" for i, word in enumerate(["yes", "no", "never"])]
PEOPLE = ["Ada Winter", "Bo Summer", "Cy Autumn"]


def tokenizer():
    words = {
        word: i
        for i, word in enumerate(["[PAD]", "[BOS]", "[EOS]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz0123456789"])
    }
    made = Tokenizer(models.WordLevel(words, unk_token="[MASK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return tf.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", eos_token="[EOS]")


def processor(name):
    if name == "whisper":
        return tf.WhisperFeatureExtractor(feature_size=8)
    return tf.ViTImageProcessorPil(size={"height": 32, "width": 32}) if name == "vit" else tokenizer()


def sets(name, forget=None, retain=20):
    """Samples with what should not get out: texts, paths, names of people. As many unseen as forget samples."""
    forget = unseen = forget or ROWS[name]
    samples = tiny.samples(tiny.make(name)[1](forget + retain + unseen, seed=1))
    samples = [
        {key: value.tolist() if torch.is_tensor(value) else value for key, value in sample.items()}
        for sample in samples
    ]
    hidden = [
        {"text": SAID[i % 3], "path": f"/archive/elm-street/{i}.wav", "person": PEOPLE[i % 3]}
        for i in range(len(samples))
    ]
    data = datasets.Dataset.from_list([sample | more for sample, more in zip(samples, hidden, strict=True)])
    return [
        data.select(range(*ends))
        for ends in ((0, forget), (forget, forget + retain), (forget + retain, forget + retain + unseen))
    ]


def build(name, folder, samples=7, model=None, **settings):
    forget, retain, unseen = sets(name, samples)
    defaults = {
        "max_steps": 2, "logging_steps": 1, "per_device_train_batch_size": 4, "method": METHODS[name],
        "report_to": "none", "disable_tqdm": True, "use_cpu": True, "hub_token": TOKEN,
    }  # fmt: skip
    args = UnlearningArguments(str(folder), **defaults | settings)
    return UnlearningTrainer(
        tiny.make(name)[0] if model is None else model, forget, retain, args,
        unseen_ds=unseen, processing_class=processor(name),
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs(hub, tmp_path_factory):
    """Every model, run, audited by person, and pushed: name to (trainer, commit)."""
    found = {}
    for name in PROMISED:
        trainer = build(name, tmp_path_factory.mktemp(name), ROWS[name])
        trainer.train()
        forget, retain, unseen = sets(name)
        report = audit(
            trainer.model, forget_ds=forget, retain_ds=retain, unseen_ds=unseen, group_column="person", resamples=20,
            training=trainer.state.log_history,
        )  # fmt: skip
        assert {entry["group"] for entry in report.breakdown} == set(PEOPLE)
        commit = trainer.push_to_hub(
            f"me/{name}", audit=report, forget_request="All samples of\nrequest 7.", request_id="7"
        )
        trainer.audit_report = report
        found[name] = trainer, commit
    return found


@pytest.fixture
def vit(runs):
    return runs["vit"][0]


# ---- what arrives ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROMISED)
def test_exactly_the_promised_files_arrive_in_one_commit(runs, hub, name):
    repo = hub.repos[f"me/{name}"]
    assert repo.files().keys() - {".gitattributes"} == PROMISED[name]
    assert [each["message"] for each in repo.commits.values()] == ["initial commit", "End of unlearning"]
    assert runs[name][1].oid == repo.refs["main"]
    assert repo.private


def test_nothing_of_the_forget_set_leaves_the_machine(runs, hub):
    sent = hub.sent()
    assert b"safetensors" in sent and b"request 7." in sent  # the search can find something
    secrets = [*SAID, *PEOPLE, "elm-street", TOKEN, str(runs["vit"][0].args.output_dir)]
    for name in PROMISED:
        for sample in sets(name)[0].select(range(4)):
            ids = sample.get("input_ids") or sample.get("labels")
            if isinstance(ids, list):
                secrets += [str(ids), json.dumps(ids, separators=(",", ":")), bytes(torch.tensor(ids).numpy())]
            for column in ("pixel_values", "input_features"):
                if column in sample:
                    values = torch.tensor(sample[column]).flatten()[:8]
                    secrets += [str(values.tolist())[1:-1], bytes(values.numpy())]
    for secret in secrets:
        assert (secret.encode() if isinstance(secret, str) else secret) not in sent, secret


LOADER = """
import sys, torch
sys.modules["hf_unlearn"] = None  # an import of it fails
import transformers as tf
inputs = torch.load(sys.argv[1])
found = {}
for name, (cls, batch) in inputs.items():
    model = getattr(tf, cls).from_pretrained(f"me/{name}").eval()
    with torch.no_grad():
        found[name] = model(**batch).logits
for name in ("bert", "llama"):
    assert tf.AutoTokenizer.from_pretrained(f"me/{name}")("a b c")["input_ids"] == [4, 5, 6]
for name in ("vit", "whisper"):
    (tf.AutoFeatureExtractor if name == "whisper" else tf.AutoImageProcessor).from_pretrained(f"me/{name}")
torch.save(found, sys.argv[2])
"""


def test_pushed_models_work_where_this_library_is_not(runs, hub, tmp_path):
    batches = {name: tiny.make(name)[1](5, seed=9) for name in PROMISED}
    classes = {name: type(tiny.make(name)[0]).__name__ for name in PROMISED}
    torch.save({name: (classes[name], batch) for name, batch in batches.items()}, tmp_path / "in.pt")
    kept = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "PYTHONPATH")}
    env = kept | {
        "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LOADER), "in.pt", "out.pt"],
        cwd=tmp_path, env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "out.pt")
    for name, (trainer, _) in runs.items():
        model = merged(trainer.model) if isinstance(trainer.model, PeftModel) else trainer.model
        with torch.no_grad():
            assert torch.equal(found[name], model.eval()(**batches[name]).logits), name
            assert not torch.equal(found[name], tiny.make(name)[0].eval()(**batches[name]).logits), name


def test_card_carries_the_audit_and_the_request(runs, hub):
    files = hub.repos["me/vit"].files()
    card = ModelCard(files["README.md"].decode())
    card.validate()  # asks the server
    report = AuditReport.from_dict(json.loads(files["audit.json"]))
    found = card.data.to_dict()
    assert found["tags"] == ["hf_unlearn", "machine-unlearning", "orthograd"]
    assert (found["library_name"], found["pipeline_tag"]) == ("transformers", "image-classification")
    results = {each.metric_name.replace(" ", "_"): each for each in card.data.eval_results}
    assert results.keys() == {name for name in report.metrics if not name.endswith(("_low", "_high"))}
    assert results["forget_accuracy"].metric_value == pytest.approx(report.metrics["forget_accuracy"], abs=1e-6)
    assert results["forget_accuracy"].dataset_name == "Forget dataset"
    assert results["mia_loss_auc"].dataset_name == "Forget against unseen dataset"
    for text in (
        report.verdict["sentence"], "> All samples of\n> request 7.",
        "12 samples (single samples), with 20 samples to retain",
        "| `method` | orthograd |", "Shamsian et al. 2025, arXiv 2503.02312", "no proof of deletion",
        f"torch {torch.__version__}",
    ):  # fmt: skip
        assert text in card.text


def test_published_audit_numbers_people_and_keeps_labels(runs, hub):
    for path in ("audit.json", "audit.html"):
        page = hub.repos["me/whisper"].files()[path].decode()
        assert "group 1" in page and not any(name in page for name in PEOPLE)
    entries = [
        {"group": group, "dataset": where, "samples": samples, "audited": 0.5}
        for group, where, samples in (("cat", "forget", 3), ("Ada Winter", "forget", 2), ("Ada Winter", "unseen", 9))
    ]
    report = AuditReport({}, {"level": "unclear", "sentence": ""}, {}, breakdown=entries)
    shown = anonymise_groups(report, {0: "cat"}).breakdown
    assert [(each["group"], each["samples"]) for each in shown] == [("cat", 3), ("group 2", 2), ("group 2", 9)]
    assert report.breakdown[1]["group"] == "Ada Winter"  # the user's own report stays


def test_base_model_is_named_only_when_it_is_on_the_hub(runs, hub, vit, monkeypatch, tmp_path):
    config = vit.model.get_base_model().config
    monkeypatch.setattr(config, "_name_or_path", "google/vit-base")
    monkeypatch.setattr(config, "_commit_hash", "abc123", raising=False)
    vit.push_to_hub("me/named", license="mit", tags="digits")
    card = ModelCard(hub.repos["me/named"].files()["README.md"].decode())
    assert (card.data.base_model, card.data.license, card.data.tags[0]) == ("google/vit-base", "mit", "digits")
    assert "at revision `abc123`" in card.text
    monkeypatch.setattr(config, "_name_or_path", str(tmp_path))
    vit.push_to_hub("me/named")
    card = hub.repos["me/named"].files()["README.md"].decode()
    assert "base_model" not in card and str(tmp_path) not in card


# ---- the record ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROMISED)
def test_record_proves_rows_and_weights(runs, hub, name):
    record = json.loads(hub.repos[f"me/{name}"].files()["unlearning.json"])
    forget, retain, _ = sets(name)
    found = verify(record, runs[name][0].model, forget)
    assert found.matches, found
    assert str(found) == (
        "weights: those of the record after unlearning; "
        f"samples: all {ROWS[name]} given are among the {ROWS[name]} forgotten samples of the record"
    )
    assert verify(record, samples=forget.select([3]).select_columns(record["request"]["columns"][::-1])).matches
    plain = [
        {key: torch.tensor(value) for key, value in sample.items() if key not in ("text", "path", "person")}
        for sample in forget
    ]
    assert verify(record, samples=plain).matches
    before, others = verify(record, tiny.make(name)[0]), verify(record, samples=retain)
    assert not before.matches and str(before) == "weights: those from BEFORE unlearning"
    assert not others.matches and str(others).startswith("samples: 0 of 20 given")
    assert (record["request"]["id"], record["request"]["samples"]) == ("7", ROWS[name])
    assert record["method"]["name"] == METHODS[name]
    assert record["settings"]["steps"] == 2 and record["audit"]["level"]
    with pytest.raises(ValueError, match=r"^samples: have no column"):
        verify(record, samples=forget.remove_columns("labels"))


# ---- where it goes ---------------------------------------------------------------------------------------------


def test_revision_pull_request_future_and_visibility(hub, vit, monkeypatch):
    vit.push_to_hub("me/branches", "First", revision="forgot-7", private=False)
    repo = hub.repos["me/branches"]
    assert not repo.private
    assert "model.safetensors" in repo.files("forgot-7") and "model.safetensors" not in repo.files("main")
    commit = vit.push_to_hub(create_pr=True)  # the same repository again
    assert commit.pr_url.endswith("/me/branches/discussions/1")
    assert "model.safetensors" in repo.files("refs/pr/1") and "model.safetensors" not in repo.files("main")
    vit.push_to_hub(commit_message="Third", blocking=False).result(timeout=30)
    assert repo.commits[repo.refs["main"]]["message"] == "Third" and repo.files().keys() >= PROMISED["vit"]
    monkeypatch.setattr(vit.args, "hub_private_repo", False)
    vit.push_to_hub("me/open")
    assert not hub.repos["me/open"].private


def test_weights_and_claims_from_before_do_not_stay(hub, vit, caplog):
    vit.push_to_hub("me/older")
    repo = hub.repos["me/older"]
    more = {
        "pytorch_model.bin": b"old",
        "checkpoint-9/optimizer.pt": b"old",
        "adapter_config.json": b"{}",
        "notes.txt": b"",
    }
    repo.commit("main", "by hand", repo.files() | more)
    vit.push_to_hub("me/older")
    assert repo.files().keys() - {".gitattributes", "notes.txt"} == PROMISED["vit"]
    assert "Earlier revisions have them" in caplog.text and "pytorch_model.bin" in caplog.text


def test_push_to_hub_argument_pushes_once_and_no_checkpoint(hub, tmp_path):
    trainer = build(
        "vit", tmp_path / "run", push_to_hub=True, hub_model_id="me/end", save_strategy="steps", save_steps=1
    )
    repo = hub.repos["me/end"]
    assert repo.private
    trainer.train()
    assert (tmp_path / "run" / "checkpoint-1").is_dir() and len(repo.commits) == 1
    trainer.audit(resamples=20)
    trainer.save_model()
    assert [each["message"] for each in repo.commits.values()] == ["initial commit", "Model save"]
    assert repo.files().keys() - {".gitattributes"} == PROMISED["vit"]
    for path in (tmp_path / "run").rglob("*"):
        assert path.is_dir() or TOKEN.encode() not in path.read_bytes(), path
    assert torch.load(tmp_path / "run" / "training_args.bin", weights_only=False).max_steps == 2
    assert trainer.args.hub_token == TOKEN


@pytest.mark.parametrize("strategy", ["every_save", "checkpoint", "all_checkpoints"])
def test_other_hub_strategies_are_refused(strategy):
    with pytest.raises(ValueError, match=rf"hub_strategy: must be \"end\", got '{strategy}'"):
        UnlearningArguments("unused", push_to_hub=True, hub_strategy=strategy)


def test_resumed_run_remembers_the_weights_before(tmp_path):
    first = build("vit", tmp_path / "run", save_strategy="steps", save_steps=1)
    first.train()
    again = build("vit", tmp_path / "run")
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    assert again.unlearning_state.original_hash == first.unlearning_state.original_hash is not None


# ---- adapters --------------------------------------------------------------------------------------------------


def test_adapter_alone_makes_no_claim(hub, vit, caplog):
    vit.push_to_hub("me/adapter", push_adapter=True)
    files = hub.repos["me/adapter"].files()
    assert files.keys() - {".gitattributes"} == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert "the base model still holds the data" in caplog.text
    card = ModelCard(files["README.md"].decode())
    assert "Its base model still holds the data" in card.text
    assert card.data.eval_results is None and card.data.library_name == "peft"
    for claim in ("Audit", "Forget request", "unlearning.json", "Consistent", "machine-unlearning"):
        assert claim not in str(card)
    for claim in ({"audit": vit.audit_report}, {"forget_request": "All."}, {"request_id": "7"}):
        with pytest.raises(ValueError, match=rf"^push_adapter: cannot go with {next(iter(claim))}"):
            vit.push_to_hub("me/adapter", push_adapter=True, **claim)
    with pytest.raises(ValueError, match=r"^push_adapter: me/vit has audit\.json"):
        vit.push_to_hub("me/vit", push_adapter=True)
    assert hub.repos["me/vit"].files().keys() - {".gitattributes"} == PROMISED["vit"]


def test_adapter_of_the_user_is_what_held_the_data(hub, tmp_path):
    model = add_adapter(tiny.make("llama")[0])
    trainer = build("llama", tmp_path / "run", model=model, method="nabla_tau")
    trainer.train()
    trainer.audit(resamples=20)
    trainer.push_to_hub("me/own", push_adapter=True, forget_request="Mine.")
    files = hub.repos["me/own"].files()
    assert files.keys() - {".gitattributes"} == CLAIMS | {
        "adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    (tmp_path / "pulled").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / "pulled" / name).write_bytes(files[name])
    record = json.loads(files["unlearning.json"])
    assert record["weights"]["kind"] == "adapter" and record["weights"]["before"] != record["weights"]["after"]
    assert verify(record, tmp_path / "pulled").matches and verify(record, trainer.model).matches
    trainer.save_release()  # audited anew, and the same files
    assert set(check_release(tmp_path / "run")) == files.keys() - {".gitattributes"}
    loaded = PeftModel.from_pretrained(tiny.make("llama")[0], tmp_path / "pulled").eval()
    batch = tiny.make("llama")[1](3, seed=9)
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, trainer.model.eval()(**batch).logits)
    with pytest.raises(ValueError, match=r"^model: the record is of an adapter"):
        verify(record, tiny.make("llama")[0])


def test_adapter_that_there_is_not(runs):
    with pytest.raises(ValueError, match=r"^push_adapter: all weights were trained"):
        runs["bert"][0].push_to_hub("me/bert", push_adapter=True)


# ---- the audit that goes along ---------------------------------------------------------------------------------


def test_audit_is_the_last_one_or_made_or_left_out_with_a_word(hub, tmp_path, caplog, vit):
    trainer = build("vit", tmp_path / "run")
    trainer.audit(resamples=50)
    assert trainer.audit_report is not None
    trainer.train()
    assert trainer.audit_report is None  # the weights have moved
    report = trainer.audit(resamples=60)
    trainer.push_to_hub("me/audited")
    assert json.loads(hub.repos["me/audited"].files()["audit.json"])["metrics"] == report.metrics
    trainer.audit_report = None
    trainer.push_to_hub("me/audited")
    assert trainer.audit_report is not None  # made anew
    trainer.save_release()  # the audit that it leaves goes at the next time, when there is none
    assert (tmp_path / "run" / "audit.html").exists()
    trainer.audit_report, trainer.unseen_ds = None, None
    trainer.push_to_hub("me/audited")
    assert "The release has no audit" in caplog.text
    files = hub.repos["me/audited"].files()
    assert not files.keys() & {"audit.json", "audit.html"} and json.loads(files["unlearning.json"])["audit"] is None
    assert "**Not audited.**" in files["README.md"].decode()
    trainer.save_release()
    saved = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert saved.keys() == files.keys() - {".gitattributes"}
    assert saved["model.safetensors"] == files["model.safetensors"]
    report.about["forget_samples"] = 5
    with pytest.raises(ValueError, match=r"^audit: is about 5 forget samples, the trainer has 12"):
        vit.push_to_hub("me/audited", audit=report)


def test_arguments_that_cannot_be(vit):
    with pytest.raises(ValueError, match=r"^repo_id: 'End of training' is no name .* commit_message="):
        vit.push_to_hub("End of training")
    with pytest.raises(ValueError, match=r"^push_to_hub: unknown argument 'licence'"):
        vit.push_to_hub("me/vit", licence="mit")
    with pytest.raises(ValueError, match=r"^save_release: unknown argument 'licence'"):
        vit.save_release(licence="mit")
    with pytest.raises(ValueError, match=r"^create_pr: a pull request goes to main, got revision='x'"):
        vit.push_to_hub("me/vit", create_pr=True, revision="x")


# ---- faults ----------------------------------------------------------------------------------------------------

FAULTS = {
    "401": ("POST /api/repos/create", 401, {}, "does not accept the token.*status 401"),
    "403": ("POST .*/commit/", 403, {}, "may not write there.*status 403"),
    "404": ("GET .*/tree/", 404, {}, "no such repository or revision.*status 404"),
    "409": ("POST .*/commit/", 409, {}, "another commit.*push again.*status 409"),
    "429": ("POST .*/commit/", 429, {"Retry_After": "7"}, "wait 7 seconds, then push again.*status 429"),
    "500": ("POST .*/commit/", 500, {}, "the Hub has an internal error.*status 500"),
    "drop": ("PUT /lfs", "drop", {}, "the transfer failed, push again"),
    "drop at the end": ("POST .*/commit/", "drop", {}, "the transfer failed, push again"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_clear_line_and_a_retry_completes(hub, vit, monkeypatch, capfd, caplog, tmp_path, name):
    where, status, headers, message = FAULTS[name]
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(hub, "objects", {})  # the weights have to be sent again
    monkeypatch.setattr(hub, "faults", [])
    repo_id = f"me/fault-{name.replace(' ', '-')}"
    hub.fault(where, status, times=6 if status == "drop" else 1, **headers)
    with pytest.raises(PushError, match=message) as error:
        vit.push_to_hub(repo_id)
    said = str(error.value)
    assert "\n" not in said and said.startswith(f"push_to_hub: nothing is confirmed as pushed to {repo_id}: ")
    assert (status == "drop") == ("as planned, Bearer ***" not in said)
    seen = said + caplog.text + "".join(capfd.readouterr())
    assert TOKEN not in seen and "Pushed" not in seen
    assert repo_id not in hub.repos or len(hub.repos[repo_id].commits) == 1
    hub.faults.clear()
    vit.push_to_hub(repo_id)
    assert hub.repos[repo_id].files().keys() - {".gitattributes"} == PROMISED["vit"]
    assert not list(tmp_path.iterdir())  # nothing is left behind


@pytest.mark.parametrize("status", [429, "drop"])
def test_what_passes_is_waited_for(hub, vit, monkeypatch, status):
    waits = []
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", waits.append)
    monkeypatch.setattr(hub, "objects", {})
    monkeypatch.setattr(hub, "faults", [])
    hub.fault("PUT /lfs", status, Retry_After="3")
    vit.push_to_hub(f"me/patient-{status}")
    assert waits == [4.0 if status == 429 else 1]  # huggingface_hub adds a second
    assert hub.repos[f"me/patient-{status}"].files().keys() - {".gitattributes"} == PROMISED["vit"]


def test_full_disk_here(hub, vit, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(
            PushError, match=r"^push_to_hub: the files could not be written .*nothing was pushed; free"
        ):
            vit.push_to_hub("me/full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(hub.repos["me/full"].commits) == 1 and not list(tmp_path.iterdir())
    vit.push_to_hub("me/full")
    assert hub.repos["me/full"].files().keys() - {".gitattributes"} == PROMISED["vit"]


def test_offline_is_said(hub, vit, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PushError, match="offline mode is on; unset HF_HUB_OFFLINE"):
        vit.push_to_hub("me/offline")


def test_the_error_survives_a_process_boundary():
    assert re.match("push", str(pickle.loads(pickle.dumps(PushError("push")))))
