"""A model of the barriers of a block of threads, explored in every interleaving.

A role is a warp (or the one thread of it that copies), written down as the operations on barriers
that it executes, under the names of samtrt/kernels/hopper/device/primitives.cuh, and what it reads
and writes between them. The explorer runs one operation of one role, or lets one copy arrive, in
every possible order, and reports what can go wrong:

- ``conflict``: something is written while it is read or written (or read while it is written),
- ``stale``: what is read is not what the role is there to read,
- ``overdrawn``: more arrivals at an mbarrier in a phase than it was initialised with,
- ``early``: a wait passes though its phase has not ended (a parity is all that a wait knows),
- ``late``: a wait's phase and the next have both ended before it looked,
- ``twice``: a warp arrives at a named barrier twice in one of its phases,
- ``deadlock``: nobody can go on.

What a role reads and writes between two operations may happen at any time between them, and past
waits that follow: only an arrival tells others that it has happened. So two roles conflict when
these spans overlap, in whatever order the accesses come. The lanes of a warp are one role: the
kernels bring them together (``__syncwarp``, or an instruction that is ``.aligned``) before one of
them arrives for all.
"""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field

STORE = 0x80  # among a buffer's readers: the copy engine's stores
Buffer = Hashable
Content = Hashable


@dataclass
class Operation:
    """``before`` ends accesses, ``after`` begins them: (what, buffer, content)."""

    name: str
    arguments: tuple[Hashable, ...] = ()
    before: list[tuple[str, Buffer, Content]] = field(default_factory=list)
    after: list[tuple[str, Buffer, Content]] = field(default_factory=list)


class Role:
    """Writes down what a role does; a loop of the kernel is a loop here."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.operations = [Operation("start")]
        self._open: list[tuple[str, Buffer, Content]] = []
        self._ends: list[tuple[str, Buffer, Content]] = []

    def _add(self, name: str, *arguments: Hashable) -> None:
        ends, self._ends = self._ends, []
        if name not in ("barrier_wait", "store_wait_read"):
            ends, self._open = ends + self._open, []
        self.operations.append(Operation(name, arguments, ends))

    # mbarriers. Phases count from 0; the kernel knows a phase's parity only.
    def barrier_wait(self, barrier: str, phase: int) -> None:
        self._add("barrier_wait", barrier, phase)

    def barrier_arrive(self, barrier: str, arrivals: int = 1) -> None:
        self._add("barrier_arrive", barrier, arrivals)

    def barrier_expect(self, barrier: str, copies: int) -> None:
        """One arrival, and so many copies to come (a copy counts as one byte)."""
        self._add("barrier_expect", barrier, copies)

    # Named barriers, of so many warps.
    def named_sync(self, barrier: str, warps: int) -> None:
        self._add("named_arrive", barrier, warps, True)
        self._add("named_wait", barrier)

    def named_arrive(self, barrier: str, warps: int) -> None:
        self._add("named_arrive", barrier, warps, False)

    # The copy engine.
    def copy(self, to: Iterable[Buffer], content: Content, barrier: str) -> None:
        self._add("copy", tuple(to), content, barrier)

    def store(self, source: Iterable[Buffer], content: Content) -> None:
        self._add("store", tuple(source), content)

    def store_wait_read(self) -> None:
        self._add("store_wait_read")

    # Until the role's next operation that is no wait.
    def reads(self, buffers: Iterable[Buffer], content: Content) -> None:
        for buffer in buffers:
            self.operations[-1].after.append(("read", buffer, content))
            self._open.append(("read", buffer, content))

    def writes(self, buffers: Iterable[Buffer], content: Content) -> None:
        for buffer in buffers:
            self.operations[-1].after.append(("write", buffer, content))
            self._open.append(("write", buffer, content))

    def then(self) -> None:
        """What follows in the same span is done when what stands before it is."""
        self._add("then")

    # A product reads its operands until it has been waited for.
    def wgmma(self, buffers: Iterable[Buffer], content: Content) -> None:
        self.operations[-1].after += [("read", buffer, content) for buffer in buffers]

    def wgmma_wait(self, buffers: Iterable[Buffer]) -> None:
        self._ends += [("read", buffer, None) for buffer in buffers]

    def finished(self) -> list[Operation]:
        self._add("end")
        return self.operations


@dataclass
class Outcome:
    """States that were reached, and for each kind of fault what led to the first one found."""

    states: int
    faults: dict[str, str]


class Fault(Exception):  # noqa: N818 (it is what is looked for)
    def __init__(self, kind: str, what: str) -> None:
        super().__init__(f"{kind}: {what}")
        self.kind = kind


class Block:
    """The roles of a block, its barriers and what they guard."""

    def __init__(self, barriers: dict[str, int], roles: list[Role]) -> None:
        """
        Args:
            barriers: each mbarrier, and how many arrivals end a phase.
        """
        assert len(roles) <= 7
        self.names = [role.name for role in roles]
        programs = [role.finished() for role in roles]
        operations = [operation for program in programs for operation in program]
        accesses = [a for o in operations for a in (*o.before, *o.after)]
        moves = [o for o in operations if o.name in ("copy", "store")]
        buffers = {buffer for _, buffer, _ in accesses}
        buffers |= {buffer for o in moves for buffer in o.arguments[0]}  # type: ignore
        named = {o.arguments[0] for o in operations if o.name == "named_arrive"}
        # A state is a string of bytes: the roles' positions, then three bytes for each mbarrier
        # (phase, arrivals and copies it waits for), two for each named barrier (who has arrived,
        # who waits), three for each buffer (content, readers, writer), one for each store.
        self.place: dict[Hashable, int] = {}
        size = len(roles)
        for kind, keys, width in (
            ("mbarrier", barriers, 3),
            ("named", sorted(named, key=str), 2),
            ("buffer", sorted(buffers, key=str), 3),
            ("store", [id(o) for o in moves if o.name == "store"], 1),
        ):
            for key in keys:
                self.place[kind, key] = size
                size += width
        start = bytearray(size)
        for name, arrivals in barriers.items():
            start[self.place["mbarrier", name] + 1] = arrivals
        self.start = start
        self.arrivals = {self.place["mbarrier", name]: n for name, n in barriers.items()}
        self.barrier_names = {self.place["mbarrier", name]: name for name in barriers}
        self.buffer_names = {self.place["buffer", name]: str(name) for name in buffers}
        self.contents: dict[Content, int] = {None: 0}
        self.copies: list[tuple[tuple[int, ...], int, int]] = [((), 0, 0)]  # to, content, mbarrier
        self.stores: dict[int, tuple[int, tuple[int, ...]]] = {}  # their role and source
        self.programs = [
            [self._compiled(operation, role) for operation in program]
            for role, program in enumerate(programs)
        ]
        assert len(self.contents) < 256 and len(self.copies) < 256

    def _content(self, content: Content) -> int:
        return self.contents.setdefault(content, len(self.contents))

    def _compiled(
        self, operation: Operation, role: int
    ) -> tuple[Callable[[bytearray], bool], list[tuple[int, int, int]], list[tuple[int, int, int]]]:
        """The operation (whether it can go on), and the accesses that end and begin with it."""

        def accesses(found: list[tuple[str, Buffer, Content]]) -> list[tuple[int, int, int]]:
            return [
                (int(kind == "write"), self.place["buffer", buffer], self._content(content))
                for kind, buffer, content in found
            ]

        run = self._step(operation, role)
        return run, accesses(operation.before), accesses(operation.after)

    def _step(self, operation: Operation, role: int) -> Callable[[bytearray], bool]:
        name, arguments = operation.name, operation.arguments
        if name in ("start", "then", "end"):
            return lambda state: True
        if name == "barrier_wait":
            return self._wait(self.place["mbarrier", arguments[0]], int(arguments[1]))  # type: ignore
        if name in ("barrier_arrive", "barrier_expect"):
            at, count = self.place["mbarrier", arguments[0]], int(arguments[1])  # type: ignore
            if name == "barrier_arrive":
                return lambda state: self._arrive(state, at, count)
            return lambda state: self._expect(state, at, count)
        if name == "named_arrive":
            at, warps, stays = self.place["named", arguments[0]], arguments[1], arguments[2]
            return lambda state: self._named_arrive(state, at, role, warps, stays)  # type: ignore
        if name == "named_wait":
            at = self.place["named", arguments[0]]
            return lambda state: not state[at + 1] >> role & 1
        if name == "copy":
            to = tuple(self.place["buffer", buffer] for buffer in arguments[0])  # type: ignore
            barrier = self.place["mbarrier", arguments[2]]
            self.copies.append((to, self._content(arguments[1]), barrier))
            number = len(self.copies) - 1
            return lambda state: self._copy(state, to, number)
        if name == "store":
            source = tuple(self.place["buffer", buffer] for buffer in arguments[0])  # type: ignore
            content = self._content(arguments[1])
            at = self.place["store", id(operation)]
            self.stores[at] = role, source
            return lambda state: self._store(state, at, source, content)
        assert name == "store_wait_read", name
        return lambda state: (
            not any(state[at] for at, (owner, _) in self.stores.items() if owner == role)
        )

    # ---- what operations do ---------------------------------------------------------------------

    def _wait(self, at: int, phase: int) -> Callable[[bytearray], bool]:
        def run(state: bytearray) -> bool:
            current = state[at]  # the phase that has not ended
            if current > phase + 1:
                raise Fault("late", f"{self.barrier_names[at]}, phase {phase}, is at {current}")
            if current % 2 == phase % 2:
                return False
            if current != phase + 1:
                raise Fault("early", f"{self.barrier_names[at]}, phase {phase}, is at {current}")
            return True

        return run

    def _arrive(self, state: bytearray, at: int, count: int) -> bool:
        if state[at + 1] < count:
            raise Fault("overdrawn", f"{self.barrier_names[at]} in phase {state[at]}")
        state[at + 1] -= count
        self._complete(state, at)
        return True

    def _expect(self, state: bytearray, at: int, copies: int) -> bool:
        state[at + 2] += copies
        return self._arrive(state, at, 1)

    def _complete(self, state: bytearray, at: int) -> None:
        if state[at + 1] == 0 and state[at + 2] == 0:
            state[at] += 1
            state[at + 1] = self.arrivals[at]

    @staticmethod
    def _named_arrive(state: bytearray, at: int, role: int, warps: int, stays: bool) -> bool:
        if state[at] >> role & 1:
            raise Fault("twice", "a warp at a named barrier")
        state[at] |= 1 << role
        if stays:
            state[at + 1] |= 1 << role
        if state[at].bit_count() == warps:
            state[at] = state[at + 1] = 0
        return True

    def _copy(self, state: bytearray, to: tuple[int, ...], number: int) -> bool:
        for buffer in to:
            if state[buffer + 1] or state[buffer + 2]:
                raise Fault("conflict", f"a copy into {self.buffer_names[buffer]}, which is in use")
            state[buffer + 2] = number
        return True

    def _store(self, state: bytearray, at: int, source: tuple[int, ...], content: int) -> bool:
        state[at] = 1
        for buffer in source:
            self._begin(state, (0, buffer, content), STORE)
        return True

    def _begin(self, state: bytearray, access: tuple[int, int, int], reader: int) -> None:
        is_write, buffer, content = access
        if state[buffer + 2] or (is_write and state[buffer + 1]):
            raise Fault("conflict", f"an access to {self.buffer_names[buffer]}, which is in use")
        if is_write:
            state[buffer], state[buffer + 2] = content, 0xFF
        elif state[buffer] != content:
            raise Fault("stale", f"{self.buffer_names[buffer]} is read")
        else:
            state[buffer + 1] |= reader

    # ---- all interleavings ----------------------------------------------------------------------

    def _successors(self, state: bytes) -> Iterable[tuple[str, bytes | Fault]]:
        roles = len(self.programs)
        for role in range(roles):
            position = state[role]
            program = self.programs[role]
            if position == len(program):
                continue
            run, ends, begins = program[position]
            new = bytearray(state)
            try:
                for is_write, buffer, _ in ends:
                    if is_write:
                        new[buffer + 2] = 0
                    else:
                        new[buffer + 1] &= ~(1 << role)
                if not run(new):
                    continue
                for access in begins:
                    self._begin(new, access, 1 << role)
            except Fault as fault:
                yield self.names[role], fault
                continue
            new[role] += 1
            yield self.names[role], bytes(new)
        seen = set()
        for buffer in self.buffer_names:
            number = state[buffer + 2]
            if 0 < number < 0xFF and number not in seen:  # a copy may arrive
                seen.add(number)
                to, content, barrier = self.copies[number]
                new = bytearray(state)
                for each in to:
                    new[each], new[each + 2] = content, 0
                new[barrier + 2] -= 1
                self._complete(new, barrier)
                yield f"copy {number} arrives", bytes(new)
        for at, (_, source) in self.stores.items():
            if state[at]:  # a store may have read
                new = bytearray(state)
                new[at] = 0
                for each in source:
                    new[each + 1] &= ~STORE
                yield "a store has read", bytes(new)

    def explore(self, limit: int = 2_000_000) -> Outcome:
        """Every state that can be reached, breadth first; faults are not gone beyond."""
        start = bytes(self.start)
        before: dict[bytes, tuple[bytes, str] | None] = {start: None}
        queue, faults = [start], {}
        ends = [len(program) for program in self.programs]

        def way(state: bytes, last: str) -> str:
            steps = [last]
            while (came := before[state]) is not None:
                state, step = came
                steps.append(step)
            return " → ".join(reversed(steps))

        while queue:
            following = []
            for state in queue:
                moved = False
                for label, new in self._successors(state):
                    moved = True
                    if isinstance(new, Fault):
                        faults.setdefault(new.kind, way(state, f"{label} ({new})"))
                    elif new not in before:
                        before[new] = (state, label)
                        following.append(new)
                if not moved and list(state[: len(ends)]) != ends:
                    faults.setdefault("deadlock", way(state, "nobody can go on"))
            assert len(before) <= limit, f"more than {limit} states"
            queue = following
        return Outcome(len(before), faults)
