"""A checkpoint takes its place whole, and everybody may read it."""

from pathlib import Path

from finetune.checkpoint.save import replacing


def test_whoever_may_read_the_config_may_read_all_weights(tmp_path: Path) -> None:
    """safetensors makes its files readable by the owner alone; who exports or serves may be another user."""
    with replacing(tmp_path / "model") as draft:
        for name in ("config.json", "model.safetensors", "heads.safetensors", "adapter_model.safetensors"):
            (draft / name).touch(mode=0o644 if name == "config.json" else 0o600)
    assert len({path.stat().st_mode for path in (tmp_path / "model").iterdir()}) == 1


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    for words in ("former", "newer"):
        try:
            with replacing(tmp_path / "model") as draft:
                for name in ("config.json", "model.safetensors"):
                    (draft / name).write_text(words)
                if words == "newer":
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            continue
    assert (tmp_path / "model" / "config.json").read_text() == "former"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
