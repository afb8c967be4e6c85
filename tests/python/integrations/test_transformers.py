"""transformers models saved to FlashPack folders and loaded again: what comes back, and what is refused."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import flashpack
import pytest
import torch
from flashpack.integrations.transformers import FlashPackTransformersModelMixin, load_model, save_model
from helpers import assert_same, listing, read_footer, run_python
from torch import nn
from transformers import BertConfig, BertModel, GenerationConfig, PreTrainedModel
from transformers_models import (
    BUILDERS,
    FlashPackBert,
    FlashPackLlama,
    FlashPackT5,
    assert_same_outputs,
    bert_config,
    llama_config,
    saved_config,
    t5_config,
    ties,
)


@pytest.fixture
def bert() -> FlashPackBert:
    return FlashPackBert(bert_config()).eval()


@pytest.fixture
def folder(bert: FlashPackBert, tmp_path: Path) -> Path:
    bert.save_pretrained_flashpack(tmp_path / "saved")
    return tmp_path / "saved"


# What comes back


@pytest.mark.parametrize("name", BUILDERS)
def test_round_trip(name: str, tmp_path: Path) -> None:
    model = BUILDERS[name]().eval()
    model.save_pretrained_flashpack(tmp_path)
    loaded, info = type(model).from_pretrained_flashpack(tmp_path, output_loading_info=True)
    assert type(loaded) is type(model)
    assert_same(loaded.state_dict(), model.state_dict())
    assert ties(loaded) == ties(model)
    assert_same(dict(loaded.named_buffers()), dict(model.named_buffers()))
    assert not any(each.is_meta for each in itertools.chain(loaded.parameters(), loaded.buffers()))
    assert not any(module.training for module in loaded.modules())
    assert_same_outputs(loaded, model)
    assert loaded.name_or_path == loaded.config.name_or_path == str(tmp_path)
    assert info == {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": [], "error_msgs": []}


@pytest.mark.parametrize("name", ["bert-masked", "llama-tied", "t5", "gpt2"])
def test_tied_weights_are_stored_once_and_stay_tied(name: str, tmp_path: Path) -> None:
    model = BUILDERS[name]()
    expected = ties(model)
    assert expected
    model.save_pretrained_flashpack(tmp_path)
    places = {
        record["name"]: record["offset"] for record in read_footer(tmp_path / "model.flashpack")["index"]
    }
    assert all(len({places[each] for each in group}) == 1 for group in expected)
    loaded = type(model).from_pretrained_flashpack(tmp_path)
    assert loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight


@pytest.mark.parametrize("name", BUILDERS)
def test_the_files_own_names_go_straight_to_the_model(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = BUILDERS[name]()
    model.save_pretrained_flashpack(tmp_path)
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", None)
    assert type(type(model).from_pretrained_flashpack(tmp_path)) is type(model)
    with pytest.raises(TypeError, match="NoneType"):  # as a cast needs transformers' own loader
        type(model).from_pretrained_flashpack(tmp_path, dtype="float16")


def test_weights_that_are_equal_but_not_tied_stay_apart(tmp_path: Path) -> None:
    model = FlashPackLlama(llama_config())
    with torch.no_grad():
        model.lm_head.weight.copy_(model.model.embed_tokens.weight)
    model.save_pretrained_flashpack(tmp_path)
    assert ties(FlashPackLlama.from_pretrained_flashpack(tmp_path)) == set()


def test_two_tensors_for_one_tied_weight_are_both_kept(tmp_path: Path) -> None:
    """As transformers does when the configuration says that they are tied, but the file holds two values."""
    model = FlashPackLlama(llama_config()).eval()
    model.config.tie_word_embeddings = True
    model.save_pretrained_flashpack(tmp_path)
    loaded = FlashPackLlama.from_pretrained_flashpack(tmp_path)
    assert_same(loaded.state_dict(), model.state_dict())


def test_a_tie_that_the_file_stores_twice(tmp_path: Path) -> None:
    """As 0.4.5 wrote them."""
    model = FlashPackLlama(llama_config(tied=True)).eval()
    model.save_pretrained_flashpack(tmp_path)
    apart = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flashpack.pack_to_file(apart, tmp_path / "model.flashpack")
    loaded = FlashPackLlama.from_pretrained_flashpack(tmp_path)
    assert_same(loaded.state_dict(), model.state_dict())
    assert ties(loaded) == ties(model)


def test_the_mixin_may_come_first(bert: FlashPackBert, folder: Path) -> None:
    class First(FlashPackTransformersModelMixin, BertModel):
        pass

    assert First.config_class is BertConfig
    loaded = First.from_pretrained_flashpack(folder)
    assert type(loaded) is First
    assert_same_outputs(loaded, bert)


def test_what_the_mixin_is() -> None:
    assert issubclass(FlashPackTransformersModelMixin, PreTrainedModel)
    assert issubclass(FlashPackTransformersModelMixin, flashpack.FlashPackMixin)
    assert FlashPackBert.config_class is BertConfig


def test_plain_models_without_the_mixin(tmp_path: Path) -> None:
    model = BertModel(bert_config()).eval()
    save_model(model, tmp_path)
    loaded = load_model(BertModel, tmp_path)
    assert type(loaded) is BertModel
    assert_same_outputs(loaded, model)


def test_on_the_instance_too(bert: FlashPackBert, folder: Path) -> None:
    assert_same(bert.from_pretrained_flashpack(folder).state_dict(), bert.state_dict())


def test_buffers_that_are_in_no_file_are_the_modules_own(folder: Path, tmp_path: Path) -> None:
    loaded = FlashPackBert.from_pretrained_flashpack(folder)
    assert torch.equal(loaded.embeddings.position_ids, torch.arange(40)[None])
    FlashPackLlama(llama_config()).save_pretrained_flashpack(tmp_path)
    llama = FlashPackLlama.from_pretrained_flashpack(tmp_path)
    assert torch.equal(
        llama.model.rotary_emb.inv_freq, FlashPackLlama(llama_config()).model.rotary_emb.inv_freq
    )


class WithNorm(FlashPackBert):
    """Has persistent buffers, floating and whole."""

    def __init__(self, config: BertConfig, width: int = 16) -> None:
        super().__init__(config)
        self.norm = nn.BatchNorm1d(width)
        self.register_buffer("scale", torch.full((2,), 3.0, dtype=torch.float32))
        self.post_init()


def test_persistent_buffers_come_from_the_file_in_its_dtypes(tmp_path: Path) -> None:
    model = WithNorm(bert_config())
    model.norm.running_mean.normal_()
    model.norm.num_batches_tracked.fill_(2301)
    model.save_pretrained_flashpack(tmp_path, target_dtype=torch.float16)
    loaded = WithNorm.from_pretrained_flashpack(tmp_path)
    assert_same({"": loaded.norm.running_mean}, {"": model.norm.running_mean.half()})
    assert loaded.norm.num_batches_tracked.item() == 2301
    assert loaded.scale.dtype == torch.float16
    coerced = WithNorm.from_pretrained_flashpack(tmp_path, coerce_dtype=True)
    assert_same({"": coerced.scale}, {"": torch.full((2,), 3.0)})


def test_arguments_for_the_class_itself(tmp_path: Path) -> None:
    WithNorm(bert_config(), width=5).save_pretrained_flashpack(tmp_path)
    for loaded in (
        WithNorm.from_pretrained_flashpack(tmp_path, width=5),
        WithNorm.from_pretrained_flashpack(tmp_path, "cpu", 5),
    ):
        assert loaded.norm.weight.shape == (5,)


# Files of a folder


def test_a_saved_folder(folder: Path) -> None:
    assert listing(folder) == {"config.json", "model.flashpack"}
    config = saved_config(folder)
    assert (config["architectures"], config["dtype"]) == (["BertModel"], "float32")


def test_saving_leaves_the_models_configuration_alone(bert: FlashPackBert, tmp_path: Path) -> None:
    before = bert.config.to_dict()
    bert.save_pretrained_flashpack(tmp_path, target_dtype=torch.float16)
    assert bert.config.to_dict() == before
    assert saved_config(tmp_path)["dtype"] == "float16"


def test_a_class_with_a_forward_of_its_own_is_its_own_architecture(tmp_path: Path) -> None:
    WithNorm(bert_config()).save_pretrained_flashpack(tmp_path)
    assert saved_config(tmp_path)["architectures"] == ["WithNorm"]


def test_generation_configuration(tmp_path: Path) -> None:
    model = FlashPackLlama(llama_config())
    model.generation_config.temperature = 0.25
    model.generation_config.do_sample = True
    model.save_pretrained_flashpack(tmp_path)
    assert "generation_config.json" in listing(tmp_path)
    loaded = FlashPackLlama.from_pretrained_flashpack(tmp_path)
    assert (loaded.generation_config.temperature, loaded.generation_config.do_sample) == (0.25, True)
    given = GenerationConfig(max_length=77)
    again = FlashPackLlama.from_pretrained_flashpack(tmp_path, generation_config=given)
    assert again.generation_config.max_length == 77


def test_variants(bert: FlashPackBert, folder: Path) -> None:
    bert.save_pretrained_flashpack(folder, variant="fp16", target_dtype=torch.float16)
    assert listing(folder) == {"config.json", "model.flashpack", "model.fp16.flashpack"}
    assert FlashPackBert.from_pretrained_flashpack(folder, variant="fp16").dtype == torch.float16
    assert FlashPackBert.from_pretrained_flashpack(folder).dtype == torch.float32
    with pytest.raises(FileNotFoundError, match=r"No model\.int8\.flashpack.*model\.fp16\.flashpack"):
        FlashPackBert.from_pretrained_flashpack(folder, variant="int8")


def test_subfolders(bert: FlashPackBert, folder: Path) -> None:
    loaded = FlashPackBert.from_pretrained_flashpack(folder.parent, subfolder=Path(folder.name))
    assert_same(loaded.state_dict(), bert.state_dict())
    assert loaded.name_or_path == str(folder.parent)


def test_hub_options_do_not_disturb_a_local_folder(folder: Path) -> None:
    options: dict[str, Any] = {"revision": "main", "local_files_only": True, "cache_dir": None, "token": None}
    proxied = {"proxies": {"https": "none"}, "local_dir_use_symlinks": False, "force_download": False}
    assert type(FlashPackBert.from_pretrained_flashpack(folder, **options, **proxied)) is FlashPackBert


def test_only_the_main_process_writes(bert: FlashPackBert, tmp_path: Path) -> None:
    bert.save_pretrained_flashpack(tmp_path / "new", is_main_process=False)
    assert listing(tmp_path) == set()


def test_options_of_packing(bert: FlashPackBert, tmp_path: Path) -> None:
    bert.save_pretrained_flashpack(tmp_path, align_bytes=0, num_workers=3, silent=True, checksum="blake3")
    footer = read_footer(tmp_path / "model.flashpack")
    assert (footer["align_bytes"], footer["checksums"]["algorithm"]) == (0, "blake3")


def test_saving_over_an_older_save(folder: Path) -> None:
    other = FlashPackBert(bert_config(num_hidden_layers=1))
    other.save_pretrained_flashpack(folder)
    assert_same(FlashPackBert.from_pretrained_flashpack(folder).state_dict(), other.state_dict())


# Configurations


def test_settings_of_the_configuration(folder: Path) -> None:
    loaded = FlashPackBert.from_pretrained_flashpack(
        folder, attn_implementation="eager", hidden_dropout_prob=0.5
    )
    assert loaded.config._attn_implementation == "eager"
    assert loaded.embeddings.dropout.p == 0.5


def test_a_configuration_of_ones_own(folder: Path, tmp_path: Path) -> None:
    config = BertConfig.from_pretrained(folder, hidden_dropout_prob=0.25)
    before = config.to_dict()
    loaded = FlashPackBert.from_pretrained_flashpack(folder, config=config, attn_implementation="eager")
    assert loaded.embeddings.dropout.p == 0.25
    assert loaded.config._attn_implementation == "eager"
    assert config.to_dict() == before
    config.save_pretrained(tmp_path / "other")
    elsewhere = FlashPackBert.from_pretrained_flashpack(folder, config=tmp_path / "other")
    assert elsewhere.embeddings.dropout.p == 0.25


# Devices and dtypes


@pytest.mark.parametrize("given", [{"": "cpu"}, {"": torch.device("cpu")}, {"a": "cpu", "b": "cpu"}, "cpu"])
def test_a_map_of_a_single_device(given: Any, folder: Path) -> None:
    assert FlashPackBert.from_pretrained_flashpack(folder, device_map=given).device.type == "cpu"


@pytest.mark.parametrize("given", ["auto", "balanced", {"a": "cpu", "b": 0}, {"": "disk"}, {}])
def test_maps_of_more_than_a_device_are_refused(given: Any, folder: Path) -> None:
    with pytest.raises(ValueError, match="single device"):
        FlashPackBert.from_pretrained_flashpack(folder, device_map=given)


def test_a_device_and_a_map_that_disagree(folder: Path) -> None:
    with pytest.raises(ValueError, match="name different devices"):
        FlashPackBert.from_pretrained_flashpack(folder, "cpu", device_map={"": "cuda:0"})


def test_dtypes_that_disagree(folder: Path) -> None:
    with pytest.raises(ValueError, match="differ: pass only dtype"):
        FlashPackBert.from_pretrained_flashpack(folder, dtype="float16", torch_dtype=torch.float32)


@pytest.mark.parametrize("dtype", [None, "auto"])
def test_by_default_dtypes_are_the_files(dtype: str | None, tmp_path: Path) -> None:
    model = FlashPackBert(bert_config()).half()
    model.pooler.float()
    model.save_pretrained_flashpack(tmp_path)
    loaded = FlashPackBert.from_pretrained_flashpack(tmp_path, dtype=dtype)
    assert_same(loaded.state_dict(), model.state_dict())
    assert loaded.config.dtype == torch.float16


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16", "torch.bfloat16"])
def test_a_dtype_asked_for(name: str, dtype: Any, bert: FlashPackBert, folder: Path) -> None:
    loaded = FlashPackBert.from_pretrained_flashpack(folder, **{name: dtype})
    assert_same(loaded.state_dict(), {key: value.bfloat16() for key, value in bert.state_dict().items()})
    assert loaded.config.dtype == torch.bfloat16
    assert loaded.name_or_path == str(folder)
    assert not loaded.training


def test_modules_that_must_stay_single_precision(tmp_path: Path) -> None:
    FlashPackT5(t5_config()).save_pretrained_flashpack(tmp_path / "single")
    FlashPackT5(t5_config()).save_pretrained_flashpack(tmp_path / "half", target_dtype=torch.float16)
    for source in ("single", "half"):
        loaded = FlashPackT5.from_pretrained_flashpack(tmp_path / source, dtype="float16")
        assert loaded.encoder.block[0].layer[1].DenseReluDense.wo.weight.dtype == torch.float32
        assert loaded.shared.weight.dtype == torch.float16
        assert len(ties(loaded)) == 1


@pytest.mark.parametrize("dtype", ["int8", torch.int8, "nonsense", 3])
def test_dtypes_that_are_none(dtype: Any, folder: Path) -> None:
    with pytest.raises(ValueError, match="dtype must be a floating"):
        FlashPackBert.from_pretrained_flashpack(folder, dtype=dtype)


def test_the_default_dtype_is_left_as_it_was(bert: FlashPackBert, tmp_path: Path) -> None:
    bert.save_pretrained_flashpack(tmp_path, target_dtype=torch.float16)
    FlashPackBert.from_pretrained_flashpack(tmp_path)
    assert torch.get_default_dtype() == torch.float32


def test_loads_of_different_dtypes_in_many_threads(tmp_path: Path) -> None:
    dtypes = [torch.float16, torch.float32, torch.bfloat16, torch.float64] * 4
    for dtype in set(dtypes):
        WithNorm(bert_config()).to(dtype).save_pretrained_flashpack(tmp_path / str(dtype))

    def load(dtype: torch.dtype) -> set[torch.dtype]:
        model = WithNorm.from_pretrained_flashpack(tmp_path / str(dtype))
        return {each.dtype for each in [*model.parameters(), model.norm.running_mean]}

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(load, dtypes)) == [{dtype} for dtype in dtypes]
    assert torch.get_default_dtype() == torch.float32


# Strictness and options of a load


def repack(folder: Path, without: str = "", **extra: torch.Tensor) -> None:
    path = folder / "model.flashpack"
    kept = {name: tensor.clone() for name, tensor in flashpack.load_file(path).items() if name != without}
    flashpack.save_file({**kept, **extra}, path)


def test_missing_parameters(folder: Path) -> None:
    repack(folder, without="pooler.dense.bias")
    with pytest.raises(ValueError, match=r": Missing 1 parameters: \['pooler.dense.bias'\]$"):
        FlashPackBert.from_pretrained_flashpack(folder)
    for strictness in ("strict", "strict_params"):
        loaded, info = FlashPackBert.from_pretrained_flashpack(
            folder, **{strictness: False}, output_loading_info=True
        )
        assert info["missing_keys"] == ["pooler.dense.bias"]
        assert_same({"": loaded.pooler.dense.bias}, {"": torch.zeros(16)})
        assert not loaded.training


def test_names_that_the_model_lacks(bert: FlashPackBert, folder: Path) -> None:
    repack(folder, **{"head.bias": torch.ones(2)})
    with pytest.raises(ValueError, match=r": Could not assign 1 names: \['head.bias'\]$"):
        FlashPackBert.from_pretrained_flashpack(folder)
    loaded, info = FlashPackBert.from_pretrained_flashpack(folder, strict=False, output_loading_info=True)
    assert info["unexpected_keys"] == ["head.bias"]
    assert_same(loaded.state_dict(), bert.state_dict())
    ignoring = FlashPackBert.from_pretrained_flashpack(folder, ignore_prefixes=["head."])
    assert_same(ignoring.state_dict(), bert.state_dict())


def test_what_is_reported_is_not_refused(bert: FlashPackBert, folder: Path) -> None:
    repack(folder, without="pooler.dense.bias", **{"head.bias": torch.ones(2)})
    loaded, info = FlashPackBert.from_pretrained_flashpack(folder, output_loading_info=True)
    assert (info["missing_keys"], info["unexpected_keys"]) == (["pooler.dense.bias"], ["head.bias"])
    assert torch.equal(loaded.pooler.dense.weight, bert.pooler.dense.weight)
    with pytest.raises(ValueError, match=r"head\.bias"):
        FlashPackBert.from_pretrained_flashpack(folder, output_loading_info=True, strict_params=True)


def test_missing_buffers(tmp_path: Path) -> None:
    WithNorm(bert_config()).save_pretrained_flashpack(tmp_path)
    repack(tmp_path, without="norm.running_var")
    loaded, info = WithNorm.from_pretrained_flashpack(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == ["norm.running_var"]
    assert loaded.norm.running_var.eq(1).all()
    with pytest.raises(ValueError, match="Missing 1 buffers"):
        WithNorm.from_pretrained_flashpack(tmp_path, strict_buffers=True)


def test_ignored_parameters_get_fresh_values(folder: Path) -> None:
    loaded = FlashPackBert.from_pretrained_flashpack(folder, ignore_names=["pooler.dense.bias"])
    assert loaded.pooler.dense.bias.eq(0).all()


def test_class_attributes_are_defaults(folder: Path) -> None:
    class Choosy(FlashPackBert):
        flashpack_ignore_prefixes: ClassVar = ["head."]

    repack(folder, **{"head.bias": torch.ones(2)})
    assert type(Choosy.from_pretrained_flashpack(folder)) is Choosy
    with pytest.raises(ValueError, match="Could not assign"):
        Choosy.from_pretrained_flashpack(folder, ignore_prefixes=[])


def test_shapes_that_differ(folder: Path) -> None:
    with pytest.raises(ValueError, match="has shape"):
        FlashPackBert.from_pretrained_flashpack(folder, intermediate_size=24)


def test_ignoring_mismatched_sizes(folder: Path) -> None:
    loaded, info = FlashPackBert.from_pretrained_flashpack(
        folder,
        config=bert_config(max_position_embeddings=8),
        ignore_mismatched_sizes=True,
        strict_params=False,
        output_loading_info=True,
    )
    assert [name for name, *_ in info["mismatched_keys"]] == ["embeddings.position_embeddings.weight"]
    assert loaded.embeddings.position_embeddings.weight.isfinite().all()


def test_load_options_reach_the_load(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[int, int]] = []
    loaded = FlashPackBert.from_pretrained_flashpack(
        folder,
        eager=True,
        verify=True,
        keep_flash_ref_on_model=True,
        silent=False,
        progress=lambda *a: told.append(a),
    )
    assert loaded._flash_shared_storage is not None
    assert "Assigned" in capsys.readouterr().out
    cast = FlashPackBert.from_pretrained_flashpack(folder, dtype="float16", keep_flash_ref_on_model=True)
    assert cast._flash_shared_storage_meta["format"]
    with pytest.raises(ValueError, match="assign_from_file"):
        FlashPackBert.from_pretrained_flashpack(folder, in_place=True)


# Failure


def test_no_folder_to_save_to(bert: FlashPackBert, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file"):
        bert.save_pretrained_flashpack(tmp_path / "file")


def test_places_without_a_model(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError, match=r"model\.flashpack"):
        FlashPackBert.from_pretrained_flashpack(folder / "model.flashpack")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"No model\.flashpack in the folder"):
        FlashPackBert.from_pretrained_flashpack(tmp_path / "empty")
    (folder / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config\.json: not a configuration"):
        FlashPackBert.from_pretrained_flashpack(folder)
    (folder / "config.json").unlink()
    with pytest.raises(OSError, match=r"config\.json"):
        FlashPackBert.from_pretrained_flashpack(folder)


def test_damage_is_found(folder: Path) -> None:
    (folder / "model.flashpack").write_bytes(b"junk" * 100)
    with pytest.raises(flashpack.FlashPackError):
        FlashPackBert.from_pretrained_flashpack(folder)


def test_arguments_that_nobody_knows(folder: Path) -> None:
    with pytest.raises(TypeError, match="nobody_knows"):
        FlashPackBert.from_pretrained_flashpack(folder, nobody_knows=1)


def test_the_package_alone_imports_no_transformers() -> None:
    code = "import sys, flashpack, flashpack.integrations; print('transformers' in sys.modules)"
    assert run_python(code) == "False"
