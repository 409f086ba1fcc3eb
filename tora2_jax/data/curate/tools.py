"""What a worker loads once: networks and tables, as the config names them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tora2_jax.config.curate import CurateConfig
from tora2_jax.data.curate import shots
from tora2_jax.data.curate.annotate import captions, masks, tracks, words
from tora2_jax.data.curate.annotate.language_model import LanguageModel
from tora2_jax.data.curate.text_area import TextFinder
from tora2_jax.errors import MessageError


class ToolError(MessageError):
    """Something that the config names is not there; lists all of it."""


class Tools(NamedTuple):
    """Everything that the stages call.

    Attributes:
        shots: finds cuts; None: a video is one shot.
        cuts: given ones, which go first.
        caption_table: captions by name; None: those beside the videos.
        captioner: writes captions; None: they are read.
        words: finds subjects.
        masks: finds their masks.
        tracker: follows them.
        text: finds text; None: that filter is off.
        missing: by filter, why it cannot be measured.
    """

    shots: shots.ShotFinder | None
    cuts: shots.GivenCuts | None
    caption_table: captions.CaptionTable | None
    captioner: captions.Captioner | None
    words: words.WordFinder
    masks: masks.MaskFinder
    tracker: tracks.Tracker
    text: TextFinder | None
    missing: dict[str, str]


def load_tools(config: CurateConfig) -> Tools:
    """Loads what the config names.

    Raises:
        ToolError: lists everything that is not there.
    """
    problems: list[str] = []

    def made(field: str, make: Callable):
        try:
            return make()
        except (MessageError, words.WordError, ImportError) as error:
            problems.append(f"{field}: {error}")
            return None

    by_network = config.shots == "transnet"
    finder = made("shots", shots.TransNet) if by_network else None
    table_of_cuts = config.cuts
    cuts = None
    if table_of_cuts is not None:
        cuts = made("cuts", lambda: shots.GivenCuts(Path(table_of_cuts)))
    table = None
    if config.captions == "table":
        table = made("caption_table", lambda: _caption_table(config))
    model = LanguageModel(
        config.language_model.address, config.language_model.model, _key(config, problems)
    )
    captioner = None
    if config.captions == "language_model":
        captioner = captions.LanguageModelCaptions(model)
    finds = words.LanguageModelWords(model)
    if config.words == "spacy":
        finds = made("words", words.SpacyWords)
    mask_finder = masks.MotionMasks()
    if config.mask_finder == "files":
        mask_finder = made("mask_folder", lambda: _file_masks(config))
    text = made("text_finder", TextFinder) if config.text_finder == "rapidocr" else None
    if problems:
        raise ToolError("the config names what is not there:\n  " + "\n  ".join(problems))
    tracker = tracks.LucasKanade()
    missing = missing_filters(config)
    return Tools(finder, cuts, table, captioner, finds, mask_finder, tracker, text, missing)


def missing_filters(config: CurateConfig) -> dict[str, str]:
    """By filter, why it cannot be measured with these settings."""
    missing = {"aesthetic": "its predictor is not there yet"}
    return missing | ({"text": "text_finder is none"} if config.text_finder == "none" else {})


def _caption_table(config: CurateConfig) -> captions.CaptionTable:
    if config.caption_table is None:
        raise ToolError("captions are to come from a table, and none is named")
    return captions.CaptionTable(Path(config.caption_table))


def _file_masks(config: CurateConfig) -> masks.FileMasks:
    if config.mask_folder is None or not Path(config.mask_folder).is_dir():
        raise ToolError(f"{config.mask_folder} is no folder of masks")
    return masks.FileMasks(Path(config.mask_folder))


def _key(config: CurateConfig, problems: list[str]) -> str | None:
    variable = config.language_model.key_variable
    if variable is None:
        return None
    if variable not in os.environ:
        problems.append(f"language_model.key_variable: the environment has no {variable}")
    return os.environ.get(variable)
