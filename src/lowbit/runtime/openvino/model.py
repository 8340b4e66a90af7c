"""A compiled OpenVINO graph in the clothes of the transformers model that it was made of."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from lowbit.errors import DataError, MissingExtraError, UnsupportedModelError

# Arguments that may be given without effect on what is computed.
_IGNORED = ("use_cache", "output_attentions", "output_hidden_states")


@dataclass(frozen=True)
class Signature:
    """What a compiled graph was made of: model class, its output class, names of inputs and outputs,
    whether its products fit machines that saturate, and the fingerprint of the model's weights."""

    model_class: str
    output_class: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    spares: bool
    fingerprint: str


class OpenVinoModel:
    """Runs a compiled graph; mixed into a subclass of the model's own class, of which it has no modules."""

    def __init__(self, config: PreTrainedConfig, graph: Any, signature: Signature) -> None:
        torch.nn.Module.__init__(self)  # type: ignore[arg-type]
        self.config, self.graph, self.signature = config, graph, signature
        self.generation_config = None
        self.training = False
        self.threads = torch.get_num_threads()
        self._request = compile_graph(graph, self.threads).create_infer_request()
        self._lock = threading.Lock()
        self._output: type[ModelOutput] = output_class(type(self).__mro__[2], signature.output_class)
        self._parameters_of_forward = inspect.signature(type(self).forward)

    @property
    def device(self) -> torch.device:
        """Always the CPU."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the outputs."""
        return torch.float32

    def forward(self, *args: Any, **kwargs: Any) -> ModelOutput | tuple[torch.Tensor, ...]:
        """The arguments of the model's own forward; what the graph cannot do raises UnsupportedModelError.

        Outputs are float32 tensors of their own memory. An empty batch gives empty outputs, a length of 0 raises
        DataError.
        """
        given = dict(self._parameters_of_forward.bind(self, *args, **kwargs).arguments)
        given.pop("self")
        given |= given.pop("kwargs", {})
        as_mapping = given.pop("return_dict", None)
        feed = {name: given.pop(name, None) for name in self.signature.inputs}
        refused = sorted(
            k for k, v in given.items() if v is not None and not (k in _IGNORED and (not v or k == "use_cache"))
        )
        if refused:
            raise UnsupportedModelError(
                f"the OpenVINO layout takes {', '.join(self.signature.inputs)}, not {', '.join(refused)}; "
                "use the unprepared model for that"
            )
        tensors = self._infer(_complete(feed))
        if as_mapping is False:
            return tuple(tensors.values())
        return self._output(**tensors)

    def _infer(self, feed: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        rows = feed["input_ids"].shape[0]
        if rows == 0:  # OpenVINO computes nothing of no rows, not even shapes
            feed = {name: torch.ones(1, *tensor.shape[1:], dtype=torch.int64) for name, tensor in feed.items()}
        with self._lock:
            self._request.infer({name: tensor.numpy() for name, tensor in feed.items()}, share_inputs=True)
            found = {name: self._request.get_tensor(name).data.copy() for name in self.signature.outputs}
        return {name: torch.from_numpy(value)[: rows if rows == 0 else None] for name, value in found.items()}

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """The model itself for the CPU; another device or dtype raises UnsupportedModelError."""
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if (device is not None and device.type != "cpu") or dtype not in (None, torch.float32):
            raise UnsupportedModelError("the OpenVINO layout runs on the CPU in its own precision; use it as it is")
        return self

    def train(self, mode: bool = True) -> Any:
        """The model itself for ``mode`` False; training raises UnsupportedModelError."""
        if mode:
            raise UnsupportedModelError("the OpenVINO layout cannot be trained; train the unprepared model")
        return self

    def save_pretrained(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises UnsupportedModelError: there are no weights to save."""
        raise UnsupportedModelError("a compiled model is saved with `save_openvino(model, folder)`")

    def extra_repr(self) -> str:
        """Inputs and outputs, as ``print(model)`` shows them."""
        return f"OpenVINO, {', '.join(self.signature.inputs)} -> {', '.join(self.signature.outputs)}"


def wrap(model_class: type[PreTrainedModel], config: PreTrainedConfig, graph: Any, signature: Signature) -> Any:
    """A model of a subclass of ``model_class`` with the same name and forward signature that runs ``graph``."""
    body = {"__module__": model_class.__module__, "__doc__": model_class.__doc__}
    made: Any = type(model_class.__name__, (OpenVinoModel, model_class), body)
    made.forward = _signed(made.forward, model_class)
    return made(config, graph, signature).eval()


def compile_graph(graph: Any, threads: int, *, exact: bool = False) -> Any:
    """Compile for single requests at a time on ``threads`` threads.

    What is not in int8 runs in bfloat16 where the processor multiplies it, as OpenVINO likes best, and in float32
    elsewhere or where ``exact``.
    """
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    if exact:
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    return core().compile_model(graph, "CPU", settings)


def core() -> Any:
    """OpenVINO; raises MissingExtraError where it is not installed."""
    try:
        import openvino
    except ImportError as error:
        raise MissingExtraError("the OpenVINO backend needs OpenVINO: pip install 'lowbit[openvino]'") from error
    return openvino.Core()


def output_class(model_class: type[PreTrainedModel], name: str) -> type[ModelOutput]:
    """The output class ``name`` of a model class: a common one, or one from the class's own file."""
    for module in (transformers.modeling_outputs, inspect.getmodule(model_class)):
        found = getattr(module, name, None)
        if inspect.isclass(found) and issubclass(found, ModelOutput):
            return found
    raise UnsupportedModelError(f"{model_class.__name__} has no output class {name!r}; update transformers")


def _signed(forward: Any, model_class: type[PreTrainedModel]) -> Any:
    """``forward`` with the signature of the model's own, by which pipelines choose the inputs."""

    def signed(self: Any, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs)

    signed.__signature__ = inspect.signature(model_class.forward)  # type: ignore[attr-defined]
    signed.__doc__ = forward.__doc__
    return signed


def _complete(feed: Mapping[str, torch.Tensor | None]) -> dict[str, torch.Tensor]:
    """The inputs as int64 [batch, length] tensors; a missing mask means no padding, missing types are 0."""
    ids = feed["input_ids"]
    if ids is None:
        raise DataError("the OpenVINO layout needs input_ids [batch, length]")
    if ids.dim() != 2 or ids.shape[1] == 0:
        raise DataError(f"input_ids must be [batch, length] with a length of at least 1, not {list(ids.shape)}")
    whole = {}
    for name, tensor in feed.items():
        if tensor is None:
            tensor = torch.ones_like(ids) if name == "attention_mask" else torch.zeros_like(ids)
        if tensor.shape != ids.shape:
            raise DataError(f"{name} is {list(tensor.shape)}, input_ids is {list(ids.shape)}; they must agree")
        whole[name] = tensor.to(torch.int64).contiguous()
    return whole
