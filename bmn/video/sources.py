"""Features that are computed when they are asked for: video files in the place of feature files."""
from typing import Any

import numpy as np

from bmn import extracted
from bmn.errors import UserError
from bmn.extracted import Length
from bmn.progress import Progress
from bmn.video import backbones, extraction
from bmn.video.extraction import Recipe, Sampling


def recipe_of(checkpoint: str, backbone: str | None, device: Any, kind: str) -> Recipe:
    """How the features of a checkpoint's network were made, ready to make more of them.

    Args:
        checkpoint: the file beside which features.json lies.
        backbone: where the backbone is by now, None: where features.json says.
        device, kind: torch.device, and its kind.

    Raises:
        UserError: there is no features.json, or the backbone is missing or another one.
    """
    path = extracted.find_description(checkpoint)
    if path is None:
        raise UserError("there is no %s beside --checkpoint %s, so nobody knows which backbone made the features of "
                        "its network: copy the one of its features there, or give features instead of videos"
                        % (extracted.DESCRIPTION, checkpoint))
    known = extracted.read_description(path)
    decoders, computing = backbones.share_processors(kind)
    name = backbone or known["backbone"]
    colours = known.get("normalisation", {}) if name.endswith(".onnx") else {}
    mean, std = (None, None) if colours.get("bytes") else (colours.get("mean"), colours.get("std"))
    try:
        opened = backbones.open_backbone(name, device, computing, mean, std)
    except UserError as error:
        if backbone:
            raise
        raise UserError("%s names the backbone, but %s; or give --backbone" % (path, error)) from None
    sampling = Sampling(known["snippet_frames"], known["snippet_stride"], known.get("fps"))
    looked_at = None if opened.looked_at else known.get("frames_looked_at")
    recipe = Recipe.of(opened, sampling, looked_at, 8, decoders)
    other = extraction.difference(known, recipe.description())
    if other:
        raise UserError("--backbone %s is not the one that made the features of %s (%s): give that one"
                        % (name, checkpoint, other))
    return recipe


class VideoFeatures:
    """Features of video files, computed at the beginning, with the face of a folder of features.

    Args:
        path: a video or a folder of them.
        recipe: how.
        log: called with one line at a time.

    Attributes:
        lengths: {name: Length}; files: {name: path} of the videos; flaws: a sentence for each that cannot be used.

    Raises:
        UserError: there are no videos, or none can be used.
    """

    def __init__(self, path: str, recipe: Recipe, log: Any = print):
        self.path, self.lengths, self.flaws = path, {}, []
        self._rows: dict[str, np.ndarray] = {}
        self.files = extraction.find_videos(path)
        with Progress("extracting", len(self.files), "video", log=log, per_minute=True) as bar:
            for name, found in extraction.features_of(self.files, recipe):
                if isinstance(found, UserError):
                    self.flaws.append(str(found))
                else:
                    self._rows[name], self.lengths[name] = found.rows, found.length
                    if found.remark:
                        log("video %s: %s" % (self.files[name], found.remark))
                bar.add()
        if not self._rows:
            raise UserError(self.flaws[0])

    def names(self) -> dict[str, Length]:
        """{name: Length} of the videos that have features."""
        return self.lengths

    def __contains__(self, name: str) -> bool:
        return name in self._rows

    def table(self, name: str) -> tuple[np.ndarray, bool]:
        """(float32 [snippets, C], True: the rows are time) of a video."""
        return self._rows[name], True
