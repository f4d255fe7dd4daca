"""GraphGPO: credit for the single step, from what a group's rollouts have in common.

Rollouts from one initial state pass through the same states. Merged there, they form a graph, and how far
each of its nodes is from success is known without any value network. A step is credited with how much nearer
to success it led than the other steps that were taken from the same state:

    A = beta_graph * A_graph + beta_episode * A_episode

A_graph is that of ``state_graph``, A_episode the group-relative advantage of ``group``. Where too few states
coincide to say anything (``minimum_merge_ratio``) all the weight goes to A_episode, which is then said.

Source: GraphGPO, arXiv 2605.26684. What is ours, because robots move in metres and not in words: nodes stand
at the boundaries of action chunks and are merged by ``state_keys``; the decay is near 1 (0.1 underflows from
8 chunks on); older segments of the replay may add paths (``structure``).

Transitions after an episode's first success (where it does not end there) are in no graph: A_graph is 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from gipo_envs.errors import UserError
from gipo_vla.credit.base import (
    FEATURES,
    CreditAssigner,
    CreditContext,
    CreditSettings,
    GroupEpisode,
    register,
)
from gipo_vla.credit.graph import state_graph, state_keys
from gipo_vla.credit.graph.snapshot import GraphSnapshot, hand_axes
from gipo_vla.credit.graph.state_graph import EdgeReward, Ids
from gipo_vla.credit.group import Outcome, episode_outcome, group_relative
from gipo_vla.credit.normalization import NormalizationMode, check_normalize
from gipo_vla.policies.base import HasFeatures

METRICS = ("merge_ratio", "branching_share", "nonzero_share", "reachable_share", "fallback_share")


@register
@dataclass(frozen=True)
class GraphSettings(CreditSettings):
    """GraphGPO: credit for single steps, from a graph of the states that episodes from one initial state
    share."""

    needs_groups: ClassVar[bool] = True
    sets: ClassVar[Mapping[str, Any]] = {"rollout.group_size": 8}

    name: Literal["graph"] = "graph"
    state_key: Literal["auto", "grid", "sim", "embedding"] = "auto"
    """Which states are one node. grid: landmarks (hand, objects, goal) in cells. sim: those and whether
    gripper and goal predicates hold, where the simulator tells (LIBERO). embedding: clusters of the policy's
    features, for what no landmark describes. auto: sim where there is such a thing, else grid."""
    cell: float = 0.03
    """Metres; edge of a cell of grid and sim. 0.02 to 0.04 is usual: raise it where the merge ratio is low,
    lower it where different situations share a node."""
    clusters: int = 64
    """Nodes of a group, at most, with state_key=embedding."""
    embedding_dimensions: int = 8
    """Principal components that the clusters of state_key=embedding are made of."""
    edge_reward: EdgeReward = "geometric"
    """geometric: w^d, steps near success weigh most. linear: -d, all alike."""
    decay: float = 0.97
    """w of the geometric reward, for each chunk of distance. 0.95 to 0.99 for 20 to 200 chunks."""
    beta_graph: float = 1.0
    """Weight of the step's advantage."""
    beta_episode: float = 1.0
    """Weight of the episode's advantage, which alone knows about states that only one episode visited."""
    outcome: Outcome = "return"
    """The measure that an episode is judged by, as in credit=group."""
    structure: Literal["group", "replay"] = "group"
    """replay: paths of older segments of the same task, still held, join the graph. For rare successes: then
    also a group without one has distances. Averages are always of the group's own transitions."""
    structure_transitions: int = 4096
    """Transitions, at most, that structure=replay takes from the replay: the newest ones."""
    minimum_merge_ratio: float = 0.05
    """Share of a group's states that must coincide with another one; below it the episode's advantage gets
    all of the weight."""
    normalize: NormalizationMode = "none"
    """A second normalisation over batches, which scales and does not shift; none, since both parts are
    normalised already."""

    def __post_init__(self) -> None:
        if not self.cell > 0:
            raise UserError(f"credit.cell is {self.cell}: it must be above 0 metres; 0.02 to 0.04 is usual")
        if not 0 < self.decay < 1:
            raise UserError(f"credit.decay is {self.decay}: it must lie between 0 and 1; 0.97 is usual")
        for key in ("clusters", "embedding_dimensions", "structure_transitions"):
            if getattr(self, key) < 1:
                raise UserError(f"credit.{key} is {getattr(self, key)}: it must be at least 1")
        if not 0 <= self.minimum_merge_ratio <= 1:
            raise UserError(
                f"credit.minimum_merge_ratio is {self.minimum_merge_ratio}: it must be between 0 and 1"
            )
        if self.structure == "replay" and self.state_key == "embedding":
            raise UserError(
                "credit.structure=replay needs keys that hold beyond a group: set credit.state_key to grid "
                "or sim"
            )
        check_normalize(self.normalize)

    def build(self) -> CreditAssigner:
        return GraphCredit(self)

    @property
    def needs_landmarks(self) -> bool:
        """True also with embedding: the picture of a graph places its nodes by landmarks."""
        return True


@dataclass(frozen=True)
class GroupGraph:
    """What the graph says of one group."""

    advantages: list[NDArray[np.float64]]
    """A_graph (T,) of each episode."""
    edges: state_graph.Edges
    """Edges of the group's own episodes."""
    distances: NDArray[np.float64] | None
    """(N + 1,) to success, infinite where there is no path; None: there is no success."""
    merge_ratio: float
    """Share of the group's states that are another occurrence of a node."""
    branching_share: float
    """Share of the group's nodes that edges to two or more different nodes leave."""
    reachable_share: float
    """Share of the group's nodes with a path to success."""


def group_graph(
    nodes: Sequence[Ids],
    successes: Sequence[int | None],
    older_nodes: Sequence[Ids] = (),
    older_successes: Sequence[int | None] = (),
    edge_reward: EdgeReward = "geometric",
    decay: float = 0.97,
) -> GroupGraph:
    """The graph of a group and the advantages of its edges.

    Args:
        nodes: (T + 1,) numbers of the states of each episode.
        successes: transition of each episode's first success, or None.
        older_nodes: the same of pieces of older episodes, which add paths and nothing else.
        older_successes: of those.
    """
    count = 1 + max(int(own.max()) for own in (*nodes, *older_nodes))
    own = state_graph.edges(nodes, successes, count)
    sources, targets = own.sources, own.targets
    if len(older_nodes):
        older = state_graph.edges(older_nodes, older_successes, count)
        sources, targets = np.concatenate([sources, older.sources]), np.concatenate([targets, older.targets])
    final = [ids[-1] for ids, success in zip(nodes, successes) if success is None]
    occurrences = np.concatenate([own.sources, np.array(final, np.int64)])
    visited = np.unique(occurrences)
    distinct_edges = np.unique(own.sources * (count + 1) + own.targets)
    branches = np.bincount(distinct_edges // (count + 1))
    distances, values, reachable = None, np.zeros(len(own.sources)), 0.0
    if (targets == count).any():
        distances = state_graph.distances_to_success(sources, targets, count)
        after = state_graph.with_unreachable(distances)[own.targets]
        rewards = state_graph.edge_rewards(after, edge_reward, decay)
        values = state_graph.standardized_by_source(rewards, own.sources)
        reachable = float(np.isfinite(distances[visited]).mean())
    return GroupGraph(
        advantages=state_graph.split_by_episode(values, own.counts, [len(ids) - 1 for ids in nodes]),
        edges=own,
        distances=distances,
        merge_ratio=1.0 - len(visited) / len(occurrences),
        branching_share=float((branches >= 2).sum() / len(visited)),
        reachable_share=reachable,
    )


class GraphCredit(CreditAssigner):
    """GraphGPO as a credit. Its state is the sums for metrics that are not reported yet."""

    needs_groups = True
    needs_values = False

    def __init__(self, settings: GraphSettings) -> None:
        self.settings = settings
        self._key = settings.state_key
        self._is_position = np.zeros(0, np.bool_)
        self._hand: list[int] = []
        self._axes: tuple[str, ...] = ()
        self._sums = dict.fromkeys(("groups", *METRICS), 0.0)
        self._latest: GraphSnapshot | None = None
        self._notice: str | None = None
        self._has_warned = False

    def prepare(self, context: CreditContext) -> None:
        """Choose the state key and check that the environment can give it.

        Raises:
            UserError: it cannot.
        """
        landmarks = context.spec.landmarks
        self._is_position = np.array([landmark.kind == "position" for landmark in landmarks], np.bool_)
        self._hand = hand_axes(landmarks)
        self._axes = tuple(landmarks[index].name for index in self._hand)
        tells_truths = bool(len(landmarks)) and not self._is_position.all()
        if self._key == "auto":
            self._key = "sim" if tells_truths else "grid"
        if self._key == "sim" and not tells_truths:
            raise UserError(
                "credit.state_key is sim, but this environment tells of no goal predicates (LIBERO does): "
                "set it to grid"
            )
        if self._key == "embedding" and not isinstance(context.policy, HasFeatures):
            raise UserError(
                "credit.state_key is embedding, but this policy has no features: set it to grid or sim"
            )
        if self._key == "grid" and not self._is_position.any():
            raise UserError("credit.state_key is grid, but this environment has no landmarks: use embedding")

    @property
    def inputs(self) -> tuple[str, ...]:
        own = (FEATURES,) if self._key == "embedding" else ()
        return (*own, "landmarks") if len(self._is_position) else own

    @property
    def older_transitions(self) -> int:
        return self.settings.structure_transitions if self.settings.structure == "replay" else 0

    def on_group(
        self, episodes: Sequence[GroupEpisode], older: Sequence[GroupEpisode] = ()
    ) -> list[NDArray[np.float32]]:
        """Advantages (T,) of each episode: what its steps did for it and how it ended."""
        settings = self.settings
        ids = self._nodes([*episodes, *older])
        successes = [episode.first_success for episode in (*episodes, *older)]
        size = len(episodes)
        own, others = (ids[:size], successes[:size]), (ids[size:], successes[size:])
        graph = group_graph(*own, *others, settings.edge_reward, settings.decay)
        outcomes = np.array([episode_outcome(episode, settings.outcome) for episode in episodes])
        relative = group_relative(outcomes, normalize_std=True)
        beta_graph, beta_episode = settings.beta_graph, settings.beta_episode
        falls_back = graph.merge_ratio < settings.minimum_merge_ratio
        if falls_back:
            beta_graph, beta_episode = 0.0, beta_graph + beta_episode
            self._warn(graph.merge_ratio)
        self._count(graph, falls_back)
        self._remember(episodes, ids[:size], graph)
        return [
            (beta_graph * own + beta_episode * advantage).astype(np.float32)
            for own, advantage in zip(graph.advantages, relative, strict=True)
        ]

    def _nodes(self, episodes: Sequence[GroupEpisode]) -> list[Ids]:
        """Numbers (T + 1,) of the states of each episode."""
        if self._key == "embedding":
            features = np.concatenate([episode.observations[FEATURES] for episode in episodes])
            ids = state_keys.cluster_ids(features, self.settings.embedding_dimensions, self.settings.clusters)
        else:
            landmarks = np.concatenate([episode.observations["landmarks"] for episode in episodes])
            chosen = self._is_position if self._key == "grid" else np.ones_like(self._is_position)
            ids = state_keys.grid_ids(
                landmarks[:, chosen], landmarks[0, chosen], self.settings.cell, self._is_position[chosen]
            )
        return np.split(ids, np.cumsum([len(episode) + 1 for episode in episodes])[:-1])

    def outcome(self, episode: GroupEpisode) -> float:
        """By ``credit.outcome``."""
        return episode_outcome(episode, self.settings.outcome)

    # --------------------------------------------------------------------------------------- diagnostics

    def _count(self, graph: GroupGraph, falls_back: bool) -> None:
        nonzero = np.count_nonzero(np.concatenate(graph.advantages)) / sum(map(len, graph.advantages))
        shares = (graph.merge_ratio, graph.branching_share, nonzero, graph.reachable_share, falls_back)
        for name, value in zip(("groups", *METRICS), (1.0, *shares), strict=True):
            self._sums[name] += float(value)

    def _warn(self, merge_ratio: float) -> None:
        if not self._has_warned:
            self._has_warned = True
            how = "raise credit.clusters" if self._key == "embedding" else "raise credit.cell"
            self._notice = (
                f"credit=graph: only {merge_ratio:.1%} of a group's states coincide (less than "
                f"credit.minimum_merge_ratio {self.settings.minimum_merge_ratio:g}), so such groups get "
                f"episode advantages alone; credit/fallback_share counts them; {how} to merge more"
            )

    def _remember(self, episodes: Sequence[GroupEpisode], ids: Sequence[Ids], graph: GroupGraph) -> None:
        """Keep the latest group for a picture, one with a success rather than one without."""
        if "landmarks" not in episodes[0].observations or not self._hand:
            return
        if graph.distances is None and self._latest is not None and self._latest.distances is not None:
            return
        # The states that are nodes: up to the first success.
        kept = [None if e.first_success is None else n for e, n in zip(episodes, graph.edges.counts)]
        places = np.concatenate([e.observations["landmarks"][:n, self._hand] for e, n in zip(episodes, kept)])
        nodes = np.concatenate([own[:n] for own, n in zip(ids, kept)])
        self._latest = GraphSnapshot(self._axes, places, nodes, graph.edges, graph.distances, len(episodes))

    def take_sums(self) -> dict[str, float]:
        taken, self._sums = self._sums, dict.fromkeys(self._sums, 0.0)
        return taken

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float | None]:
        groups = sums["groups"]
        return {f"credit/{name}": sums[name] / groups if groups else None for name in METRICS}

    def notice(self) -> str | None:
        told, self._notice = self._notice, None
        return told

    def snapshot(self) -> dict[str, Any] | None:
        return self._latest.to_json() if self._latest is not None else None

    def state_dict(self) -> dict[str, Any]:
        return {"sums": dict(self._sums)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._sums = {name: float(state["sums"].get(name, 0.0)) for name in self._sums}
