"""Every exception of embedpool, and the only place where a wire code, an HTTP status and "try again" are decided.

    EmbedpoolError                      internal         500
    ├── ProtocolError                   bad_message      400   the peer sent something that is not the protocol
    │   └── VersionMismatch             bad_version      400
    ├── BadRequest (ValueError)         bad_request      400   the request can never succeed as it is
    │   ├── BadText                     bad_text         422   one text is at fault; `row` says which
    │   │   └── TextTooLong             too_long         422
    │   ├── PoisonRow                   poison_row       422   this row's text ended several workers
    │   ├── TooLarge                    too_large        413   more rows or bytes than one message may carry
    │   ├── BadDimension                bad_dimension    400
    │   ├── UnknownModel                unknown_model    404
    │   └── UnknownPrompt               unknown_prompt   400
    ├── Unavailable                     unavailable      503   retryable
    │   ├── Overloaded                  overloaded       429   retryable, with retry_after_ms
    │   ├── Draining                    draining         503   retryable
    │   ├── PoolFailed                  pool_failed      503   no worker can start; the reason is in the message
    │   └── NotRunning (ConnectionError) not_running     503   retryable; nobody answers at the endpoint
    ├── TimedOut (TimeoutError)         expired          504   retryable
    ├── ModelChanged                    model_changed    409   retryable; the pool came back with another model in the middle
    ├── WrongFingerprint                wrong_model      409   the pool's vectors are not those that the client expects
    ├── Cancelled                       cancelled        499
    ├── EncodeFailed                    encode_failed    500   the model run raised, or gave values that are not finite
    ├── SegmentError                    no_space         507   shared memory could not be had
    ├── ModelError                      bad_model        500   a model that cannot be found, read or run
    ├── ConfigError                     bad_config       500
    └── AlreadyRunning                  already_running  500

The wire carries the code; a class name, a path or a traceback never leaves the process. ModelError, ConfigError and
AlreadyRunning are a user's mistakes on the command line: one sentence and exit status 2.
"""

from __future__ import annotations

from typing import ClassVar


class EmbedpoolError(Exception):
    """Base of the tree.

    `row` is the index of the text at fault within the request, where one text is; `retry_after_ms` is the server's
    estimate of when the same request would be taken.
    """

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, row: int | None = None, retry_after_ms: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.row = row
        self.retry_after_ms = retry_after_ms


class ProtocolError(EmbedpoolError):
    """Bytes that are not a message of this protocol. `request` is the request's id where it could still be read."""

    code = "bad_message"
    http_status = 400

    def __init__(self, message: str, *, request: int | None = None, row: int | None = None) -> None:
        super().__init__(message, row=row)
        self.request = request


class VersionMismatch(ProtocolError):
    code = "bad_version"


class BadRequest(EmbedpoolError, ValueError):
    code = "bad_request"
    http_status = 400


class BadText(BadRequest):
    code = "bad_text"
    http_status = 422


class TextTooLong(BadText):
    code = "too_long"


class PoisonRow(BadRequest):
    code = "poison_row"
    http_status = 422


class TooLarge(BadRequest):
    code = "too_large"
    http_status = 413


class BadDimension(BadRequest):
    code = "bad_dimension"


class UnknownModel(BadRequest):
    code = "unknown_model"
    http_status = 404


class UnknownPrompt(BadRequest):
    code = "unknown_prompt"


class Unavailable(EmbedpoolError):
    code = "unavailable"
    http_status = 503
    retryable = True


class Overloaded(Unavailable):
    code = "overloaded"
    http_status = 429


class Draining(Unavailable):
    code = "draining"


class PoolFailed(Unavailable):
    code = "pool_failed"
    retryable = False


class NotRunning(Unavailable, ConnectionError):
    code = "not_running"


class TimedOut(EmbedpoolError, TimeoutError):
    code = "expired"
    http_status = 504
    retryable = True


class ModelChanged(EmbedpoolError):
    code = "model_changed"
    http_status = 409
    retryable = True


class WrongFingerprint(EmbedpoolError):
    code = "wrong_model"
    http_status = 409


class Cancelled(EmbedpoolError):
    code = "cancelled"
    http_status = 499  # nginx's "client closed request"; no standard status exists


class EncodeFailed(EmbedpoolError):
    code = "encode_failed"


class SegmentError(EmbedpoolError):
    code = "no_space"
    http_status = 507


class ModelError(EmbedpoolError):
    code = "bad_model"


class ConfigError(EmbedpoolError):
    code = "bad_config"


class AlreadyRunning(EmbedpoolError):
    code = "already_running"


def _tree(root: type[EmbedpoolError]) -> dict[str, type[EmbedpoolError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found |= _tree(child)
    return found


BY_CODE: dict[str, type[EmbedpoolError]] = _tree(EmbedpoolError)


def from_wire(code: str, message: str, *, row: int | None = None, retry_after_ms: int | None = None) -> EmbedpoolError:
    """The exception for a refusal received from a server; a code of a newer server becomes its plain base class."""
    kind = BY_CODE.get(code, EmbedpoolError)
    if issubclass(kind, ProtocolError):
        return kind(message, row=row)
    return kind(message, row=row, retry_after_ms=retry_after_ms)
