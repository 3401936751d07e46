"""The barriers of the kernels for Hopper, in every interleaving of their roles; no GPU is needed.

Below is a model of each kernel of samtrt/kernels/hopper/device: its functions under their names,
of which the operations on barriers, the copies and what is read and written are left. Roles are
warps: nothing but these operations keeps the warps of a warpgroup together. There are fewer of
them, and fewer stages, steps and tiles, than in the kernels. ``barrier_model.py`` says what is
looked for. The kernels' sources are known by a digest: who changes them looks at the model, too.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from barrier_model import Block, Outcome, Role

from samtrt.kernels.hopper.compiler import FOLDER

SOURCES = {
    "primitives.cuh": "1d369beca6923649",
    "linear.cu": "f97a971d50d00dd6",
    "linear_tile.cuh": "0acf37c062df2f6c",
    "linear_epilogue.cuh": "4e94a35e4fa9bfcc",
    "window_attention.cu": "de823c71c565256b",
    "window_memory.cuh": "83b8214e60c9d500",
    "window_tile.cuh": "907418359715ab92",
    "window_few.cuh": "4e44f5682ebfe4c7",
    "global_attention.cu": "9642e12a9fe7257a",
}


@pytest.mark.parametrize("file", SOURCES)
def test_models_are_of_these_sources(file: str) -> None:
    """(Comments and white space apart.)"""
    code = re.sub(r"//[^\n]*|\s", "", (FOLDER / file).read_text())
    digest = hashlib.sha256(code.encode()).hexdigest()[:16]
    assert digest == SOURCES[file], (
        f"{file} has changed. Are its operations on barriers, its copies and what lies between "
        f"them still those of the model here? Then its digest is {digest}."
    )


class Ring:
    """Stages in turn."""

    def __init__(self, stages: int) -> None:
        self.stages, self.count = stages, 0

    @property
    def stage(self) -> int:
        return self.count % self.stages

    @property
    def phase(self) -> int:
        return self.count // self.stages

    def advance(self, stages: int = 1) -> None:
        self.count += stages


# ---- linear.cu -----------------------------------------------------------------------------------

Release = Callable[[Role, Ring, int, int], None]  # of the other warpgroup's place: warp, warps


def release_others_place(role: Role, ring: Ring, warp: int, warps: int) -> None:
    role.barrier_wait(f"full{ring.stage}", ring.phase)
    role.barrier_arrive(f"empty{ring.stage}")


def arrive_without_a_wait(role: Role, ring: Ring, warp: int, warps: int) -> None:
    """As it was once: a race."""
    if warp == 0:
        role.barrier_arrive(f"empty{ring.stage}", warps)


def wait_in_one_warp(role: Role, ring: Ring, warp: int, warps: int) -> None:
    """What would seem to be enough."""
    if warp == 0:
        role.barrier_wait(f"full{ring.stage}", ring.phase)
        role.barrier_arrive(f"empty{ring.stage}", warps)


def arrive_for_all_warps(role: Role, ring: Ring, warp: int, warps: int) -> None:
    """Likewise."""
    role.barrier_wait(f"full{ring.stage}", ring.phase)
    if warp == 0:
        role.barrier_arrive(f"empty{ring.stage}", warps)


class LinearBlock:
    """A block with a residual, or (pingpong) without."""

    def __init__(
        self,
        pingpong: bool,
        stages: int,
        steps: int,
        tiles: int,
        warps: int = 2,
        parts: int = 1,
        release: Release = release_others_place,
        stores: bool = True,
    ) -> None:
        """
        Args:
            stores: outputs leave through places (STORES_16_BITS), not straight from registers.
        """
        self.stores = stores
        self.pingpong, self.stages, self.steps, self.tiles = pingpong, stages, steps, tiles
        self.warps, self.parts, self.release = warps, parts, release

    def a(self, stage: int) -> list[tuple[object, ...]]:
        return [("stage", stage, 0, warp, part) for warp, part in self.shares()]

    def weight(self, stage: int) -> list[tuple[object, ...]]:
        return [("stage", stage, 1, warp, part) for warp, part in self.shares()]

    def shares(self) -> list[tuple[int, int]]:
        """Of a stage's operands, so that a place lies in a stage: each warp's, of each part."""
        return [(warp, part) for warp in range(self.warps) for part in range(self.parts)]

    def explore(self) -> Outcome:
        arrivals = (1 if self.pingpong else 2) * self.warps
        barriers = {f"full{stage}": 1 for stage in range(self.stages)}
        barriers |= {f"empty{stage}": arrivals for stage in range(self.stages)}
        consumers = [self.consume(c, warp) for c in range(2) for warp in range(self.warps)]
        return Block(barriers, [self.fetch(), *consumers]).explore()

    def fetch(self) -> Role:
        role, ring = Role("fetch"), Ring(self.stages)

        def fetch_weight(stage: int, tile: int, k: int) -> None:
            role.barrier_expect(f"full{stage}", 2)
            role.copy(self.weight(stage), (tile, k), f"full{stage}")

        early = min(self.stages, self.steps)
        for k in range(early):
            fetch_weight(k, 0, k)
        for tile in range(self.tiles):
            for k in range(self.steps):
                if tile > 0 or k >= early:
                    role.barrier_wait(f"empty{ring.stage}", ring.phase - 1)
                    fetch_weight(ring.stage, tile, k)
                role.copy(self.a(ring.stage), (tile, k), f"full{ring.stage}")
                ring.advance()
            if not self.pingpong:
                self.fetch_places(role, ring, tile)
        return role

    def fetch_places(self, role: Role, ring: Ring, tile: int) -> None:
        for consumer in range(2):
            role.barrier_wait(f"empty{ring.stage}", ring.phase - 1)
            role.barrier_expect(f"full{ring.stage}", self.parts)
            for part in range(self.parts):
                place = self.place(ring.stage, consumer, part)
                role.copy(place, ("residual", tile, consumer), f"full{ring.stage}")
            ring.advance()

    def place(self, stage: int, consumer: int, part: int) -> list[tuple[object, ...]]:
        if self.pingpong:
            return [("place", consumer, warp) for warp in range(self.warps)]
        # (what holds a lies under it or not, as the tiles' sizes are: here the first half does)
        return [("stage", stage, 0, warp, part) for warp in range(self.warps)]

    def multiply(self, role: Role, ring: Ring, tile: int, consumer: int) -> None:
        previous = ring.stage

        def release(stage: int) -> None:
            role.wgmma_wait(self.a(stage) + self.weight(stage))
            role.barrier_arrive(f"empty{stage}")

        for k in range(self.steps):
            role.barrier_wait(f"full{ring.stage}", ring.phase)
            role.wgmma(self.a(ring.stage) + self.weight(ring.stage), (tile, k))
            if k > 0:
                release(previous)
            previous = ring.stage
            ring.advance()
        if self.pingpong:
            role.named_arrive(f"turn{consumer ^ 1}", 2 * self.warps)
        release(previous)

    def consume(self, consumer: int, warp: int) -> Role:
        role, ring, warps = Role(f"{consumer}.{warp}"), Ring(self.stages), self.warps
        bias = [("bias", consumer, each) for each in range(warps)]
        if self.pingpong and consumer == 1:
            role.named_arrive("turn0", 2 * warps)
        for tile in range(self.tiles):
            if self.pingpong and tile % 2 != consumer:
                ring.advance(self.steps)
                continue
            if self.pingpong:
                role.named_sync(f"turn{consumer}", 2 * warps)
            self.multiply(role, ring, tile, consumer)
            role.writes([bias[warp]], tile)
            if not self.pingpong:
                if consumer == 1:
                    self.release(role, ring, warp, warps)
                    ring.advance()
                role.barrier_wait(f"full{ring.stage}", ring.phase)
            for part in range(self.parts):
                place = self.place(ring.stage, consumer, part)
                if self.pingpong and self.stores and warp == 0:
                    role.store_wait_read()
                if (self.pingpong and self.stores) or part == 0:
                    role.named_sync(f"parts{consumer}", warps)
                role.reads(bias, tile)
                if not self.pingpong:
                    role.reads([place[warp]], ("residual", tile, consumer))
                    role.then()
                if not self.stores:
                    continue
                role.writes([place[warp]], ("out", tile, part))
                self.send(role, consumer, warp, place, ("out", tile, part))
            if not self.pingpong:
                if warp == 0:  # release_place
                    role.store_wait_read()
                    role.barrier_arrive(f"empty{ring.stage}", warps)
                ring.advance()
                if consumer == 0:
                    self.release(role, ring, warp, warps)
                    ring.advance()
        if warp == 0:
            role.store_wait_read()
        return role

    def send(
        self, role: Role, consumer: int, warp: int, place: list[tuple[object, ...]], out: object
    ) -> None:
        role.named_sync(f"parts{consumer}", self.warps)
        if warp == 0:
            role.store(place, out)


FAULTS_OF_ORDERS = {
    arrive_without_a_wait: {"conflict", "overdrawn", "early", "late"},
    wait_in_one_warp: {"early"},
    arrive_for_all_warps: {"late"},
    release_others_place: set(),
}


@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize("release", FAULTS_OF_ORDERS, ids=lambda release: release.__name__)
def test_release_of_the_other_warpgroups_place(release: Release, stages: int) -> None:
    """The race: operands overwritten while they are read, and an overdrawn barrier."""
    outcome = LinearBlock(False, stages, steps=2, tiles=2, release=release).explore()
    assert set(outcome.faults) == FAULTS_OF_ORDERS[release], outcome.faults


@pytest.mark.parametrize(
    ("pingpong", "stages", "steps", "tiles", "warps", "parts"),
    [
        (False, 2, 1, 3, 2, 1),
        (False, 3, 3, 2, 2, 1),
        (False, 2, 2, 3, 1, 2),
        (False, 3, 1, 4, 1, 2),
        (False, 4, 2, 2, 1, 2),
        (True, 2, 1, 4, 2, 1),
        (True, 2, 2, 2, 2, 2),
        (True, 3, 2, 3, 2, 1),
        (True, 3, 5, 3, 1, 2),
        (True, 2, 3, 1, 2, 2),  # a warpgroup without a tile
    ],
)
def test_linear(
    pingpong: bool, stages: int, steps: int, tiles: int, warps: int, parts: int
) -> None:
    outcome = LinearBlock(pingpong, stages, steps, tiles, warps, parts).explore()
    assert outcome.faults == {}


@pytest.mark.parametrize(
    ("stages", "steps", "tiles", "warps", "parts"),
    [(2, 1, 5, 2, 1), (2, 2, 4, 2, 2), (3, 2, 3, 2, 1), (3, 5, 3, 1, 2), (2, 3, 1, 2, 2)],
)
def test_linear_with_outputs_straight_from_registers(
    stages: int, steps: int, tiles: int, warps: int, parts: int
) -> None:
    """FP8_OUTPUT: the bias is kept by the turns alone."""
    outcome = LinearBlock(True, stages, steps, tiles, warps, parts, stores=False).explore()
    assert outcome.faults == {}


def test_a_bias_is_not_kept_without_turns_or_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why a layer without PINGPONG must store from places."""
    sync = Role.named_sync

    def without_turns(self: Role, barrier: str, count: int) -> None:
        if not barrier.startswith("turn"):
            sync(self, barrier, count)

    monkeypatch.setattr(Role, "named_sync", without_turns)
    monkeypatch.setattr(Role, "named_arrive", lambda *arguments: None)
    outcome = LinearBlock(True, stages=3, steps=1, tiles=3, warps=2, stores=False).explore()
    assert "conflict" in outcome.faults


def test_stages_are_not_skipped_without_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """What barrier 1 + consumer is for, besides speed."""
    monkeypatch.setattr(Role, "named_sync", lambda *arguments: None)
    monkeypatch.setattr(Role, "named_arrive", lambda *arguments: None)
    assert "early" in LinearBlock(True, stages=2, steps=2, tiles=2, warps=1).explore().faults


# ---- window_attention.cu -------------------------------------------------------------------------


@dataclass(frozen=True)
class Unit:
    tiles: int
    leaves_grid: bool = False
    few_are_left: bool = False


class WindowBlock:
    """Two warpgroups, two stages, as in the kernel; helpers and warps may be fewer."""

    STAGES = 2

    def __init__(
        self,
        units: list[Unit],
        warps: int,
        helpers: int,
        fresh_queries: bool = False,
        stores: bool = True,
    ) -> None:
        """
        Args:
            fresh_queries: take every stage's queries as the first one's: a fault.
            stores: outputs leave through the queries' place, not (FP8_OUTPUT) from registers.
        """
        self.stores = stores
        self.units, self.warps, self.helpers = units, warps, helpers
        self.fresh_queries = fresh_queries

    def explore(self) -> Outcome:
        barriers = {}
        for stage in range(self.STAGES):
            barriers[f"keys{stage}"] = barriers[f"values{stage}"] = 1
            barriers[f"padded{stage}"] = self.helpers
            barriers[f"done{stage}"] = 2 * self.warps + self.helpers
        barriers |= {f"scores{warpgroup}": self.warps for warpgroup in range(2)}
        consumers = [self.consume(w, warp) for w in range(2) for warp in range(self.warps)]
        helpers = [self.help(helper) for helper in range(self.helpers)]
        return Block(barriers, [self.copy(), *helpers, *consumers]).explore()

    # What stands in a stage. Keys and values: what the copy engine brings for good, and each
    # helper's share of the padding. Queries, then outputs: each warp's of each tile, and the few.
    def keys(self, stage: int) -> list[tuple[object, ...]]:
        return [(stage, "keys", share) for share in range(self.helpers)]

    def values(self, stage: int) -> list[tuple[object, ...]]:
        return [(stage, "values", share) for share in range(self.helpers)]

    def queries(self, stage: int, tile: int) -> list[tuple[object, ...]]:
        return [(stage, "queries", tile, warp) for warp in range(self.warps)]

    def places(self, stage: int, unit: Unit) -> list[tuple[object, ...]]:
        few = [(stage, "few", helper) for helper in range(self.helpers) if unit.few_are_left]
        tiles = [self.queries(stage, tile) for tile in range(unit.tiles)]
        return [place for places in (*tiles, few) for place in places]

    def copy(self) -> Role:
        role, units = Role("copy"), self.units
        for i in range(len(units) + 1):
            if i < len(units):
                self.load_unit(role, i, is_fresh=i < self.STAGES or self.fresh_queries)
            done = i + 1 - self.STAGES
            if i + 1 < self.STAGES:
                continue
            if done >= len(units):
                break
            stage = done % self.STAGES
            role.barrier_wait(f"done{stage}", done // self.STAGES)
            if self.stores:
                role.store(self.places(stage, units[done]), ("out", done))
        role.store_wait_read()
        return role

    def load_unit(self, role: Role, i: int, is_fresh: bool) -> None:
        stage = i % self.STAGES
        role.barrier_expect(f"keys{stage}", 2)
        role.barrier_expect(f"values{stage}", 1)
        role.copy(self.keys(stage), ("in", i), f"keys{stage}")
        if not is_fresh:
            role.copy(self.values(stage), ("in", i), f"values{stage}")
            role.store_wait_read()
        role.copy(self.places(stage, self.units[i]), ("in", i), f"keys{stage}")
        if is_fresh:
            role.copy(self.values(stage), ("in", i), f"values{stage}")

    def help(self, helper: int) -> Role:
        role = Role(f"helper {helper}")
        for i, unit in enumerate(self.units):
            stage, phase = i % self.STAGES, i // self.STAGES
            role.barrier_wait(f"keys{stage}", phase)
            role.barrier_wait(f"values{stage}", phase)
            if unit.leaves_grid:  # write_padding
                role.writes([self.keys(stage)[helper], self.values(stage)[helper]], ("bias", i))
                role.barrier_arrive(f"padded{stage}")
            if unit.few_are_left:
                role.named_sync("helpers", self.helpers)
                self.attend_few(role, helper, i, unit, stage)
            role.barrier_arrive(f"done{stage}")
        return role

    def attend_few(self, role: Role, helper: int, i: int, unit: Unit, stage: int) -> None:
        content = ("bias" if unit.leaves_grid else "in", i)
        few = [(stage, "few", each) for each in range(self.helpers)]
        products, top, total, weights = (
            [(name, each) for each in range(self.helpers)]
            for name in ("products", "top", "sum", "weights")
        )
        role.reads(few, ("in", i))
        role.writes([products[helper]], i)
        role.named_sync("helpers", self.helpers)
        role.reads(products, i)
        role.reads(self.keys(stage), content)
        role.writes([top[helper]], i)
        role.named_sync("helpers", self.helpers)
        role.reads(top, i)
        role.writes([weights[helper], total[helper]], i)
        role.named_sync("helpers", self.helpers)
        role.reads(weights + total, i)
        role.reads(self.values(stage), content)
        if self.stores:
            role.writes([few[helper]], ("out", i))

    def consume(self, warpgroup: int, warp: int) -> Role:
        role = Role(f"{warpgroup}.{warp}")
        tile, scores_phase = warpgroup, -1 if warpgroup == 0 else 0
        padded_phases = [0] * self.STAGES
        for i, unit in enumerate(self.units):
            stage, phase = i % self.STAGES, i // self.STAGES
            role.barrier_wait(f"keys{stage}", phase)
            if unit.leaves_grid:
                role.barrier_wait(f"padded{stage}", padded_phases[stage])
                padded_phases[stage] += 1
            while tile < unit.tiles:
                role.barrier_wait(f"scores{warpgroup}", scores_phase)
                scores_phase += 1
                self.attend(role, i, tile, warpgroup, warp)
                tile += 2
            tile -= unit.tiles
            role.barrier_arrive(f"done{stage}")
        return role

    def attend(self, role: Role, i: int, tile: int, warpgroup: int, warp: int) -> None:
        unit, stage = self.units[i], i % self.STAGES
        content = ("bias" if unit.leaves_grid else "in", i)
        queries, keys, values = self.queries(stage, tile), self.keys(stage), self.values(stage)
        role.wgmma(queries, ("in", i))
        role.wgmma(keys, content)
        role.wgmma_wait(queries + keys)
        role.barrier_arrive(f"scores{1 - warpgroup}")
        role.barrier_wait(f"values{stage}", i // self.STAGES)
        role.wgmma(values, content)
        role.wgmma_wait(values)
        role.named_sync(f"outputs{warpgroup}", self.warps)
        if self.stores:
            role.writes([queries[warp]], ("out", i))


WHOLE, FEW, EDGE, CORNER = Unit(2), Unit(1, False, True), Unit(1, True), Unit(0, True, True)


@pytest.mark.parametrize(
    ("units", "warps", "helpers"),
    [
        ([WHOLE, FEW, CORNER, EDGE], 1, 1),
        ([FEW, Unit(3, True, True), FEW, CORNER, WHOLE], 1, 1),
        ([CORNER, CORNER, FEW, EDGE], 1, 2),
        ([FEW, CORNER], 1, 3),
        ([EDGE, WHOLE, EDGE], 2, 1),
        ([EDGE], 2, 2),
    ],
)
@pytest.mark.parametrize("stores", [True, False])
def test_window(units: list[Unit], warps: int, helpers: int, stores: bool) -> None:
    outcome = WindowBlock(units, warps, helpers, stores=stores).explore()
    assert outcome.faults == {}


def test_queries_wait_for_the_outputs_before_them() -> None:
    outcome = WindowBlock([EDGE, EDGE, EDGE], 1, 1, fresh_queries=True).explore()
    assert set(outcome.faults) == {"conflict"}


def test_values_are_known_by_the_helpers_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a unit without a tile nobody else waits for the values."""
    wait = Role.barrier_wait

    def no_helper_waits(self: Role, barrier: str, phase: int) -> None:
        if not (self.name.startswith("helper") and barrier.startswith("values")):
            wait(self, barrier, phase)

    monkeypatch.setattr(Role, "barrier_wait", no_helper_waits)
    assert "overdrawn" in WindowBlock([CORNER, CORNER, WHOLE], 1, 1).explore().faults


# ---- global_attention.cu -------------------------------------------------------------------------


class GlobalBlock:
    """Chunks of rows of queries; all have keys of ``height`` rows, a tile each."""

    def __init__(
        self,
        chunks: list[int],
        height: int,
        consumers: int,
        stages: int = 2,
        warps: int = 1,
        idle_warpgroups_wait: bool = True,
    ) -> None:
        self.chunks, self.height, self.consumers = chunks, height, consumers
        self.stages, self.warps = stages, warps
        self.idle_warpgroups_wait = idle_warpgroups_wait

    def explore(self) -> Outcome:
        barriers = {"tables_full": 1}
        for consumer in range(self.consumers):
            barriers |= {f"q_full{consumer}": 1, f"q_empty{consumer}": self.warps}
        for stage in range(self.stages):
            barriers[f"k_full{stage}"] = barriers[f"v_full{stage}"] = 1
            arrivals = self.consumers * self.warps
            barriers[f"k_empty{stage}"] = barriers[f"v_empty{stage}"] = arrivals
        consumers = [
            self.consume(consumer, warp)
            for consumer in range(self.consumers)
            for warp in range(self.warps)
        ]
        return Block(barriers, [self.produce(), *consumers]).explore()

    def rounds(self) -> Iterator[tuple[int, list[int]]]:
        """The round's first row, over all chunks, and the warpgroups that have a row."""
        row = 0
        for rows in self.chunks:
            for first in range(0, rows, self.consumers):
                busy = range(min(rows - first, self.consumers))
                yield row + first, list(busy)
            row += rows

    def produce(self) -> Role:
        role, ring = Role("produce"), Ring(self.stages)
        role.barrier_expect("tables_full", 1)
        role.copy(["tables"], "tables", "tables_full")
        q_phases = [-1] * self.consumers

        def fetch(to: str, content: object, full: str) -> None:
            role.barrier_expect(full, 1)
            role.copy([to], content, full)

        for row, busy in self.rounds():
            for i in busy:
                role.barrier_wait(f"q_empty{i}", q_phases[i])
                q_phases[i] += 1
                fetch(f"q{i}", ("q", row + i), f"q_full{i}")
            for _ in range(self.height):
                for kind in "kv":
                    role.barrier_wait(f"{kind}_empty{ring.stage}", ring.phase - 1)
                    fetch(f"{kind}{ring.stage}", (kind, ring.count), f"{kind}_full{ring.stage}")
                ring.advance()
        return role

    def consume(self, consumer: int, warp: int) -> Role:
        role, ring = Role(f"{consumer}.{warp}"), Ring(self.stages)
        role.barrier_wait("tables_full", 0)
        q_phase = 0
        for row, busy in self.rounds():
            if consumer in busy:
                self.attend(role, ring, consumer, row, q_phase)
                q_phase += 1
                continue
            for _ in range(self.height):
                for kind in "kv":
                    if self.idle_warpgroups_wait:
                        role.barrier_wait(f"{kind}_full{ring.stage}", ring.phase)
                    role.barrier_arrive(f"{kind}_empty{ring.stage}")
                ring.advance()
        return role

    def attend(self, role: Role, ring: Ring, consumer: int, row: int, q_phase: int) -> None:
        role.barrier_wait(f"q_full{consumer}", q_phase)
        role.reads([f"q{consumer}"], ("q", row + consumer))  # load_queries
        role.barrier_arrive(f"q_empty{consumer}")
        role.reads(["tables"], "tables")  # both products, waited for at once

        def wait_and_multiply_keys() -> None:
            role.barrier_wait(f"k_full{ring.stage}", ring.phase)
            role.wgmma([f"k{ring.stage}"], ("k", ring.count))

        wait_and_multiply_keys()
        for j in range(self.height):
            stage, before = ring.stage, (ring.count - 1) % self.stages
            role.barrier_wait(f"v_full{stage}", ring.phase)
            values = ("v", ring.count)
            ring.advance()
            if j + 1 < self.height:
                # (its product begins later; that the keys are there from here on is as well)
                wait_and_multiply_keys()
            role.wgmma_wait([f"k{stage}"])
            role.barrier_arrive(f"k_empty{stage}")
            if j > 0:
                role.wgmma_wait([f"v{before}"])
                role.barrier_arrive(f"v_empty{before}")
            role.wgmma([f"v{stage}"], values)
        last = (ring.count - 1) % self.stages
        role.wgmma_wait([f"v{last}"])
        role.barrier_arrive(f"v_empty{last}")


@pytest.mark.parametrize(
    ("chunks", "height", "consumers", "stages", "warps"),
    [
        ([3, 1], 2, 2, 2, 1),
        ([1, 2], 3, 2, 2, 1),
        ([4, 2], 2, 3, 2, 1),
        ([2, 1], 3, 2, 3, 1),
        ([1], 2, 2, 2, 2),
        ([1, 1], 1, 2, 2, 2),
    ],
)
def test_global(chunks: list[int], height: int, consumers: int, stages: int, warps: int) -> None:
    outcome = GlobalBlock(chunks, height, consumers, stages, warps).explore()
    assert outcome.faults == {}


def test_a_warpgroup_without_a_row_waits_for_the_tiles() -> None:
    outcome = GlobalBlock([1], 3, 2, idle_warpgroups_wait=False).explore()
    assert "overdrawn" in outcome.faults or "conflict" in outcome.faults, outcome.faults


def test_one_stage_is_not_enough_for_two_tiles_of_keys() -> None:
    """The next tile's keys are waited for before this one's are released."""
    assert set(GlobalBlock([1], 2, 1, stages=1).explore().faults) == {"deadlock"}
