"""Refusals: why a connect or listen was refused, or why a connection was reset, and the exceptions for them."""

import errno
from dataclasses import dataclass, field
from typing import Dict, List, NamedTuple, Optional, Type

# Linux's numbers, which the protocol uses on every system.
_ECONNRESET = 104


class _Codes(NamedTuple):
    label: str
    errno: int
    wsa: int
    text: str


#: By code. `{}` in a text is the detail. Error numbers are Linux's and Winsock's.
_REFUSALS = {
    1: _Codes("unregistered", 111, 10061, "the service is not registered"),
    2: _Codes("disabled", 1, 10022, "the service is disabled by {}"),
    3: _Codes("denied", 13, 10013, "access is denied by {}"),
    4: _Codes("partition_unknown", 99, 10049, "no partition has this id"),
    5: _Codes("partition_off", 113, 10051, "the partition is off"),
    6: _Codes("partition_paused", 112, 10050, "the partition is paused"),
    7: _Codes("not_reachable", 99, 10049, "no partition that can be reached from here has this id"),
    8: _Codes("not_supported", 95, 10045, "this address has no meaning in this partition"),
    9: _Codes("no_listener", 111, 10061, "no listener accepts this service there"),
    10: _Codes("wildcard_not_allowed", 13, 10013, "the service does not allow listening at the wildcard"),
    11: _Codes("backlog_full", 111, 10061, "the listener's backlog is full"),
    12: _Codes("address_in_use", 98, 10048, "another listener has this address"),
    13: _Codes("address_not_available", 99, 10049, "this address is not valid for connecting or listening"),
    14: _Codes("timed_out", 110, 10060, "timed out: the peer did not answer"),
    15: _Codes(
        "service_not_mappable", 99, 10049, "the service's GUID maps to no vsock port, and the peer uses vsock ports"
    ),
    16: _Codes("limit_reached", 105, 10055, "the limit on {} is reached"),
    17: _Codes("reset", _ECONNRESET, 10054, "the connection was reset: {}"),
    18: _Codes("no_driver", 113, 10051, "the guest has not started its vsock driver"),
    19: _Codes("partition_exited", 113, 10051, "the container has exited"),
}
RESET = 17

#: What the detail of every refusal for a protocol violation contains. It tells a broker that does not know a
#: message from one that passes on another cause.
VIOLATION = "violated the endpoint protocol"


@dataclass(frozen=True)
class Fix:
    """What would turn a refusal into a success. ``kind`` is empty or unknown if only the text is known."""

    kind: str
    text: str
    data: Dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Step:
    """One check of the broker."""

    passed: bool
    question: str
    answer: str
    check: str = "other"
    subject: Optional[str] = None
    rule: Optional[str] = None

    def __str__(self) -> str:
        return f"{'pass' if self.passed else 'FAIL'}  {self.question}  {self.answer}"


@dataclass(frozen=True)
class Refusal:
    """Why a connect or listen was refused, or a connection or listener was reset."""

    code: int
    detail: str = ""

    @classmethod
    def from_wire(cls, code: int, detail: str) -> "Refusal":
        """The refusal with this code. An unknown code, of a newer broker, is a reset that names it."""
        if code in _REFUSALS:
            return cls(code, detail if "{}" in _REFUSALS[code].text else "")
        return cls(RESET, f"unknown reason {code}" + (f": {detail}" if detail else ""))

    @property
    def label(self) -> str:
        """The refusal in one word, such as ``unregistered``."""
        return _REFUSALS[self.code].label

    @property
    def errno(self) -> int:
        """The nearest error number of Linux."""
        return _REFUSALS[self.code].errno

    @property
    def wsa(self) -> int:
        """The nearest error number of Winsock."""
        return _REFUSALS[self.code].wsa

    @property
    def text(self) -> str:
        return _REFUSALS[self.code].text.replace("{}", self.detail)

    def __str__(self) -> str:
        return self.text


#: Every label, by its code.
LABELS = {code: codes.label for code, codes in _REFUSALS.items()}


@dataclass(frozen=True)
class Explanation:
    """What a request would do, check by check, and what would help."""

    refusal: Optional[Refusal]
    steps: List[Step] = field(default_factory=list)
    fix: Optional[Fix] = None

    @property
    def would_succeed(self) -> bool:
        """Whether nothing that the broker knows refuses the request."""
        return self.refusal is None

    def __str__(self) -> str:
        lines = [str(step) for step in self.steps]
        lines.append("nothing refuses it" if self.refusal is None else f"refused: {self.refusal}")
        if self.fix is not None:
            lines.append(f"help: {self.fix}")
        return "\n".join(lines)


def parse_explanation(code: int, text: str) -> Explanation:
    """Reads the text of EXPLAINED."""
    detail, _, rest = text.partition("\n")
    refusal = None if code == 0 else Refusal.from_wire(code, detail)
    steps: List[Step] = []
    fix: Optional[Fix] = None
    for line in _lines(rest):
        is_whole = line.endswith("\n")
        words = (line[:-1] if is_whole else line).split("\t")
        # A line that the size of a message cut off has only its text.
        fields = dict(word.split("=", 1)[:2] for word in reversed(words[3:]) if "=" in word) if is_whole else {}
        if words[0] in ("pass", "fail") and len(words) >= 3:
            steps.append(
                Step(
                    passed=words[0] == "pass",
                    question=words[1],
                    answer=words[2],
                    check=fields.get("check", "other"),
                    subject=fields.get("subject"),
                    rule=fields.get("rule"),
                )
            )
        elif words[0] == "fix" and len(words) == 2:
            fix = Fix("", words[1])
        elif words[0] == "fix" and len(words) >= 3:
            fix = Fix(words[1] if is_whole else "", words[2], fields)
    return Explanation(refusal, steps, fix)


class Refused(OSError):
    """A request that was refused, or a connection, listener or lease that was reset.

    It is also of the class of its error number: :class:`ConnectionRefusedError`, :class:`PermissionError`,
    :class:`TimeoutError` or :class:`ConnectionResetError`.
    """

    #: Why.
    refusal: Refusal
    #: The checks of the broker, if it sent them.
    explanation: Optional[Explanation]

    @property
    def fix(self) -> Optional[Fix]:
        """What would help, if that is known."""
        return self.explanation.fix if self.explanation is not None else None


class RefusedConnection(Refused, ConnectionRefusedError):
    """Nobody accepts the connection: not registered, no listener, or a full backlog."""


class RefusedPermission(Refused, PermissionError):
    """A rule or setting does not allow it."""


class RefusedTimeout(Refused, TimeoutError):
    """The peer did not answer in time."""


class Reset(Refused, ConnectionResetError):
    """An established connection, listener or lease was reset."""


_CLASSES: Dict[int, Type[Refused]] = {
    111: RefusedConnection,
    1: RefusedPermission,
    13: RefusedPermission,
    110: RefusedTimeout,
    _ECONNRESET: Reset,
}

#: Linux's numbers, by the name that this system has its own number for.
_NAMES = {
    1: "EPERM",
    13: "EACCES",
    95: "EOPNOTSUPP",
    98: "EADDRINUSE",
    99: "EADDRNOTAVAIL",
    104: "ECONNRESET",
    105: "ENOBUFS",
    110: "ETIMEDOUT",
    111: "ECONNREFUSED",
    112: "EHOSTDOWN",
    113: "EHOSTUNREACH",
}


def _system_errno(number: int) -> int:
    return int(getattr(errno, _NAMES.get(number, ""), number))


def refused(
    refusal: Refusal,
    what: str = "",
    explanation: Optional[Explanation] = None,
    kind: Optional[Type[Refused]] = None,
    text: str = "",
) -> Refused:
    """The exception for a refusal. ``what`` failed, as in ``cannot connect to hvsock://web/2761``."""
    number = _ECONNRESET if kind is Reset else refusal.errno
    words = text or refusal.text
    words = f"{what}: {words}" if what else words
    if explanation is not None and explanation.fix is not None:
        words += f"; help: {explanation.fix}"
    chosen = kind if kind is not None else _CLASSES.get(number, Refused)
    error = chosen(_system_errno(number), words)
    error.refusal = refusal
    error.explanation = explanation
    return error


def reset(refusal: Refusal, what: str = "") -> Refused:
    """The exception for an established connection, listener or lease that ends for this reason."""
    return refused(refusal, what, kind=Reset)


def broker_gone() -> Refused:
    """The exception for an end of the broker."""
    return reset(Refusal(RESET, "the broker went away"))


def is_broker_gone(error: OSError) -> bool:
    """Whether the broker has closed without a reason."""
    return isinstance(error, Reset) and error.refusal == broker_gone().refusal


def protocol_error(text: str) -> Refused:
    """The exception for a message of the broker that is none."""
    return reset(Refusal(RESET, f"the broker {VIOLATION}: {text}"))


def _lines(text: str) -> List[str]:
    """Lines that end with a line feed only."""
    lines = [line + "\n" for line in text.split("\n")]
    lines[-1] = lines[-1][:-1]
    return [line for line in lines if line]
