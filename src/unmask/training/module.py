"""The one module that data parallelism wraps: an `Example` in, its loss out.

Head and loss run inside the wrapped forward; outside it, DDP would not synchronise their gradients and sharded weights
would not be gathered.
"""

from __future__ import annotations

from torch import Tensor, nn

from unmask.models.backbone import Backbone
from unmask.objectives.distillation import Lesson
from unmask.objectives.example import Example
from unmask.objectives.loss import Loss, RowPredictions, loss, row_losses, row_predictions


class TrainingModule(nn.Module):
    """A backbone and the loss of its examples.

    Args:
        backbone: the model to train.
        chunk_rows: rows whose logits exist at the same time.
    """

    def __init__(self, backbone: Backbone, *, chunk_rows: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.chunk_rows = chunk_rows

    @property
    def config(self) -> object:
        """The network's configuration, where DeepSpeed looks for sizes."""
        return self.backbone.network.config

    def forward(
        self,
        example: Example,
        scale_T: Tensor | None = None,
        lesson: Lesson | None = None,
        *,
        predicts: bool = False,
        class_V: Tensor | None = None,
    ) -> Loss | Tensor | RowPredictions:
        """The loss of an example with each term's factor; without factors, each supervised row's cross-entropy or, if
        it `predicts`, its prediction (over classes of tokens too, see `row_predictions`)."""
        mask = self.backbone.render(example.layout, example.layout)
        read_R = example.row_R.unique() if len(example.row_R) else None
        hidden_BLD = self.backbone(example.ids_BL, example.layout.position_ids, mask, read_R=read_R)
        if predicts:
            head = self.backbone.logits
            return row_predictions(hidden_BLD, example, head, chunk_rows=self.chunk_rows, class_V=class_V)
        if scale_T is None:
            return row_losses(hidden_BLD, example, self.backbone.logits, chunk_rows=self.chunk_rows)
        trained = tuple(one for one in self._head_parameters() if one.requires_grad)
        options = {"parameters": trained, "scale_T": scale_T, "chunk_rows": self.chunk_rows}
        return loss(hidden_BLD, example, self.backbone.logits, **options, lesson=lesson)

    def _head_parameters(self) -> list[nn.Parameter]:
        return list(self.backbone.network.get_output_embeddings().parameters())  # type: ignore[union-attr]
