"""From `teacher.name` to a teacher."""

import torch

from src.core.data_utils import SequenceDataset
from src.core.errors import UserError
from src.core.paths import RunFolder
from src.core.teacher_files import ChosenRows
from src.teacher.ilora_backend import ILoRATeacher
from src.teacher.interfaces import ITeacherRecommender, Settings

BACKENDS = dict.fromkeys(("ilora", "ilora_small", "ilora_tiny"), ILoRATeacher)


def build_teacher(
    cfg: Settings,
    *,
    dataset: SequenceDataset,
    folder: RunFolder,
    device: torch.device,
    rows: ChosenRows | None = None,
) -> ITeacherRecommender:
    """The teacher that `teacher.name` names, which will export `rows` (None: all).

    Raises:
        UserError: unknown name, or settings that do not fit the data set.
    """
    name = cfg.teacher.name
    if name not in BACKENDS:
        raise UserError(f"teacher.name={name}: must be one of {', '.join(BACKENDS)}")
    return BACKENDS[name](cfg.teacher, dataset=dataset, folder=folder, device=device, rows=rows)
