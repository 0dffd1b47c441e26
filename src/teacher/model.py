"""The assembled teacher."""

from dataclasses import dataclass

from src.core.data_utils import SequenceDataset
from src.teacher.adapter.prompted_lm import PromptedLM
from src.teacher.config import TeacherConfig
from src.teacher.prompt.builder import PromptBuilder
from src.teacher.recommender import FrozenRecommender


@dataclass(frozen=True, kw_only=True)
class TeacherModel:
    """A teacher that can read rows of a data set: what training, evaluation and export share.

    Attributes:
        lm: reads batches of prompts.
        builder: makes prompts of rows.
        recommender: gives the users' representations, which the gates come from, and candidates.
    """

    lm: PromptedLM
    builder: PromptBuilder
    recommender: FrozenRecommender
    dataset: SequenceDataset
    config: TeacherConfig
