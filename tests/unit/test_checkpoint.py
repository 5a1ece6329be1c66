"""Checkpoints: what is read back is what was written, and a folder named step-* is whole."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from papo_hub.checkpoint import (
    CheckpointError,
    checkpoints,
    damage,
    find_checkpoint,
    forget_after,
    is_unfinished,
    last_good,
    load_optimizer,
    load_state,
    named_moments,
    save_checkpoint,
)
from papo_hub.modeling import load_processor
from papo_hub.randomness import derived_generator


class Saves:
    """Stands for a processor."""

    def save_pretrained(self, folder):
        (folder / "processor.json").write_text("{}")


class Linear(torch.nn.Linear):
    def save_pretrained(self, folder, state_dict=None):
        folder.mkdir()
        save_file(state_dict or self.state_dict(), folder / "weights")


def trained(steps=3):
    """A model and an AdamW whose moments come from a few real steps."""
    model = Linear(3, 2)
    generator = derived_generator("checkpoint")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(steps):
        step(model, optimizer, generator)
    return model, optimizer, generator


def step(model, optimizer, generator):
    model(torch.randn(4, 3, generator=generator)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def save(folder, number, keep=2, state=None, **others):
    model, optimizer, _ = trained()
    return save_checkpoint(folder, number, model, Saves(), named_moments(model, optimizer), state or {}, keep, **others)


def test_a_restored_optimizer_goes_on_as_the_saved_one(tmp_path):
    model, optimizer, generator = trained()
    saved = save_checkpoint(
        tmp_path, 3, model, Saves(), named_moments(model, optimizer), {"stream": {"cursor": 7}}, keep=1
    )
    files = ("weights", "processor.json", "optimizer.safetensors")
    written = load_state(saved).pop("files")
    assert load_state(saved) == {"step": 3, "stream": {"cursor": 7}, "files": written}
    assert {name: entry["bytes"] for name, entry in written.items()} == {n: (saved / n).stat().st_size for n in files}

    other, fresh, _ = trained(steps=0)
    other.load_state_dict(model.state_dict())
    load_optimizer(saved, other, fresh)
    data = generator.get_state()
    step(model, optimizer, generator)
    step(other, fresh, generator.set_state(data))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))

    amnesiac, forgetful, _ = trained(steps=0)  # without its moments it goes elsewhere
    amnesiac.load_state_dict(load_file(saved / "weights"))
    step(amnesiac, forgetful, generator.set_state(data))
    assert not torch.equal(amnesiac.weight, model.weight)


def test_moments_of_another_model_are_refused(tmp_path):
    saved = save(tmp_path, 1)
    stranger = torch.nn.Sequential(torch.nn.Linear(3, 2))
    with pytest.raises(ValueError, match="holds (bias|weight), which this model does not have"):
        load_optimizer(saved, stranger, torch.optim.AdamW(stranger.parameters()))


def test_the_newest_are_kept_in_numeric_order(tmp_path):
    for number in (9, 10, 999_999, 1_000_000):
        save(tmp_path, number, keep=3)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000010", "step-999999", "step-1000000"]
    assert find_checkpoint("latest", tmp_path).name == "step-1000000"


def test_going_back_leaves_no_later_checkpoint(tmp_path):
    """A run resumed from step 2 goes another way: the old step 6 must not be its `latest`, nor push step 4 out."""
    for number in (2, 4, 6):
        save(tmp_path, number, keep=3)
    save(tmp_path, 4, keep=1)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000004"]


FULL = OSError(errno.ENOSPC, "No space left on device")
FULL_IN_WORDS = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("fault", [FULL, FULL_IN_WORDS], ids=["OSError", "SafetensorError"])
@pytest.mark.parametrize("where", ["save_file", "replace_folder"])
def test_a_full_disk_leaves_the_last_good_one_and_says_so(tmp_path, monkeypatch, where, fault):
    before = {path: path.read_bytes() for path in save(tmp_path, 2, keep=1).iterdir()}

    def fails(*arguments):
        raise fault

    with monkeypatch.context() as patch:
        patch.setattr(f"papo_hub.checkpoint.{where}", fails)
        message = r"no space left for the checkpoint .*step-000004 \(.* GiB free\); the last good one is .*step-000002"
        with pytest.raises(CheckpointError, match=message):
            save(tmp_path, 4, keep=1)
    assert {path.name for path in tmp_path.iterdir()} == {"step-000002"}  # what was begun gave its space back
    assert {path: path.read_bytes() for path in before} == before
    save(tmp_path, 6, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000006"]


def test_another_fault_of_the_disk_is_said_as_it_is(tmp_path, monkeypatch):
    def fails(*arguments):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("papo_hub.checkpoint.save_file", fails)
    with pytest.raises(
        CheckpointError, match="step-000004 could not be written: .*Permission denied; there is none yet"
    ):
        save(tmp_path, 4)


TINY_DISK = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
from test_checkpoint import checkpoints, damage, save, CheckpointError
folder = Path(sys.argv[1])
saved = save(folder / "checkpoints", 2, keep=1)
filler = folder / "filler"
with filler.open("wb", buffering=0) as file:
    try:
        while file.write(b"0" * 512):
            pass
    except OSError:
        pass
try:
    save(folder / "checkpoints", 4, keep=1)
except CheckpointError as error:
    assert "no space left for the checkpoint" in str(error), error
else:
    raise SystemExit("it was written to a full disk")
assert checkpoints(folder / "checkpoints") == [saved] and damage(saved) is None
filler.unlink()
newest = save(folder / "checkpoints", 4, keep=1)
assert checkpoints(folder / "checkpoints") == [newest]
"""


def test_on_a_disk_that_is_really_full(tmp_path):
    """A file system of its own, of a few pages; where the machine lets no user mount one, the test above must do."""
    script = TINY_DISK.format(paths=[str(Path(__file__).parent), str(Path(__file__).parents[2])])
    (tmp_path / "script.py").write_text(script)
    inside = (
        f"mount -t tmpfs -o size=256k tmpfs {tmp_path}/disk && {sys.executable} {tmp_path}/script.py {tmp_path}/disk"
    )
    (tmp_path / "disk").mkdir()
    try:
        able = (
            subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(tmp_path / "disk")]).returncode == 0
        )
    except FileNotFoundError:
        able = False
    if not able:
        pytest.skip("no user namespaces here, so no file system of its own")
    done = subprocess.run(["unshare", "-rm", "sh", "-c", inside], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def torn(path, how):
    """Damage a file of a checkpoint."""
    if how == "gone":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:  # the same size, another byte
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


@pytest.mark.parametrize("how", ["gone", "empty", "cut", "flipped"])
@pytest.mark.parametrize("name", ["weights", "optimizer.safetensors", "processor.json", "trainer_state.json"])
def test_a_torn_checkpoint_is_recognised_and_the_one_before_it_used(tmp_path, caplog, name, how):
    good, bad = save(tmp_path, 2), save(tmp_path, 4)
    if (name, how) == ("trainer_state.json", "flipped"):
        how = "cut"  # a flipped bit in a number is what no checksum inside can tell
    torn(bad / name, how)
    with pytest.raises(CheckpointError, match="no checkpoint to go on from at .*step-000004: .*has: step-00000"):
        find_checkpoint(str(bad), tmp_path)
    assert find_checkpoint("latest", tmp_path) == good
    assert "step-000004 is damaged and passed over" in caplog.text
    newer = save(tmp_path, 6)
    assert {path.name for path in tmp_path.iterdir()} == {"step-000002", "step-000006"}
    torn(newer / name, how)
    assert find_checkpoint("latest", tmp_path) == good


def test_a_damaged_one_does_not_count_among_those_kept(tmp_path):
    """Else the rotation would remove the newest good one in its favour."""
    good, bad = save(tmp_path, 2), save(tmp_path, 4)
    torn(bad / "weights", "cut")
    newest = save(tmp_path, 6, keep=2)
    assert checkpoints(tmp_path) == [good, newest]


def test_where_all_are_damaged_nothing_is_begun_anew_in_silence(tmp_path):
    torn(save(tmp_path, 2) / "weights", "cut")
    with pytest.raises(CheckpointError, match="all checkpoints in .* are damaged"):
        find_checkpoint("latest", tmp_path)


def test_killed_anywhere_in_a_save_there_is_a_good_one(tmp_path, monkeypatch):
    """Every operation on files that a save makes is the last one in turn; afterwards `latest` is whole, and old or new."""
    operations = ["os.fsync", "pathlib.Path.rename", "shutil.rmtree", "pathlib.Path.write_text", "pathlib.Path.mkdir"]

    class Killed(BaseException):
        pass

    def save_with_death_at(moment, folder):
        count = 0
        with monkeypatch.context() as patch:
            for name in operations:
                module, _, attribute = name.rpartition(".")
                whole = getattr(Path if module == "pathlib.Path" else sys.modules[module], attribute)

                def dying(*arguments, whole=whole, **options):
                    nonlocal count
                    count += 1
                    if count > moment:
                        raise Killed
                    return whole(*arguments, **options)

                patch.setattr(name, dying)
            save(folder, 6, keep=2)
        return count

    def prepared(name):
        folder = tmp_path / name
        for number in (2, 4):
            save(folder, number)
        return folder

    total = save_with_death_at(10**6, prepared("whole"))
    assert total > 8
    ends = set()
    for moment in range(total):
        folder = prepared(f"killed{moment}")
        with pytest.raises(Killed):
            save_with_death_at(moment, folder)
        found = find_checkpoint("latest", folder)
        assert damage(found) is None
        assert [path.name for path in checkpoints(folder)][-2:] in (
            ["step-000002", "step-000004"],
            ["step-000004", "step-000006"],
        )
        ends.add(found.name)
        save(folder, 8, keep=2)
        left = {path.name for path in folder.iterdir()}
        assert left == {found.name, "step-000008"}, left
    assert ends == {"step-000004", "step-000006"}


def test_the_newest_healthy_one_outlives_the_rotation(tmp_path):
    for number in (2, 4, 6, 8):
        save(tmp_path, number, keep=2, healthy=5)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000004", "step-000006", "step-000008"]
    save(tmp_path, 10, keep=2, healthy=9)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000008", "step-000010"]
    assert last_good(tmp_path, 9).name == "step-000008" and last_good(tmp_path, 7) is None
    assert forget_after(tmp_path, 9).name == "step-000008"
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000008"]


def test_an_unfinished_step_lies_between_its_neighbours(tmp_path):
    share = tmp_path / "share"
    save(tmp_path, 4)
    share.mkdir()
    (share / "unfinished-00000.json").write_text("{}")
    middle = save(tmp_path, 4, unfinished=share)
    assert middle.name == "step-000005-unfinished" and is_unfinished(middle)
    assert find_checkpoint("latest", tmp_path) == middle and load_state(middle)["step"] == 4
    after = save(tmp_path, 5, keep=1)
    assert checkpoints(tmp_path) == [after] and not is_unfinished(after)


def test_writing_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 2, state={"first": True})
    state = load_state(save(tmp_path, 2, state={"second": True}))
    assert state.keys() == {"step", "second", "files"} and [path.name for path in tmp_path.iterdir()] == ["step-000002"]


def test_what_to_resume_from(tmp_path):
    assert find_checkpoint(None, tmp_path) is None
    assert find_checkpoint("latest", tmp_path / "absent") is None
    saved = save(tmp_path, 2)
    (tmp_path / "step-notes").mkdir()
    (tmp_path / "step-000009").mkdir()  # without a trainer_state.json
    assert find_checkpoint("latest", tmp_path) == saved
    assert find_checkpoint(str(saved), tmp_path) == saved
    with pytest.raises(
        ValueError, match=r"go on from at .*step-000009: it has no trainer_state\.json\. .* has: step-000002\."
    ):
        find_checkpoint(str(tmp_path / "step-000009"), tmp_path)


def test_a_real_checkpoint_is_a_model_folder_with_safetensors_and_json_only(
    tmp_path, tiny_model_folder, tiny_processor
):
    model = AutoModelForImageTextToText.from_pretrained(tiny_model_folder)
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    saved = save_checkpoint(tmp_path, 1, model, tiny_processor, named_moments(model, optimizer), {}, keep=1)

    kinds = {path.suffix for path in saved.iterdir()}
    assert kinds == {".safetensors", ".json", ".jinja"}
    again, info = AutoModelForImageTextToText.from_pretrained(saved, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ours = dict(model.named_parameters())
    assert all(torch.equal(ours[name], value) for name, value in again.named_parameters())
    assert load_processor(saved).tokenizer.eos_token == "<|im_end|>"
    names = {f"{name}/{moment}" for name in ours for moment in ("step", "exp_avg", "exp_avg_sq")}
    assert set(load_file(saved / "optimizer.safetensors")) == names
    assert json.loads((saved / "trainer_state.json").read_text())["step"] == 1
