"""Networks that turn the frames of a snippet into a vector: any model of transformers, or an ONNX file.

Both classes have the same face:
    looked_at           frames of a snippet that the network needs, None where any number does (their vectors are
                        averaged then)
    prepare(frame)      uint8 [H, W, 3] -> float32 [3, h, w], or uint8, as the network wants it
    vectors(batch)      [n, frames, 3, h, w] -> float32 [n, C]
    description         what features.json says of it
"""
import contextlib
import glob
import hashlib
import inspect
import os
from typing import Any

import numpy as np

from bmn.errors import UserError, first_line
from bmn.inputs import check_input, open_input
from bmn.parallel import processors
from bmn.values import counted
from bmn.video.packages import package

PREPROCESSOR = "preprocessor_config.json"
WEIGHTS = ("*.safetensors", "*.bin", "*.json")
MEAN, STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def open_backbone(name: str, device: Any, threads: int, mean: list | None = None, std: list | None = None) -> Any:
    """The backbone of --backbone.

    Args:
        name: a folder that transformers' save_pretrained wrote, the name of a model on the Hugging Face Hub, or an
            ONNX file.
        device: torch.device on which it computes.
        threads: of ONNX Runtime on a CPU.
        mean, std: normalisation of the pictures for an ONNX file, three numbers each; None: as they are, from 0 to 1.

    Raises:
        UserError: it cannot be loaded, or is no network for pictures.
    """
    if name.endswith(".onnx"):
        return OnnxBackbone(name, threads, mean, std)
    if mean or std:
        raise UserError("--mean and --std are for ONNX files, and --backbone %s says itself how its pictures are "
                        "normalised: leave them out" % name)
    return TransformersBackbone(name, device)


def share_processors(kind: str) -> tuple[int, int]:
    """(threads that decode, threads that compute) on a device of this kind, so that neither waits for the other."""
    rest = max(1, processors() - 1)
    return (1, rest) if kind == "cpu" else (rest, 1)


class TransformersBackbone:
    """A model of transformers, with the preprocessing that was saved with it. Arguments: :func:`open_backbone`."""

    def __init__(self, name: str, device: Any):
        self._torch = package("torch", "a backbone")
        library = package("transformers", "--backbone %s" % name)
        package("PIL", "--backbone %s" % name)
        library.logging.set_verbosity_error()
        library.logging.disable_progress_bar()
        self.device = device
        if not os.path.isdir(name) and (os.path.isabs(name) or name.count("/") != 1):
            raise UserError("--backbone %s is neither a folder nor a .onnx file, nor a name like MCG-NJU/"
                            "videomae-base: give one of these" % name)
        with _sentences(name, library):
            self.processor = _processor(name, library)
            model, info = library.AutoModel.from_pretrained(
                name, output_loading_info=True, dtype=self._torch.float32)
        self._refuse_random_weights(name, info)
        self.model = model.eval().to(device)
        self._input = "pixel_values_videos" if model.main_input_name == "pixel_values_videos" else "pixel_values"
        vision = getattr(model.config, "vision_config", None) or model.config
        self.looked_at = getattr(vision, "num_frames", None) or getattr(vision, "frames_per_clip", None)
        sample = self.prepare(np.zeros((48, 64, 3), np.uint8))
        with _sentences(name, library):
            size = self.vectors(np.zeros((1, self.looked_at or 1, *sample.shape), np.float32)).shape[1]
        self.description = {
            "backbone": os.path.abspath(name) if os.path.isdir(name) else name,
            "version": _digest(name) if os.path.isdir(name) else getattr(model.config, "_commit_hash", None),
            "network": type(model).__name__, "vector": self._vector, "size": size, "input": list(sample.shape),
            "normalisation": _plain(self.processor.to_dict()), "made_with": "transformers " + library.__version__}

    def _refuse_random_weights(self, name, info):
        """What the file lacks, transformers fills with random numbers. Only a pooler may lack: it is left out then."""
        lacking = sorted(set(info["missing_keys"]) | {key for key, *_ in info.get("mismatched_keys", ())})
        self._pooled = not any("pooler" in key or "pooling" in key for key in lacking)
        if any("pooler" not in key and "pooling" not in key for key in lacking):
            raise UserError("--backbone %s lacks %s of its network (such as %s), which would be random: give a "
                            "complete one" % (name, counted(len(lacking), "weight"), lacking[0]))

    def prepare(self, frame: np.ndarray) -> np.ndarray:
        """float32 [3, h, w] of a frame, uint8 [H, W, 3]."""
        values = self.processor([frame], return_tensors="np")
        values = np.asarray(next(iter(values.values())), np.float32)
        return values.reshape(values.shape[-3:])

    def vectors(self, batch: np.ndarray) -> np.ndarray:
        """float32 [n, C] of [n, frames, 3, h, w]."""
        torch = self._torch
        pixels = torch.from_numpy(batch).to(self.device)
        with torch.inference_mode():
            if self.looked_at:
                found = self._run(pixels)
            else:
                found = self._run(pixels.flatten(0, 1)).unflatten(0, batch.shape[:2]).mean(1)
            return found.float().cpu().numpy()

    def _run(self, pixels):
        model = self.model
        for name in ("get_video_features", "get_image_features"):
            if hasattr(model, name) and (name == "get_video_features") == bool(self.looked_at):
                self._vector = name
                found = getattr(model, name)(pixels)
                return found if isinstance(found, self._torch.Tensor) else found.pooler_output
        more = {"skip_predictor": True} if "skip_predictor" in inspect.signature(model.forward).parameters else {}
        found = model(**{self._input: pixels}, **more)
        pooled = getattr(found, "pooler_output", None)
        if pooled is not None and self._pooled:
            self._vector = "pooler_output"
            return pooled.flatten(1)
        self._vector = "mean of last_hidden_state"
        last = found.last_hidden_state
        return last.flatten(2).mean(2) if last.dim() == 4 else last.mean(1)     # [n, C, h, w] or [n, tokens, C]


class OnnxBackbone:
    """A network in an ONNX file: one input of frames, and the first output a vector. Arguments: :func:`open_backbone`.

    The input has four axes (a picture) or five (a snippet). The one of length 3 is that of the colours. Pictures are
    scaled so that they fill height and width, the middle is cut out, and they are normalised: (value / 255 - mean) /
    std. An input of bytes gets the bytes.
    """

    def __init__(self, path: str, threads: int, mean: list | None, std: list | None):
        runtime = package("onnxruntime", "--backbone %s" % path)
        self._image = package("PIL.Image", "--backbone %s" % path)
        check_input(path, "--backbone")
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        try:
            self.session = runtime.InferenceSession(path, options, providers=runtime.get_available_providers())
        except Exception as error:      # its exceptions have no common class
            raise UserError("--backbone %s is no ONNX file that onnxruntime %s can run (%s)"
                            % (path, runtime.__version__, first_line(error)[:200])) from None
        inputs = self.session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) not in (4, 5) or inputs[0].type not in _TYPES:
            raise UserError("--backbone %s takes %s, but a backbone takes one array of pictures: [n, 3, h, w] or "
                            "[n, frames, 3, h, w]" % (path, ", ".join(
                                "%s %s %s" % (one.name, one.type, one.shape) for one in inputs)))
        self.path, self.name, shape = path, inputs[0].name, list(inputs[0].shape)
        self.type, self.batch = _TYPES[inputs[0].type], shape[0] if isinstance(shape[0], int) else None
        self.axes, frames, self.height, self.width = _axes(path, shape)
        self.looked_at = frames if len(shape) == 5 else None
        if self.type == np.uint8 and (mean or std):
            raise UserError("--backbone %s takes bytes, so --mean and --std mean nothing to it: leave them out" % path)
        self.mean = np.array(mean or MEAN, np.float32)[:, None, None]
        self.std = np.array(std or STD, np.float32)[:, None, None]
        sample = np.zeros((1, self.looked_at or 1, 3, self.height, self.width), np.float32)
        self.description = {
            "backbone": os.path.abspath(path), "version": _digest(path), "network": "ONNX", "vector":
            self.session.get_outputs()[0].name, "size": self.vectors(sample).shape[1],
            "input": [3, self.height, self.width], "normalisation":
            {"mean": self.mean.ravel().tolist(), "std": self.std.ravel().tolist(), "bytes": self.type == np.uint8},
            "made_with": "onnxruntime " + runtime.__version__}

    def prepare(self, frame: np.ndarray) -> np.ndarray:
        """[3, h, w] of a frame, uint8 [H, W, 3]: float32, or uint8 where the network takes bytes."""
        scale = max(self.height / frame.shape[0], self.width / frame.shape[1])
        high, wide = (max(least, round(scale * length)) for least, length in
                      zip((self.height, self.width), frame.shape[:2], strict=True))
        resized = np.asarray(self._image.fromarray(frame).resize((wide, high), self._image.Resampling.BILINEAR))
        top, left = (high - self.height) // 2, (wide - self.width) // 2
        cut = resized[top:top + self.height, left:left + self.width].transpose(2, 0, 1)
        if self.type == np.uint8:
            return np.ascontiguousarray(cut)
        return (cut.astype(np.float32) / 255 - self.mean) / self.std

    def vectors(self, batch: np.ndarray) -> np.ndarray:
        """float32 [n, C] of [n, frames, 3, h, w]."""
        if self.looked_at:
            return self._run(batch)
        found = self._run(batch.reshape(-1, *batch.shape[2:]))
        return found.reshape(len(batch), batch.shape[1], -1).mean(1)

    def _run(self, pictures):
        pictures = pictures.transpose(self.axes).astype(self.type)
        size, found = self.batch or len(pictures), []
        for first in range(0, len(pictures), size):
            part = pictures[first:first + size]
            filled = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
            try:
                output = np.asarray(self.session.run(None, {self.name: np.ascontiguousarray(filled)})[0])
            except Exception as error:
                raise UserError("--backbone %s cannot compute pictures of shape %s (%s)"
                                % (self.path, list(filled.shape), first_line(error)[:200])) from None
            if len(output) != size or output.size // size != max(output.shape[1:], default=0):
                raise UserError("--backbone %s gives an array of shape %s for %s, but a backbone gives a "
                                "vector for each: export its pooled output"
                                % (self.path, list(output.shape), counted(size, "snippet")))
            found.append(output.reshape(size, -1)[:len(part)].astype(np.float32))
        return np.concatenate(found)


_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64,
          "tensor(uint8)": np.uint8}


def _axes(path, shape):
    """(order of the axes of [n, frames, 3, h, w] or [n, 3, h, w] in the input, frames, h, w)"""
    inner = shape[1:]
    colours = [axis for axis, length in enumerate(inner) if length == 3]
    allowed = (0, 2) if len(inner) == 3 else (0, 1, 3)
    if len(colours) != 1 or colours[0] not in allowed:
        raise UserError("--backbone %s takes arrays of shape %s, in which one axis of length 3 must be that of the "
                        "colours: export it as [n, 3, h, w] or [n, frames, 3, h, w]" % (path, shape))
    rest = inner[:colours[0]] + inner[colours[0] + 1:]
    if not all(isinstance(length, int) and length > 0 for length in rest):
        raise UserError("--backbone %s takes arrays of shape %s, but the number of frames, height and width must be "
                        "fixed: export it with fixed sizes" % (path, shape))
    if len(inner) == 3:
        return ((0, 1, 2, 3) if colours[0] == 0 else (0, 2, 3, 1)), 1, rest[0], rest[1]
    order = {0: (0, 2, 1, 3, 4), 1: (0, 1, 2, 3, 4), 3: (0, 1, 3, 4, 2)}[colours[0]]
    return order, rest[0], rest[1], rest[2]


def _processor(name, library):
    """The preprocessing of a model, in NumPy and Pillow where there is the choice: it needs no further package."""
    try:
        return library.AutoImageProcessor.from_pretrained(name, backend="pil")
    except (OSError, ValueError, ImportError):
        return library.AutoVideoProcessor.from_pretrained(name)


@contextlib.contextmanager
def _sentences(name, library):
    """Errors of transformers as one sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:          # damaged files can end in any exception
        raise UserError("--backbone %s cannot be used with transformers %s (%s): give the folder of a model for "
                        "pictures or videos, with its weights and its %s"
                        % (name, library.__version__, first_line(error)[:200], PREPROCESSOR)) from None


def _digest(path):
    """SHA-256 of a file, or of the weights and settings in a folder: the version of a network that has no other."""
    if os.path.isdir(path):
        files = sorted({file for kind in WEIGHTS for file in glob.glob(os.path.join(glob.escape(path), kind))})
    else:
        files = [path]
    digest = hashlib.sha256()
    for file in files:
        with open_input(file, "--backbone") as handle:
            for block in iter(lambda: handle.read(1 << 20), b""):
                digest.update(block)
    return digest.hexdigest()[:16]


def _plain(settings):
    """Settings that JSON can hold."""
    return {key: value for key, value in sorted(settings.items())
            if not key.startswith("_") and isinstance(value, (str, int, float, bool, list, tuple, dict))}
