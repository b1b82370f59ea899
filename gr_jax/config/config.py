"""The config of a run: all groups of fields, and the rules between them."""

from __future__ import annotations

import typing
from dataclasses import dataclass, field

from gr_jax.config.checks import check, check_choice, check_types
from gr_jax.config.data import DataConfig
from gr_jax.config.mesh import MeshConfig
from gr_jax.config.model import ModelConfig, VocabularyConfig
from gr_jax.config.objective import EvaluateConfig, LossConfig, RankingConfig
from gr_jax.config.train import OptimizerConfig, TrainConfig


@typing.no_type_check
@dataclass(frozen=True)
class Config:
    """Everything that decides a run; written to `config.json` in the workdir."""

    seed: int = 0  # of initialisation, shuffling, dropout and negatives
    data: DataConfig = field(default_factory=DataConfig)  # raw log and layout
    model: ModelConfig = field(default_factory=ModelConfig)  # encoder
    # entries of the item table
    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)
    loss: LossConfig = field(default_factory=LossConfig)  # training objective of retrieval
    # tasks of ranking; with none the run is retrieval
    ranking: RankingConfig = field(default_factory=RankingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)  # AdamW
    train: TrainConfig = field(default_factory=TrainConfig)  # schedule
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)  # protocol
    mesh: MeshConfig = field(default_factory=MeshConfig)  # devices

    def __post_init__(self):
        check_types(self)
        check(0 <= self.seed < 2**32, "seed", self.seed, "in [0, 2^32)")
        self._check_loss()
        self._check_mesh()
        self._check_objective()
        self._check_unused()

    def _check_loss(self) -> None:
        length, group = self.data.row_length, self.loss.group
        if self.loss.kind == "group":
            check(
                length % group == 0, "loss.group", group, f"a divisor of data.row_length={length}"
            )
        if self.loss.kind == "full" and not self.ranking.tasks:
            rule = (
                "dense with loss.kind=full, which touches every row;"
                " set loss.kind=group or per_token for a row-wise rule"
            )
            table = self.optimizer.table
            check(table == "dense", "optimizer.table", table, rule)

    def _check_mesh(self) -> None:
        users, shards = self.train.batch_users, self.mesh.data
        check(users >= shards, "train.batch_users", users, f"at least mesh.data={shards}")

    def _check_objective(self) -> None:
        """Tasks, labels and kinds of model that the objective, retrieval or ranking, can have."""
        actions = [action.partition("=")[0].strip() for action in self.data.actions]
        for task in self.ranking.tasks:
            check_choice("ranking.tasks", task, [*actions, "rating"])
        if self.loss.positive:
            check_choice("loss.positive", self.loss.positive, actions)

        objective, kinds = "retrieval", ("hstu", "hstu_softmax", "sasrec")
        if self.ranking.tasks:
            objective, kinds = "ranking", ("hstu", "dlrm")
        kind, rule = self.model.kind, f"one of {', '.join(kinds)} for {objective}"
        check(kind in kinds, "model.kind", kind, rule)

        mode = self.train.mode
        ok = mode != "streaming" or bool(self.ranking.tasks)
        check(ok, "train.mode", mode, "epochs for retrieval")

    def _check_unused(self) -> None:
        """Settings that this run would ignore have to be at their defaults."""
        streaming, dlrm = self.train.mode == "streaming", self.model.kind == "dlrm"
        if streaming or dlrm:
            alpha, where = self.data.stochastic_length_alpha, "train.mode=streaming"
            where = "model.kind=dlrm" if dlrm else where
            rule = f"2 (off) with {where}; it cuts epochs of a sequence model"
            check(alpha == 2, "data.stochastic_length_alpha", alpha, rule)

        if streaming and dlrm:
            for name in ("sampling_rate", "session_gap"):
                value, default = getattr(self.train, name), getattr(TrainConfig, name)
                rule = (
                    f"{default}, its default, with model.kind=dlrm,"
                    " which streams events and not sessions"
                )
                check(value == default, f"train.{name}", value, rule)

        if self.ranking.tasks:
            users = self.evaluate.valid_users
            rule = "0 for ranking, which evaluates all events of the validation part"
            check(users == 0, "evaluate.valid_users", users, rule)
            split, default = self.evaluate.split, EvaluateConfig.split
            rule = f"{default}, its default, for ranking, which has a split by time of its own:"
            rule += " ranking.valid_from and ranking.test_from"
            check(split == default, "evaluate.split", split, rule)
            rule = "(), its default, for ranking, which ranks no items"
            check(self.evaluate.at == (), "evaluate.at", self.evaluate.at, rule)
