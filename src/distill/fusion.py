"""Embedding distillation inside the model, and its removal after training.

Three ways in: `fuse` (DLLM2Rec), `residual` (text stays fixed, learnt ID vectors are added; AlphaFuse, arXiv
2504.19218, learns them in the text's null space), and `init` (tables start from text, as in LLMInit). The student that
is kept is a plain one, whichever was taken.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.core.errors import UserError
from src.student.models import ItemEmbedding, Student


def make_projection(llm_dim: int, emb_size: int, generator: torch.Generator, zero: bool = False) -> nn.Linear:
    """A linear map from the teacher's space to the student's, PyTorch's default initialisation.

    It draws from its own generator, so that the run's random stream is that of a run without a teacher.
    `zero` starts it at zero: a student that starts from a checkpoint then starts exactly there.
    """
    projection = nn.utils.skip_init(nn.Linear, llm_dim, emb_size)
    bound = 0.0 if zero else llm_dim**-0.5
    nn.init.uniform_(projection.weight, -bound, bound, generator=generator)
    nn.init.uniform_(projection.bias, -bound, bound, generator=generator)
    return projection


_SMALLEST_VARIANCE = 1e-10  # relative to the largest: below it, float32 embeddings hold rounding noise
_ID_START = 1e-3  # deviation of the ID vectors that `residual` adds: small beside text of length 1


def whiten(embeddings: Tensor, dims: int, *, fill: bool = False) -> Tensor:
    """Centred, the `dims` directions of most variance, each with variance 1, and then every row of length 1.

    Raw states of an LLM share one large direction and differ in many small ones; whitened, all of them count.

    Args:
        embeddings: float [num_items, llm_dim].
        fill: where they vary in fewer directions, but in one at least, zeros stand in the other columns.

    Returns:
        float32 [num_items, dims]; an item exactly at the centre stays 0.

    Raises:
        UserError: the embeddings vary in fewer directions.
    """
    centred = embeddings.double()
    centred = centred - centred.mean(0)
    variance, directions = torch.linalg.eigh(centred.T @ centred / len(centred))  # ascending
    rank = int((variance > _SMALLEST_VARIANCE * variance[-1].clamp(min=torch.finfo(torch.float64).tiny)).sum())
    kept = min(dims, rank) if fill and rank else dims
    if kept > rank:
        raise UserError(
            f"distill.embedding_dims={dims}: the teacher's embeddings of {len(embeddings)} items vary in {rank} "
            f"directions only{' (are all titles equal?)' if rank < 2 else ''}; at most {rank} dimensions can be "
            "whitened (with distill.embedding=residual or init also lower student.emb_size), or take "
            "distill.embedding_transform=none"
        )
    scale = directions[:, -kept:].flip(1) / variance[-kept:].flip(0).sqrt()
    return F.pad(F.normalize(centred @ scale, dim=1).float(), (0, dims - kept))


_CHUNK = 4096  # rows of the teacher's table that are made float32 at a time


class TeacherTable:
    """The teacher's item embeddings, [num_items, llm_dim], where and as `distill.teacher_table` says.

    `float32` and `bfloat16` lie on the training device; `cpu` keeps float32 in main memory and moves the rows of a
    batch. It is no module: neither checkpoints nor `model.to(...)` touch it.
    """

    def __init__(self, embeddings: Tensor, kind: str, device: torch.device) -> None:
        dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
        self.embeddings = embeddings.to("cpu" if kind == "cpu" else device, dtype)
        self.device = device

    def __len__(self) -> int:
        return len(self.embeddings)

    @property
    def width(self) -> int:
        return self.embeddings.shape[1]

    @property
    def near(self) -> bool:
        return self.embeddings.device.type == self.device.type

    def rows(self, items: Tensor) -> Tensor:
        """Item ids int64 [...] -> float32 [..., llm_dim] on the training device."""
        flat = items.flatten().to(self.embeddings.device)
        rows = self.embeddings.index_select(0, flat)  # on a CPU twice as fast as indexing
        return rows.unflatten(0, items.shape).to(self.device, torch.float32)

    def project(self, projection: nn.Linear) -> Tensor:
        """All items projected: float32 [num_items, emb_size]; never more than a chunk in float32 beside the table."""
        if self.near and self.embeddings.dtype == torch.float32:
            return projection(self.embeddings)
        chunks = self.embeddings.split(_CHUNK)
        return torch.cat([projection(chunk.to(self.device, torch.float32)) for chunk in chunks])


class FusedItemEmbedding(nn.Module):
    """Item embedding + ed_weight * projected teacher embedding (upstream's fusion).

    Each item of a batch is projected once, or the whole table where that is smaller; the windows are looked up in the
    sum, so no [B, L, llm_dim] tensor exists.
    """

    def __init__(self, items: ItemEmbedding, teacher: TeacherTable, projection: nn.Linear, ed_weight: float) -> None:
        super().__init__()
        self.items = items
        self.projection = projection
        self.ed_weight = ed_weight
        self.teacher = teacher

    def table(self) -> Tensor:
        """The table in use: float [num_items + 1, emb_size]; the padding row gets the bias, as upstream."""
        projected = torch.cat([self.teacher.project(self.projection), self.projection.bias[None]])
        return self.items.weight + self.ed_weight * projected

    def forward(self, ids: Tensor) -> Tensor:
        num_items = len(self.teacher)
        if 2 * num_items <= ids.numel() and self.teacher.near:
            return F.embedding(ids, self.table())
        used, place = ids.unique(return_inverse=True)  # [U], [B, L]
        known = self.teacher.rows(used.clamp(max=num_items - 1))  # [U, llm_dim]
        projected = F.linear(known, self.projection.weight) * (used < num_items)[:, None] + self.projection.bias
        return F.embedding(place, self.items(used) + self.ed_weight * projected)


class ResidualItemEmbedding(nn.Module):
    """Item embedding = ed_weight * the teacher's, which stays as it is, + a learnt ID vector that starts near 0."""

    text: Tensor

    def __init__(self, items: ItemEmbedding, text: Tensor, ed_weight: float, generator: torch.Generator) -> None:
        super().__init__()
        self.items = items
        nn.init.normal_(items.weight, 0.0, _ID_START, generator=generator)
        padded = torch.cat([ed_weight * text, text.new_zeros(1, text.shape[1])])
        self.register_buffer("text", padded, persistent=False)  # [num_items + 1, emb_size]

    def table(self) -> Tensor:
        """The table in use: float [num_items + 1, emb_size]."""
        return self.items.weight + self.text

    def forward(self, ids: Tensor) -> Tensor:
        return self.items(ids) + F.embedding(ids, self.text)


def add_ids_to_text(model: Student, text: Tensor, ed_weight: float, generator: torch.Generator) -> None:
    """Let `model` read the teacher's embeddings, float [num_items, emb_size], plus learnt ID vectors; in place."""
    assert isinstance(model.item_embeddings, ItemEmbedding)
    model.item_embeddings = ResidualItemEmbedding(model.item_embeddings, text, ed_weight, generator)


@torch.no_grad()
def start_from_text(model: Student, text: Tensor, ed_weight: float) -> None:
    """Let the item table, and an output layer of its width, start as ed_weight * text [num_items, emb_size]."""
    assert isinstance(model.item_embeddings, ItemEmbedding)
    model.item_embeddings.weight[:-1] = ed_weight * text
    if isinstance(model.output, nn.Linear) and model.output.weight.shape == text.shape:
        model.output.weight.copy_(ed_weight * text)


def fuse_teacher(model: Student, teacher: TeacherTable, projection: nn.Linear, ed_weight: float) -> None:
    """Let `model` read item embeddings that carry the teacher's; in place."""
    assert isinstance(model.item_embeddings, ItemEmbedding)
    model.item_embeddings = FusedItemEmbedding(model.item_embeddings, teacher, projection, ed_weight)


@torch.no_grad()
def folded_state(model: Student) -> dict[str, Tensor]:
    """Weights of the plain student that computes the same: the teacher's part is added into the item table."""
    prefix = "item_embeddings."
    embedding = model.item_embeddings
    if not isinstance(embedding, FusedItemEmbedding | ResidualItemEmbedding):
        return model.state_dict()
    state = {name: value for name, value in model.state_dict().items() if not name.startswith(prefix)}
    state[prefix + "weight"] = embedding.table()
    return state
