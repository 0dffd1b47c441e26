"""From `cfg.teacher.name` to a teacher."""

import torch
from omegaconf import DictConfig

from src.core.data_utils import SequenceDataset
from src.core.errors import UserError
from src.core.paths import RunFolder
from src.core.settings import parse_section
from src.core.teacher_files import ChosenRows
from src.teacher.config import TeacherConfig
from src.teacher.ilora_backend import ILoRATeacher
from src.teacher.interfaces import ITeacherRecommender

BACKENDS = {"ilora": ILoRATeacher, "ilora_tiny": ILoRATeacher}


def build_teacher(
    cfg: DictConfig,
    dataset: SequenceDataset,
    folder: RunFolder,
    device: torch.device,
    rows: ChosenRows | None = None,
) -> ITeacherRecommender:
    """The teacher that `cfg.teacher.name` names, which will export `rows` (None: all).

    Raises:
        UserError: unknown name, or settings out of range.
    """
    if cfg.teacher.name not in BACKENDS:
        raise UserError(f"teacher.name={cfg.teacher.name}: must be one of {', '.join(BACKENDS)}")
    settings = parse_section(TeacherConfig, cfg.teacher, "teacher")
    return BACKENDS[cfg.teacher.name](settings, dataset, folder, device, rows)
