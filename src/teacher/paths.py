"""Where a teacher's models lie."""

from dataclasses import dataclass
from pathlib import Path

from src.core.paths import WEIGHTS_FILE as RECOMMENDER_WEIGHTS
from src.core.paths import project_path
from src.teacher.adapter.adapter_file import WEIGHTS_FILE as ADAPTER_WEIGHTS
from src.teacher.config import TeacherConfig
from src.teacher.llm.folder import llm_name


@dataclass(frozen=True)
class TeacherPaths:
    """The models that a teacher makes or is given.

    Attributes:
        root: `models/teacher` of the run folder, for what it makes.
        config: says where the given ones lie.
        given_llm: folder of the LM that `teacher.llm_path` names (`llm.hub.find_llm`); None where it is built here.
    """

    root: Path
    config: TeacherConfig
    given_llm: Path | None = None

    @property
    def adapter(self) -> Path:
        return self.root / "adapter"

    @property
    def adapter_weights(self) -> Path:
        return self.adapter / ADAPTER_WEIGHTS

    @property
    def shards(self) -> Path:
        """Of exports that are not finished."""
        return self.root / "shards"

    @property
    def llm(self) -> Path:
        """Hugging Face folder of the base LM."""
        return self.given_llm or self.root / "llm"

    @property
    def base_model(self) -> str:
        """A name of the base LM for people."""
        return "ilora_tiny" if self.config.tiny is not None else llm_name(self.llm)

    @property
    def recommender(self) -> Path:
        """Folder of a student checkpoint, or upstream's pickled file."""
        given = self.config.rec_model_path
        return self.root / "recommender" if given is None else project_path(given)

    @property
    def recommender_weights(self) -> Path:
        return self.recommender if self.recommender.is_file() else self.recommender / RECOMMENDER_WEIGHTS

    @property
    def initial_adapter_weights(self) -> Path | None:
        """Of `teacher.init_adapter`, an adapter's folder or a checkpoint of iLoRA's training."""
        if self.config.init_adapter is None:
            return None
        given = project_path(self.config.init_adapter)
        return given / ADAPTER_WEIGHTS if given.is_dir() else given
