from typing import Self, final

_Buffer = bytes | bytearray | memoryview

@final
class Sha256:
    """Hash bytes and keep the chaining state after each every_bytes of them, packed (eight big-endian words).

    every_bytes is a multiple of 64; 0 keeps none. `kernel` names an implementation; all give the same. One object
    belongs to one thread at a time: RuntimeError where another is hashing with it.
    """

    def __new__(cls, every_bytes: int = 0, kernel: str = "auto") -> Self: ...
    @staticmethod
    def resume(states: bytes, every_bytes: int, kernel: str = "auto") -> Sha256:
        """Go on after len(states) // 32 * every_bytes bytes, from the last of the states; all are kept.

        ValueError for states that are no whole number of 32 bytes, and for every_bytes that is 0 or no multiple of 64.
        Whoever gives other states than those of the bytes gets another digest: keep what comes from them apart until
        it has been compared.
        """

    def update(self, buffer: _Buffer) -> None:
        """Hash the next bytes, contiguous and borrowed for the call. Releases the GIL for 2 KiB and more."""

    def digest(self) -> bytes:
        """Return the digest of what has been hashed; more may follow."""

    @property
    def states(self) -> bytes:
        """Every state so far, 32 bytes each: a copy. A resumed hash has those that it was given, too."""

def update_two(one: Sha256, one_buffer: _Buffer, other: Sha256, other_buffer: _Buffer) -> None:
    """Hash the next bytes of two inputs side by side, in less time than one after the other. Releases the GIL.

    The buffers are contiguous, of any lengths, and borrowed for the call. What one input has more is hashed alone.
    ValueError for one object given twice and for objects of different kernels; RuntimeError as for update.
    """

def is_fast() -> bool:
    """Tell whether the processor has SHA-256 instructions that are used here; hashlib is faster where it has not."""

def kernels() -> tuple[str, ...]:
    """Name the implementations that run on this machine, fastest first."""
