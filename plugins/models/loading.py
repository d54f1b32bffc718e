# SPDX-License-Identifier: Apache-2.0
"""Load a causal or an encoder-decoder model of transformers, or draw one anew from its configuration.

Weights come from safetensors files alone, and code from a repository is never run. What cannot work later is refused here:
no tokenizer, no end token, no chat template where one is asked for, more layers than there are, adapters without a place.
"""

from logging import ERROR
from pathlib import Path
from typing import Any

from osmotic.plugins.models.adapters import check_targets
from osmotic.plugins.models.options import LocalConfig, device_of, dtype_of
from osmotic.schemas.errors import ConfigError, Problem

COUNTS = ("num_hidden_layers", "num_layers", "encoder_layers", "decoder_layers", "num_decoder_layers")
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt", "tekken.json",
)  # fmt: skip
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
BROKEN = (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, ImportError)  # what transformers raises
REACH = "check the name and the connection; or download it elsewhere and give its directory"
GIVE = "give a directory with config.json, model.safetensors and tokenizer.json, or a name of the hub"


class quiet:  # noqa: N801 - reads as a word where it is used
    """No progress bars, load reports or retries told while a model is loaded; what was set before comes back."""

    def __enter__(self) -> None:
        from huggingface_hub.utils import logging as hub
        from transformers.utils import logging

        self.bars, self.level, self.hub = logging.is_progress_bar_enabled(), logging.get_verbosity(), hub.get_verbosity()
        hub.set_verbosity(ERROR)
        logging.disable_progress_bar()
        logging.set_verbosity_error()

    def __exit__(self, *exc: object) -> None:
        from huggingface_hub.utils import logging as hub
        from transformers.utils import logging

        hub.set_verbosity(self.hub)
        logging.set_verbosity(self.level)
        if self.bars:
            logging.enable_progress_bar()


def load_module(source: str, config: LocalConfig, **options: Any) -> tuple[Any, Any]:
    """(module in eval mode on its device, tokenizer) of a directory or hub name. Raises ConfigError saying what is wrong."""
    from safetensors import SafetensorError

    device = device_of(config)
    refuse_foreign(source, config.weights == "pretrained")
    try:
        with quiet():
            settings = _settings(source, config, options)
            tokenizer = _tokenizer(source, options)
            module = _module(source, settings, config, options)
    except (SafetensorError, *BROKEN) as error:
        raise ConfigError(_cannot(f"the model {source!r}", error, GIVE if Path(source).is_dir() else REACH)) from error
    _check(module, tokenizer, source, config)
    try:
        return module.eval().to(device), tokenizer
    except RuntimeError as error:
        raise ConfigError(_cannot(f"the model {source!r}", error, "device: cpu, or a narrower dtype")) from error


def refuse_foreign(source: str, weights: bool = True) -> None:
    """Raises ConfigError for a directory of adapters, and for one (if it is to have weights) with pickled weights alone."""
    folder = Path(source)
    if (folder / "adapter_config.json").is_file():
        why = "it holds an adapter_config.json, which names another place for the weights"
        fix = "merge the adapters into their model (peft: merge_and_unload) and save that"
        raise ConfigError(Problem(f"{source!r} is a directory of adapters, not a model", why=why, fix=fix))
    pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern)) if folder.is_dir() else []
    if weights and pickled and not any(folder.glob("*.safetensors")):
        why = f"{pickled[0]} is a pickle, which can run code of its maker's"
        fix = "take a version with model.safetensors, or load it where that is safe and save it with save_pretrained"
        raise ConfigError(Problem(f"the model {source!r} cannot be loaded: its weights are not safetensors", why=why, fix=fix))


def whole(found: tuple[Any, dict[str, Any]]) -> Any:
    """A module loaded with output_loading_info. Raises ValueError when a parameter was not in the files (and was drawn)."""
    module, told = found
    names = {name for name, _ in module.named_parameters()}
    missing = sorted(names & set(told["missing_keys"]))
    if missing:
        raise ValueError(f"its files lack {len(missing)} tensors of the architecture, first {missing[0]!r}")
    if getattr(module, "_hf_peft_config_loaded", False):
        raise ValueError("its repository holds adapters, not a model: merge them first")
    return module


def _cannot(what: str, error: Exception, fix: str) -> Problem:
    why = " ".join(str(error).split())
    if "trust_remote_code" in why:
        why, fix = "it needs code from its own repository, which is never run here", "give a model that transformers has itself"
    return Problem(f"{what} cannot be loaded", why=why[:300], fix=fix)


def _settings(source: str, config: LocalConfig, options: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    settings = AutoConfig.from_pretrained(source, trust_remote_code=False, **options)
    masked = _names("MODEL_FOR_MASKED_LM_MAPPING_NAMES", settings) and not settings.is_encoder_decoder
    if masked and not getattr(settings, "is_decoder", False):
        what = f"{source!r} is a masked model ({settings.model_type}): it cannot generate text"
        raise ConfigError(Problem(what, fix="type: transformers-masked, or give a causal or encoder-decoder model"))
    _shorten(settings, config.layers, source)
    return settings


def _names(mapping: str, settings: Any) -> bool:
    from transformers.models.auto import modeling_auto

    return settings.model_type in getattr(modeling_auto, mapping)


def _shorten(settings: Any, layers: int | None, source: str) -> None:
    """Keep the first layers, of both stacks where there are two. Raises ConfigError when there are fewer."""
    if layers is None:
        return
    inner = settings if settings.is_encoder_decoder else settings.get_text_config(decoder=True)
    counts = {key: value for key in COUNTS if isinstance(value := getattr(inner, key, None), int)}
    if not counts:
        raise ConfigError(Problem(f"layers: {layers}, but {source!r} does not say how many it has", path="layers"))
    if layers > min(counts.values()):
        fewest = min(counts.values())
        raise ConfigError(Problem(f"layers: {layers}, but {source!r} has {fewest}", path="layers", fix=f"at most {fewest}"))
    for key in counts:
        setattr(inner, key, layers)
    if getattr(inner, "layer_types", None):
        inner.layer_types = inner.layer_types[:layers]


def _tokenizer(source: str, options: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    folder, fix = Path(source), "put tokenizer.json and tokenizer_config.json beside the model"
    if folder.is_dir() and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ConfigError(Problem(f"the model {source!r} cannot be loaded: it has no tokenizer", fix=fix))
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)
    except BROKEN as error:
        raise ConfigError(_cannot(f"the tokenizer of {source!r}", error, fix)) from error


def _module(source: str, settings: Any, config: LocalConfig, options: dict[str, Any]) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    kind = AutoModelForSeq2SeqLM if settings.is_encoder_decoder else AutoModelForCausalLM
    dtype = getattr(torch, dtype_of(config))
    if config.weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(config.seed)  # the CPU's alone: torch.manual_seed would seed GPUs, too
            return _narrowed(kind.from_config(settings, dtype=torch.float32, trust_remote_code=False), dtype)
    return whole(
        kind.from_pretrained(
            source, config=settings, dtype=dtype, trust_remote_code=False, use_safetensors=True, output_loading_info=True,
            **options,
        )
    )  # fmt: skip


def _narrowed(module: Any, dtype: Any) -> Any:
    """Cast what a saved model holds; what is computed from the configuration (rotations, say) stays as it is."""
    for tensor in module.state_dict(keep_vars=True).values():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
    return module


def _check(module: Any, tokenizer: Any, source: str, config: LocalConfig) -> None:
    if config.chat and not getattr(tokenizer, "chat_template", None):
        raise ConfigError(Problem(f"the tokenizer of {source!r} has no chat template", path="chat", fix="chat: false"))
    if config.chat:
        _try_chat(tokenizer, source)
    rows = int(module.get_input_embeddings().weight.shape[0])
    if tokenizer.vocab_size > rows:
        why = f"the tokenizer has {tokenizer.vocab_size} tokens, the model {rows}"
        raise ConfigError(Problem(f"the tokenizer of {source!r} belongs to another model", why=why, fix=GIVE))
    if tokenizer.eos_token_id is None:
        ends = end_tokens(module)
        if not ends:
            why = "neither the tokenizer nor the configuration names one, so no answer would ever end"
            fix = "set eos_token in tokenizer_config.json"
            raise ConfigError(Problem(f"the model {source!r} has no end token", why=why, fix=fix))
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(min(ends))
    if config.lora is not None:
        check_targets(module, config.lora)


def _try_chat(tokenizer: Any, source: str) -> None:
    """Raises ConfigError when the chat template does not take one turn of the user's."""
    from jinja2 import TemplateError

    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "a"}], add_generation_prompt=True, tokenize=False)
    except (TemplateError, ValueError, TypeError, KeyError) as error:
        what = f"the chat template of {source!r} does not take one turn of the user's"
        raise ConfigError(Problem(what, path="chat", why=" ".join(str(error).split())[:300], fix="chat: false")) from error


def end_tokens(module: Any) -> frozenset[int]:
    """Every token that ends an answer by the settings of generation or of the model."""
    found: set[int] = set()
    for settings in (getattr(module, "generation_config", None), module.config):
        listed = getattr(settings, "eos_token_id", None)
        found.update(i for i in (listed if isinstance(listed, list) else [listed]) if i is not None)
    return frozenset(found)
